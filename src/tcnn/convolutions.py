"""What a convolution module computes: the `nn.Conv2d` subclasses that are understood, and others.

A module is understood when its output is a convolution of its padded input with a kernel that is a
function of its parameters alone. Everything else is refused by name, with the remedy.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class _Kind:
    """How a subclass of `nn.Conv2d` departs from it."""

    dynamic_same: bool = False
    """Pads by TensorFlow's SAME rule, from the size of each input, unless `same_pad` is False."""
    standardized: bool = False
    """Standardises its kernel over each output channel at run time (Qiao et al. 2019)."""
    extra_parameters: frozenset[str] = frozenset()


# By name, so that timm is not imported to recast a model that does not use it.
_KINDS = {
    "timm.layers.conv2d_same.Conv2dSame": _Kind(dynamic_same=True),
    "timm.layers.std_conv.StdConv2d": _Kind(standardized=True),
    "timm.layers.std_conv.StdConv2dSame": _Kind(dynamic_same=True, standardized=True),
    "timm.layers.std_conv.ScaledStdConv2d": _Kind(
        standardized=True, extra_parameters=frozenset({"gain"})
    ),
    "timm.layers.std_conv.ScaledStdConv2dSame": _Kind(
        dynamic_same=True, standardized=True, extra_parameters=frozenset({"gain"})
    ),
}


# Names that GPSA2d gives a meaning of its own.
_RESERVED = {
    "_conv",
    "_dynamic_same",
    "_standardized",
    "attention",
    "config",
    "not_a_convolution",
    "to_conv2d",
}


def type_name(conv: nn.Module) -> str:
    """Name of a module's class, `nn.Conv2d` or the full path of a subclass."""
    cls = parametrize.type_before_parametrizations(conv)
    return "Conv2d" if cls is nn.Conv2d else f"{cls.__module__}.{cls.__qualname__}"


def _kind(conv: nn.Module) -> _Kind | None:
    """The kind of a convolution, None where its forward is not known."""
    cls = parametrize.type_before_parametrizations(conv)
    known = _KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
    if known is not None:
        return known
    inherited = all(
        getattr(cls, name) is getattr(nn.Conv2d, name)
        for name in ("forward", "_conv_forward", "__call__", "_call_impl")
    )
    return _Kind() if inherited else None


def is_dynamic_same(conv: nn.Module) -> bool:
    """Whether the padding follows TensorFlow's SAME rule, from the size of each input."""
    kind = _kind(conv)
    return kind is not None and kind.dynamic_same and bool(getattr(conv, "same_pad", True))


def is_standardized(conv: nn.Module) -> bool:
    """Whether the kernel is standardised over each output channel at run time."""
    kind = _kind(conv)
    return kind is not None and kind.standardized


def refusal(conv: nn.Conv2d) -> str | None:
    """Why a convolution cannot be recast exactly, and what to do; None where it can."""
    name = type_name(conv)
    parameters = dict(conv.named_parameters())
    if any(isinstance(p, UninitializedParameter) for p in parameters.values()):
        return "its parameters are not initialised yet: run one batch through the model first"
    replaced = [n for n in ("forward", "_conv_forward", "_call_impl") if n in conv.__dict__]
    if replaced:
        return (
            f"its `{replaced[0]}` was replaced on the instance, so what it computes is not known: "
            "remove the wrapper that did this (accelerate's hooks, for one) before recasting"
        )
    kind = _kind(conv)
    if kind is None:
        return (
            f"{name} has a forward of its own, so what it computes is not known: "
            "replace it with nn.Conv2d, or leave it out of the targets"
        )
    if clashes := sorted(notes(conv).keys() & _RESERVED):
        return (
            f"it has an attribute `{clashes[0]}`, which means something else in GPSA2d: rename it"
        )
    if kind != _Kind() and conv.padding_mode != "zeros":
        return f"{name} does not follow its padding_mode={conv.padding_mode!r}: set it to 'zeros'"
    if conv._backward_hooks and conv._is_full_backward_hook is False:
        return (
            "it has a hook by the old register_backward_hook, which sees the gradients of one "
            "operation inside: use register_full_backward_hook"
        )
    parametrized = parametrize.is_parametrized(conv)
    for tensor in ("weight", "bias"):
        if tensor not in conv._parameters and not (
            parametrized and tensor in conv.parametrizations  # type: ignore[operator]
        ):
            return (
                f"its {tensor} is recomputed by a hook (the old weight_norm or spectral_norm, or "
                "pruning): fold it with remove_weight_norm, remove_spectral_norm or prune.remove, "
                "or use torch.nn.utils.parametrizations, which are carried over"
            )
    extra = {*conv._parameters, *conv._buffers, *conv._modules}
    extra -= {"weight", "bias", "parametrizations", *kind.extra_parameters}
    if extra:
        return (
            f"{name} holds {', '.join(sorted(extra))} beside weight and bias: "
            "replace it with nn.Conv2d, or leave it out of the targets"
        )
    for parameter in parameters.values():
        if type(parameter) is not nn.Parameter:
            return (
                f"its weight is a {type(parameter).__name__} (sharded or quantised): "
                "recast first, then shard or quantise the hybrid"
            )
        if parameter.dtype not in _FLOATING:
            return f"its weight is {parameter.dtype}: attention needs a real floating-point type"
    shape = (conv.out_channels, conv.in_channels // conv.groups, *pair(conv.kernel_size))
    found = conv._parameters.get("weight")
    if 0 in shape or (found is not None and tuple(found.shape) != shape):
        return (
            f"its weight is {'×'.join(map(str, shape if found is None else found.shape))} where "
            f"its attributes say {'×'.join(map(str, shape))}: "
            "make them agree, and leave none of them 0"
        )
    if conv.padding_mode != "zeros" and list(
        conv._reversed_padding_repeated_twice
    ) != reversed_padding(conv):
        return (
            f"its padding was changed after construction, which {conv.padding_mode} padding "
            "does not follow: build it with the padding that it is to have"
        )
    return None


def pair(size: Any) -> tuple[int, int]:
    """A setting of a convolution along rows and columns; other code may have set one number."""
    sizes = tuple(size) if isinstance(size, Iterable) else (size,)
    return int(sizes[0]), int(sizes[-1])


def reversed_padding(conv: nn.Conv2d) -> list[int]:
    """(left, right, top, bottom), which `nn.Conv2d` keeps for padding modes other than zeros."""
    if conv.padding == "valid":
        return [0, 0, 0, 0]
    if isinstance(conv.padding, str):
        totals = [
            d * (k - 1) for d, k in zip(pair(conv.dilation), pair(conv.kernel_size), strict=True)
        ]
        return [n for total in reversed(totals) for n in (total // 2, total - total // 2)]
    return [n for number in reversed(pair(conv.padding)) for n in (number, number)]


def notes(conv: nn.Module) -> dict[str, Any]:
    """What stands on a module besides parameters, submodules, hooks and mode: its settings."""
    internal = nn.Module().__dict__.keys()
    return {name: value for name, value in conv.__dict__.items() if name not in internal}


def bare(module: nn.Module, conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of the class and settings of `conv`, in the mode of `module`, and nothing more.

    Neither parameters nor hooks: see `move_state`.
    """
    cls: Any = parametrize.type_before_parametrizations(conv)
    twin: nn.Conv2d = cls.__new__(cls)
    nn.Module.__init__(twin)
    twin.__dict__.update(notes(conv))
    twin.training = module.training  # not .train(): a subclass may override it
    return twin


def move_state(source: nn.Module, target: nn.Module, names: tuple[str, ...]) -> None:
    """Hand the named parameters, their parametrisations, and all hooks of one module to another.

    The very tensors are handed over: what was shared stays shared, and `requires_grad`, dtype,
    device and memory format stay as they were.
    """
    for name in names:
        if name in source._parameters:
            target.register_parameter(name, source._parameters[name])
    if parametrize.is_parametrized(source):
        parametrizations = source.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        for name in parametrizations:
            # An identity on a placeholder gives the target its property; then the real
            # parametrisations take its place. Registering those would run them, and
            # spectral_norm changes its buffers whenever it runs.
            target.register_parameter(name, nn.Parameter(torch.empty(0)))
            parametrize.register_parametrization(target, name, nn.Identity(), unsafe=True)
        target.parametrizations = parametrizations
    for name, value in source.__dict__.items():
        if (
            name.endswith("_hooks")
            or name.startswith("_forward_")
            or name == "_is_full_backward_hook"
        ):
            hooks = copy(value)  # hooks added later are the target's alone
            target.__dict__[name] = hooks
            if name.startswith("_load_state_dict"):
                for key, hook in hooks.items():
                    if getattr(hook, "with_module", False):  # it holds its module weakly
                        hooks[key] = copy(hook)
                        hooks[key].module = weakref.ref(target)


def standardized(weight: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    """Weight standardisation: (W - mean) / √(var + ε), over each output channel, times `scale`.

    Qiao et al. 2019 (arXiv 1903.10520) eq. 3; scaled: Brock et al. 2021 (arXiv 2101.08692) eq. 5.

    Args:
        weight: (out_channels, in_channels / groups, Kh, Kw).
        scale: (out_channels,), or None for 1.
        eps: ε.
    """
    # As a batch norm, to be equal to timm's layers to the bit.
    rows = weight.reshape(1, weight.shape[0], -1)
    normed = nn.functional.batch_norm(
        rows, None, None, weight=scale, training=True, momentum=0.0, eps=eps
    )
    return normed.reshape_as(weight)
