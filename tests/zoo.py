"""The zoo's check: recast every wide convolution of a network and compare every layer.

`alive` counts the recast kernels that the output depends on, and `flipped` shows that one wrong
kernel is seen.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tcnn
from zoo_networks import build, shake, wide


@dataclass(frozen=True)
class Row:
    """What was found on one network."""

    source: str
    family: str
    model: str
    image: str
    megaparameters: float
    convolutions: int
    wide: int
    """Convolutions (nn.Conv2d and subclasses) with kernel area > 1."""
    other: int
    """Calls of convolutions with kernel area > 1 that no nn.Conv2d made; they stay as they are."""
    recast: int = 0
    alive: int = 0
    """Recast kernels that the output depends on, by its gradient."""
    refused: dict[str, int] = field(default_factory=dict)
    """Reasons and how many convolutions with kernel area > 1 they keep."""
    layers: int = 0
    """Modules whose outputs were compared."""
    error: float = 0.0
    """Largest |difference| over every layer and the output; 0 is equality to the bit."""
    learned: float | None = None
    """Largest relative |difference| of a layer with learned positions at their default α."""
    flip: float | None = None
    """Relative change of the output when one recast kernel is flipped."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# Comparing


def tensors(output: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for item in output for tensor in tensors(item)]
    return []


Record = dict[str, list[Tensor]]


@contextlib.contextmanager
def recorded(network: nn.Module) -> Iterator[Record]:
    """The outputs of every named module, in the order of the calls."""
    record: Record = defaultdict(list)

    def keep(name: str) -> Callable[..., None]:
        return lambda _m, _a, output: record[name].extend(
            t.detach().clone() for t in tensors(output)
        )

    handles = [m.register_forward_hook(keep(name)) for name, m in network.named_modules() if name]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


# A detector's heads: what comes after them picks a few boxes and drops the rest.
HEADS = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")


def run(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The tensors of the output, and of the heads' outputs."""
    ends: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _m, _a, output: ends.extend(tensors(output)))
        for name, module in network.named_modules()
        if name in HEADS
    ]
    torch.manual_seed(0)  # a few networks draw numbers in eval mode
    output = tensors(network(images))
    for handle in handles:
        handle.remove()
    return [*output, *ends]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest |difference|; infinite where shapes or numbers of tensors differ, or one is NaN."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if not torch.equal(a, b)]
    largest = [(a.double() - b.double()).abs().max().item() for a, b in pairs]
    return float("inf") if any(map(math.isnan, largest)) else max(largest, default=0.0)


def size_of(output: list[Tensor]) -> float:
    return max((t.double().abs().max().item() for t in output if t.numel()), default=0.0)


def alive(network: nn.Module, images: Tensor, names: list[str]) -> list[str]:
    """The convolutions whose kernel has a gradient in the output."""
    kernels = [network.get_submodule(name).weight for name in names]
    for kernel in kernels:
        kernel.requires_grad_(True)
    generator = torch.Generator().manual_seed(1)
    ends = [t for t in run(network, images) if t.requires_grad]
    total = sum((t * torch.randn(t.shape, generator=generator)).sum() for t in ends)
    grads = torch.autograd.grad(total, kernels, allow_unused=True)
    return [
        name for name, g in zip(names, grads, strict=True) if g is not None and g.abs().max() > 0
    ]


def flipped(hybrid: nn.Module, images: Tensor, name: str) -> list[Tensor]:
    """The output with one recast kernel flipped in space, or negated where that changes nothing."""
    layer = hybrid.get_submodule(name)
    before = layer.weight.detach()
    turned = before.flip(2, 3)
    with torch.no_grad():
        layer.weight.copy_(-before if torch.equal(turned, before) else turned)
        return run(hybrid, images)


class CountConvolutions(TorchDispatchMode):
    """Counts every two-dimensional convolution with kernel area > 1, whoever calls it."""

    calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            kernel, transposed = args[1].shape[2:], args[6]
            self.calls += len(kernel) == 2 and kernel.numel() > 1 and not transposed
        return func(*args, **(kwargs or {}))


def other_convolutions(network: nn.Module, images: Tensor) -> int:
    """How many convolutions a run calls beside those of nn.Conv2d modules."""
    with torch.no_grad(), recorded(network) as record, CountConvolutions() as counter:
        run(network, images)
    return counter.calls - sum(len(record[name]) for name in wide(network))


def examine(source: str, family: str, name: str) -> Row:
    """Recast every convolution with a kernel wider than 1×1 and compare everything."""
    torch.manual_seed(0)
    network, size = build(source, name)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, *size, generator=generator)
    shake(network, images)
    found = wide(network)
    about = {
        "source": source,
        "family": family,
        "model": name,
        "image": f"{size[0]}×{size[1]}",
        "megaparameters": sum(p.numel() for p in network.parameters()) / 1e6,
        "convolutions": sum(isinstance(m, nn.Conv2d) for m in network.modules()),
        "wide": len(found),
        "other": other_convolutions(network, images),
    }
    return compare(network, images, about) if found else Row(**about)


def compare(network: nn.Module, images: Tensor, about: dict[str, Any]) -> Row:
    """Plan, recast and check one network."""
    input_size = tuple(images.shape[1:])
    found = wide(network)
    plan = tcnn.plan(network, lambda name, conv: name in found, input_size=input_size)
    rows = {row.name: row for row in plan.rows if row.name in found}
    taken = [name for name, row in rows.items() if row.status == "recast"]
    refused: dict[str, int] = defaultdict(int)
    for row in rows.values():
        if row.status != "recast":
            assert row.reason, f"{row.name} is {row.status} without a reason"
            refused[row.reason] += 1
    shared = {id(conv) for name, conv in found.items() if name in rows}
    unlisted = [name for name, conv in found.items() if id(conv) not in shared]
    assert not unlisted, f"convolutions that the plan does not mention: {unlisted}"
    if not taken:
        return Row(**about, refused=dict(refused))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    hybrid = tcnn.recast(network, lambda name, conv: name in taken, input_size=input_size)
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items()), (
        "network changed"
    )
    for name, module in hybrid.named_modules():
        if name in found and id(found[name]) in {id(found[n]) for n in taken}:
            assert isinstance(module, tcnn.GPSA2d), f"{name} was to be recast"
    assert not hybrid.training

    with torch.no_grad(), recorded(network) as theirs:
        expected = run(network, images)
    with torch.no_grad(), recorded(hybrid) as ours:
        output = run(hybrid, images)
    assert size_of(expected) > 0, "the output is empty or zero: nothing to compare"
    assert all(t.isfinite().all() for t in expected if t.is_floating_point()), "not finite"
    assert theirs.keys() <= ours.keys(), f"not called: {sorted(theirs.keys() - ours.keys())}"
    errors = {name: difference(ours[name], theirs[name]) for name in theirs}
    worst = max(errors, key=lambda name: errors[name])
    error = max(errors[worst], difference(output, expected))
    assert error == 0, f"first different layer {next(n for n in errors if errors[n])}: {error}"

    # A kernel on a grid that it can be seen on: of the middle of those on more than one pixel.
    seen = [n for n in taken if min(theirs[n][0].shape[-2:]) > 1] or taken
    flip = difference(flipped(hybrid, images, seen[len(seen) // 2]), expected) / size_of(expected)
    return Row(
        **about,
        recast=len(taken),
        alive=len(alive(network, images, taken)),
        refused=dict(refused),
        layers=len(errors),
        error=error,
        learned=learned(network, images, taken, theirs),
        flip=flip,
    )


def learned(network: nn.Module, images: Tensor, taken: list[str], theirs: Record) -> float:
    """The same with learned positions: another way through the layer, exact but for rounding.

    Of a detector up to the heads, for the choice of boxes is not continuous.
    """
    hybrid = tcnn.recast(
        network,
        lambda name, conv: name in taken,
        config=tcnn.GPSAConfig(positions="learned"),
        input_size=tuple(images.shape[1:]),
    )
    with torch.no_grad(), recorded(hybrid) as ours:
        run(hybrid, images)
    detector = hasattr(network, "roi_heads") or hasattr(network, "anchor_generator")
    names = [n for n in theirs if size_of(theirs[n]) > 0 and (not detector or "backbone" in n)]
    return max(difference(ours[name], theirs[name]) / size_of(theirs[name]) for name in names)
