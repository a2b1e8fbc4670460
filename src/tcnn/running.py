"""Run a network without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The network in eval mode inside, every module back in its own mode after."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False  # not .eval(): a network may override it, with side effects
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """In eval mode, without gradients; buffers and PyTorch's random numbers come back after.

    Inside, the random numbers are always the same ones.
    """
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            yield
        finally:
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not buffer.is_inference():
                    buffer.copy_(value)
