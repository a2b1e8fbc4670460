"""Surgery on whole networks: recast what a plan says, and restore."""

from __future__ import annotations

import copy
import warnings

from torch import nn

from tcnn.gpsa_config import GPSAConfig
from tcnn.layers import GPSA2d
from tcnn.planning import RecastError, Targets, plan, refuse_wrapped

__all__ = [
    "RecastError",
    "not_restorable",
    "recast",
    "replace_convolutions",
    "restore",
]


def recast(
    cnn: nn.Module,
    targets: Targets = None,
    config: GPSAConfig | None = None,
    input_size: tuple[int, int, int] | None = None,
) -> nn.Module:
    """A copy of a network with convolutions recast as `GPSA2d`, computing the same function.

    Executes exactly `plan(cnn, targets, config, input_size)`. The given network is left as it was.

    Args:
        cnn, targets, config, input_size: as in `plan`.

    Raises:
        RecastError: as in `plan`; or a convolution named by `targets` cannot be recast exactly; or
            nothing is left to recast.
    """
    steps = plan(cnn, targets, config, input_size)
    if steps.refused and (targets is not None or not steps.taken):
        raise RecastError(
            "Expected targets that can be recast exactly, but "
            + "; ".join(
                f"{row.name or 'the network itself'}: {row.reason}" for row in steps.refused
            )
        )
    if not steps.taken:
        done = sum(isinstance(module, GPSA2d) for module in cnn.modules())
        reasons = dict.fromkeys(row.reason for row in steps)
        raise RecastError(
            "Expected a convolution to recast, but "
            + (f"{done} are recast already and " if done else "")
            + f"each of the {len(steps)} in the network is left out "
            f"({'; '.join(list(reasons)[:3])}): name the ones to recast with targets=."
        )
    return replace_convolutions(cnn, {row.name: config or GPSAConfig() for row in steps.taken})


def replace_convolutions(cnn: nn.Module, configs: dict[str, GPSAConfig]) -> nn.Module:
    """A copy of a network with the named convolutions recast, each with its own options.

    Raises:
        RecastError: a name is not a convolution that can be recast exactly.
    """
    model = _copy(cnn)
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[nn.Module, nn.Module] = {}
    for name, config in configs.items():
        conv = modules.get(name)
        if not isinstance(conv, nn.Conv2d):
            raise RecastError(
                f"Expected {name!r} to be an nn.Conv2d of the network, "
                f"but got {'nothing of that name' if conv is None else type(conv).__name__}."
            )
        try:
            layers[conv] = GPSA2d.from_conv2d(conv, config, copy=False)
        except ValueError as error:
            raise RecastError(f"{name}: {error}") from None
    return _swap(model, layers)


def restore(hybrid: nn.Module) -> nn.Module:
    """A copy of a hybrid with every `GPSA2d` that is exactly a convolution turned back into one.

    Layers that are not (see `not_restorable`) stay as they are, and a `UserWarning` names them.

    Raises:
        RecastError: the network holds no `GPSA2d`, or is wrapped.
    """
    refuse_wrapped(hybrid)
    left = not_restorable(hybrid)
    model = _copy(hybrid)
    layers: dict[nn.Module, nn.Module] = {
        layer: layer.to_conv2d(copy=False)
        for name, layer in model.named_modules()
        if isinstance(layer, GPSA2d) and name not in left
    }
    if left:
        warnings.warn(
            "not restored, for they are not convolutions: "
            + "; ".join(
                f"{name or 'the network itself'}: {reason}" for name, reason in left.items()
            ),
            stacklevel=2,
        )
    return _swap(model, layers)


def not_restorable(hybrid: nn.Module) -> dict[str, str]:
    """The `GPSA2d` layers of a hybrid that are not exactly convolutions: name → why.

    Raises:
        RecastError: the network holds no `GPSA2d`.
    """
    layers = {n: m for n, m in hybrid.named_modules() if isinstance(m, GPSA2d)}
    if not layers:
        raise RecastError(
            f"Expected a hybrid, but {type(hybrid).__name__} holds no GPSA2d to restore."
        )
    reasons = {name: layer.not_a_convolution() for name, layer in layers.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise RecastError(
            f"Expected a network that can be copied, but copy.deepcopy of {type(model).__name__} "
            f"raised {type(error).__name__}: {error}"
        ) from error


def _swap(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """Put each replacement in every place where its module stands; shared modules stay shared."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in replacements:
                parent._modules[key] = replacements[child]
    return replacements.get(model, model)
