"""Run a network without leaving a trace on it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Every module back in its own mode (training or evaluation) after."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The network in eval mode inside, every module back in its own mode after."""
    with kept_modes(model):
        for module in model.modules():
            module.training = False  # not .eval(): a network may override it, with side effects
        yield


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """In eval mode, without gradients; buffers and all random numbers come back after.

    Inside, the random numbers of PyTorch, NumPy and Python are always the same ones.
    """
    modules = list(model.modules())
    tables = [(dict(m._buffers), set(m._non_persistent_buffers_set)) for m in modules]
    values = [
        (buffer, buffer.clone(), _place(buffer))
        for buffers, _ in tables
        for buffer in buffers.values()
        if buffer is not None
    ]
    with eval_mode(model), torch.no_grad(), _same_random_numbers():
        try:
            yield
        finally:
            for module, (buffers, hidden) in zip(modules, tables, strict=True):
                module._buffers.clear()
                module._buffers.update(buffers)
                module._non_persistent_buffers_set = hidden
            for buffer, value, place in values:
                if _place(buffer) != place:
                    buffer.data = value


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Changes whenever a tensor is written to, resized or given other memory."""
    version = None if tensor.is_inference() else tensor._version
    memory = tensor.data_ptr() if tensor.layout == torch.strided and not tensor.is_meta else None
    return version, memory, tuple(tensor.shape)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    cuda: Any = torch.cuda  # partly untyped
    devices = range(cuda.device_count()) if cuda.is_initialized() else []
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
