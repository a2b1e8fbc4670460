"""The processes of a test: launched, and of one mind about values and errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from lightning.fabric import Fabric

from tcnn.errors import TCNNError
from tcnn.evaluate_config import InferenceConfig


def make_fabric(config: InferenceConfig) -> Fabric:
    """The processes and devices of a configuration, launched.

    Raises:
        TCNNError: there are no such devices.
    """
    processes = config.processes > 1
    logger = logging.getLogger("lightning.fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)  # without its notes on precision and processes
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy="ddp" if processes else "auto",
            precision=config.precision if config.precision != "32" else "32-true",
        )
        if processes:
            fabric.launch()
    except Exception as error:  # Lightning raises several kinds for devices that are not there
        reason = " ".join(str(error).split())
        raise TCNNError(
            f"Expected {config.devices} devices of kind {config.accelerator!r}, but: {reason}"
        ) from error
    finally:
        logger.setLevel(level)
    return fabric


@contextmanager
def shared_errors(fabric: Fabric) -> Iterator[None]:
    """End all processes where one of them meets a `TCNNError`, so that none waits for it.

    The first process raises it, the others end with exit code 1. All must come here together.
    """
    failure = None
    try:
        yield
    except TCNNError as error:
        failure = error
    for found in gather(failure):
        if found is not None:
            if fabric.global_rank == 0:
                raise found
            raise SystemExit(1)


def gather(value: Any) -> list[Any]:
    """The value of every process, in their order, in each of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
