"""Two networks, one batch of images: do they compute the same function?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tcnn.layers import GPSA2d
from tcnn.tables import text_table

_TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


@dataclass(frozen=True)
class LayerError:
    """Difference of one module's outputs, or of the networks' own ("output").

    Attributes:
        max_abs_error: max |a - b|; infinite where outputs differ in shape, or a module is called in
            one network alone.
        max_rel_error: max |a - b| / max |a|.
    """

    name: str
    max_abs_error: float
    max_rel_error: float


@dataclass(frozen=True)
class EquivalenceReport:
    """Whether two networks compute the same function, as measured on one batch.

    Attributes:
        layers: errors of the recast layers, in the order in which the first network calls them.
        max_abs_error, max_rel_error: errors of the networks' outputs.
        top1_agreement: share of images (of pixels, for dense outputs) with the same arg max; None
            where the outputs are not class scores.
        tolerance: bound on every relative error.
        dtype: arithmetic that both networks ran in.
        images: size of the batch.
    """

    layers: tuple[LayerError, ...]
    max_abs_error: float
    max_rel_error: float
    top1_agreement: float | None
    tolerance: float
    dtype: str
    images: int

    @property
    def ok(self) -> bool:
        """No relative error is above the tolerance, and all arg maxes agree."""
        errors = (self.max_rel_error, *(layer.max_rel_error for layer in self.layers))
        # Written so that a NaN fails.
        return all(error <= self.tolerance for error in errors) and self.top1_agreement in (
            None,
            1.0,
        )

    def table(self) -> str:
        """Errors by layer, and the verdict."""
        rows = [(e.name, e.max_abs_error, e.max_rel_error) for e in self.layers]
        rows.append(("network output", self.max_abs_error, self.max_rel_error))
        agreement = (
            "" if self.top1_agreement is None else f"; top-1 agreement {self.top1_agreement:.2%}"
        )
        verdict = "EQUIVALENT" if self.ok else "NOT EQUIVALENT"
        return "\n".join(
            [
                text_table(("layer", "max abs error", "max rel error"), rows),
                "",
                f"{verdict} on {self.images} images in {self.dtype}: relative error at most "
                f"{max((self.max_rel_error, *(e.max_rel_error for e in self.layers))):.2g} "
                f"(tolerance {self.tolerance:.0e}){agreement}.",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**asdict(self), "ok": self.ok}


def check_equivalence(
    cnn: nn.Module,
    hybrid: nn.Module,
    images: Tensor,
    *,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
) -> EquivalenceReport:
    """Run two networks on the same images in eval mode and measure how far apart they are.

    The relative error of a layer or output is max |a - b| / max |a|, a being the first network's.

    Args:
        cnn: the network to hold the other against.
        hybrid: the other; wherever it holds a `GPSA2d`, or `cnn` does, that layer is compared too.
        images: batch (B, C, H, W), moved to the networks' device.
        dtype: run copies of both in this arithmetic; None runs them in their own.
        tolerance: bound on every relative error; None is 1e-12 in float64, 1e-5 in float32, 1e-2 in
            float16, 5e-2 in bfloat16.

    Raises:
        ValueError: `images` is not a non-empty batch.
    """
    if images.dim() != 4 or not images.numel():
        raise ValueError(
            f"Expected `images` as a batch (B, C, H, W), but got {tuple(images.shape)}."
        )
    if dtype is not None:
        cnn, hybrid = (copy.deepcopy(model).to(dtype) for model in (cnn, hybrid))
    names = {
        name
        for model in (cnn, hybrid)
        for name, module in model.named_modules()
        if isinstance(module, GPSA2d) and name
    }
    expected, ours = _run(cnn, images, names)
    got, theirs = _run(hybrid, images, names)
    layers = tuple(
        LayerError(name, *_difference(ours.get(name), theirs.get(name)))
        for name in dict.fromkeys([*ours, *theirs])
    )
    scores = [next(iter(_tensors(output)), None) for output in (expected, got)]
    used = next((p.dtype for p in cnn.parameters() if p.is_floating_point()), images.dtype)
    return EquivalenceReport(
        layers,
        *_difference(list(_tensors(expected)), list(_tensors(got))),
        top1_agreement=_agreement(*scores),
        tolerance=_TOLERANCES.get(used, 1e-5) if tolerance is None else tolerance,
        dtype=str(used).removeprefix("torch."),
        images=len(images),
    )


def _run(model: nn.Module, images: Tensor, names: set[str]) -> tuple[Any, dict[str, list[Tensor]]]:
    """Output of a network, and of its named modules by call, in the order of the calls."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), images)
    outputs: dict[str, list[Tensor]] = {}
    modules = list(model.modules())
    modes = [module.training for module in modules]
    named = {name: m for name, m in model.named_modules() if name in names}

    def keep(name: str) -> Any:
        return lambda _module, _args, output: outputs.setdefault(name, []).extend(
            tensor.clone()
            for tensor in _tensors(output)  # a later module may work in place
        )

    handles = [module.register_forward_hook(keep(name)) for name, module in named.items()]
    try:
        for module in modules:
            module.training = False
        # A network that draws numbers in eval mode draws the same ones in both runs.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            result = model(images.to(parameter.device, parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    return result, outputs


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of a nested output, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)


def _difference(a: list[Tensor] | None, b: list[Tensor] | None) -> tuple[float, float]:
    """max |a - b| and max |a - b| / max |a| over lists of tensors."""
    if not a or not b or [t.shape for t in a] != [t.shape for t in b]:
        return float("inf"), float("inf")
    errors = [
        (float((x.double() - y.double()).abs().max()), float(x.double().abs().max()))
        for x, y in zip((t.cpu() for t in a), (t.cpu() for t in b), strict=True)
        if x.numel()
    ]
    # Not max(): a NaN must come through.
    absolute = torch.tensor([e for e, _ in errors] or [0.0], dtype=torch.float64).max().item()
    relative = [e / size if size else (0.0 if e == 0 else float("inf")) for e, size in errors]
    return absolute, torch.tensor(relative or [0.0], dtype=torch.float64).max().item()


def _agreement(a: Tensor | None, b: Tensor | None) -> float | None:
    if a is None or b is None or a.dim() not in (2, 4) or a.shape != b.shape or not a.numel():
        return None
    return (a.argmax(dim=1) == b.argmax(dim=1)).double().mean().item()
