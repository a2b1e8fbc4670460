"""What a network does with its convolutions: their names, and the calls of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tcnn import convolutions
from tcnn.errors import RecastError
from tcnn.layers import GPSA2d
from tcnn.running import undisturbed

Size = tuple[int, int]


@dataclass(frozen=True)
class Call:
    """One call of a convolution: sizes of input and output, and stride, padding and dilation."""

    inputs: Size
    outputs: Size
    settings: tuple[Size | str, ...]


Calls = dict[nn.Module, list[Call]]


def refuse_wrapped(model: nn.Module) -> None:
    """Raise a `RecastError` for a network whose modules cannot be replaced, or not from here."""
    for name, module in model.named_modules():
        where = f"{name or 'the network'} is "
        if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise RecastError(f"{where}not initialised yet: run one batch through it first.")
        if isinstance(module, torch.jit.ScriptModule):
            raise RecastError(
                f"{where}a TorchScript module: recast the Python model, then script it."
            )
        if (
            isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
            or type(module).__name__ == "FullyShardedDataParallel"
        ):
            raise RecastError(
                f"{where}wrapped in {type(module).__name__}: recast its `.module`, then wrap that."
            )
        if hasattr(module, "_orig_mod"):
            raise RecastError(
                f"{where}compiled: recast its `._orig_mod`, then torch.compile the hybrid."
            )


def convolution_names(model: nn.Module) -> dict[nn.Conv2d, list[str]]:
    """Every convolution with all the names that it goes by, in the network's order."""
    names: dict[nn.Conv2d, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            names.setdefault(module, []).append(name)
    return names


def own_input_size(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) by the network's `pretrained_cfg`, as timm's carry it, or else 3×224×224."""
    settings = getattr(model, "pretrained_cfg", None)
    size: Any = settings.get("input_size") if isinstance(settings, dict) else None
    return (size[0], size[1], size[2]) if is_size(size) else (3, 224, 224)


def is_size(size: Any) -> bool:
    """Whether it is (C, H, W)."""
    return (
        isinstance(size, Sequence)
        and len(size) == 3
        and all(isinstance(n, int) and n >= 1 for n in size)
    )


def trace(model: nn.Module, input_size: tuple[int, int, int]) -> Calls:
    """The calls of each convolution, recast or not, for one empty image, in eval mode."""
    calls: Calls = {}

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        x = args[0] if args else kwargs["input"]
        settings = tuple(
            setting if isinstance(setting, str) else convolutions.pair(setting)
            for setting in (module.stride, module.padding, module.dilation)
        )
        inputs, outputs = (x.shape[-2], x.shape[-1]), (output.shape[-2], output.shape[-1])
        calls.setdefault(module, []).append(Call(inputs, outputs, settings))

    numbers = (p for p in model.parameters() if p.is_floating_point() or p.is_complex())
    parameter = next(numbers, torch.empty(0))
    handles = [
        module.register_forward_hook(record, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | GPSA2d)
    ]
    try:
        with undisturbed(model):
            model(torch.zeros(1, *input_size, dtype=parameter.dtype, device=parameter.device))
    except Exception as error:
        summary = str(error).strip().partition("\n")[0]
        raise RecastError(
            f"Expected a network that runs on an image of {'×'.join(map(str, input_size))}, but "
            f"{type(model).__name__} raised {type(error).__name__}: {summary} "
            "(give the size it takes with input_size=)"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls
