"""Surgery on whole networks: recast what a plan says, and restore."""

from __future__ import annotations

import copy
import math
import warnings

import torch
from torch import nn

from tcnn.equivalence import EquivalenceError, LayerError, check_equivalence
from tcnn.errors import RecastError
from tcnn.gpsa_config import GPSAConfig
from tcnn.layers import GPSA2d, gpsa_layers
from tcnn.planning import Targets, plan
from tcnn.running import undisturbed
from tcnn.tracing import refuse_wrapped

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
        done = len(gpsa_layers(cnn))
        reasons = dict.fromkeys(row.reason for row in steps)
        raise RecastError(
            "Expected a convolution to recast, but "
            + (f"{done} are recast already and " if done else "")
            + f"each of the {len(steps)} in the network is left out "
            f"({'; '.join(list(reasons)[:3])}): name the ones to recast with targets=."
        )
    hybrid = replace_convolutions(cnn, {row.name: config or GPSAConfig() for row in steps.taken})
    _prove(cnn, hybrid, [row.name for row in steps.taken], steps.input_size)
    return hybrid


def _prove(cnn: nn.Module, hybrid: nn.Module, names: list[str], size: tuple[int, int, int]) -> None:
    """Raise unless recasting the named layers left the network's function as it was.

    A network may read a convolution, test for its class, or hold it where surgery cannot reach. So
    both are run on one random image, the hybrid as its shut twin, which is the CNN to the bit.
    """
    if any(parameter.is_meta for parameter in cnn.parameters()):
        return
    exact = GPSAConfig()
    if any(layer.config != exact for layer in gpsa_layers(hybrid).values()):
        hybrid = replace_convolutions(cnn, dict.fromkeys(names, exact))
    image = _image(cnn, size)
    remedy = (
        "The network reads or tests its convolutions besides calling them: leave this one out of "
        "the targets, or make the network call it"
    )
    try:
        report = check_equivalence(cnn, hybrid, image)
    except EquivalenceError as error:
        raise RecastError(f"Once recast ({', '.join(names[:3])}, …): {error}. {remedy}.") from error
    # On a CPU the same operations on the same numbers give the same bits; elsewhere they may not.
    on_cpu = all(parameter.is_cpu for parameter in cnn.parameters())
    for layer in (*report.layers, LayerError("the output", *report.errors)):
        if not layer.max_rel_error <= (0.0 if on_cpu else report.tolerance):
            if check_equivalence(cnn, _copy(cnn), image).max_abs_error != 0:
                raise RecastError(
                    f"Expected a network that gives the same output twice, but "
                    f"{type(cnn).__name__} does not: make it deterministic in eval mode first."
                )
            how = (
                "does not match (it is called in one network alone, or gives something else)"
                if math.isinf(layer.max_rel_error)
                else f"differs by {layer.max_rel_error:.2g} of its largest value"
            )
            raise RecastError(
                f"Expected the same function once recast, but {layer.name} {how}. {remedy}."
            )


def _image(cnn: nn.Module, size: tuple[int, int, int]) -> torch.Tensor:
    """A random image in [0, 1), or the empty one that `plan` took where only that will do."""
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    parameter = next((p for p in cnn.parameters() if p.is_floating_point()), image)
    try:
        with undisturbed(cnn):
            cnn(image.to(parameter.device, parameter.dtype))
    except Exception:
        return torch.zeros_like(image)
    return image


@torch.inference_mode(False)  # in it, copies could not be trained
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


@torch.inference_mode(False)  # in it, copies could not be trained
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
        for name, layer in gpsa_layers(model).items()
        if name not in left
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
    layers = gpsa_layers(hybrid)
    if not layers:
        raise RecastError(
            f"Expected a hybrid, but {type(hybrid).__name__} holds no GPSA2d to restore."
        )
    reasons = {name: layer.not_a_convolution() for name, layer in layers.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _copy(model: nn.Module) -> nn.Module:
    """A copy in which parameters keep their attributes, which `copy.deepcopy` alone drops."""
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise RecastError(
                f"Expected a network that can be copied, but {name} has a hook on its gradient "
                "(by register_hook), which no copy keeps: remove it, and register it on the hybrid."
            )
    try:
        model_copy = copy.deepcopy(model)
        for old, new in zip(model.parameters(), model_copy.parameters(), strict=True):
            new.__dict__.update({k: v for k, v in old.__dict__.items() if k not in new.__dict__})
        return model_copy
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
