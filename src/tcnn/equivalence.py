"""Two networks, one batch of images: do they compute the same function?"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tcnn.errors import TCNNError
from tcnn.layers import gpsa_layers
from tcnn.running import undisturbed
from tcnn.tables import text_table

_TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


_Leaves = list[tuple[str, Any]]


class EquivalenceError(TCNNError):
    """Two networks cannot be compared on a batch; the message says why."""


@dataclass(frozen=True)
class LayerError:
    """Difference of one module's outputs, or of the networks' own ("output").

    Attributes:
        max_abs_error: max |a - b|; infinite where outputs differ in shape or structure, or a module
            is called in one network alone.
        max_rel_error: the largest max |a - b| / max |a| of any tensor and image.
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
    def errors(self) -> tuple[float, float]:
        """Absolute and relative error of the networks' outputs."""
        return self.max_abs_error, self.max_rel_error

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


def random_images(size: tuple[int, int, int], count: int = 8) -> Tensor:
    """The same images of normal noise every time, (count, C, H, W), to compare networks on."""
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(0))


def check_equivalence(
    cnn: nn.Module,
    hybrid: nn.Module,
    images: Tensor,
    *,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
) -> EquivalenceReport:
    """Run two networks on the same images in eval mode and measure how far apart they are.

    The relative error of a tensor is max |a - b| / max |a|, a being the first network's, image by
    image, so that a large image does not hide a small one. Structure must be equal too.

    Args:
        cnn: the network to hold the other against.
        hybrid: the other; wherever it holds a `GPSA2d`, or `cnn` does, that layer is compared too.
        images: batch (B, C, H, W), moved to the networks' device.
        dtype: run copies of both in this arithmetic; None runs them in their own.
        tolerance: bound on every relative error; None is 1e-12 in float64, 1e-5 in float32, 1e-2 in
            float16, 5e-2 in bfloat16.

    Raises:
        EquivalenceError: `images` is not a non-empty batch, or a network does not run on it.
    """
    if images.dim() != 4 or not images.numel():
        raise EquivalenceError(
            f"Expected `images` as a batch (B, C, H, W), but got {tuple(images.shape)}."
        )
    if dtype is not None:
        cnn, hybrid = (copy.deepcopy(model).to(dtype) for model in (cnn, hybrid))
    names = {name for model in (cnn, hybrid) for name in gpsa_layers(model) if name}
    expected, ours = _run(cnn, images, names)
    got, theirs = _run(hybrid, images, names)
    try:
        layers = tuple(
            LayerError(name, *_difference(ours.get(name), theirs.get(name), len(images)))
            for name in dict.fromkeys([*ours, *theirs])
        )
        errors = _difference(expected, got, len(images))
    except RuntimeError as error:  # sparse, quantised and meta tensors cannot be subtracted
        raise EquivalenceError(
            f"Expected outputs that can be compared, but {type(cnn).__name__}'s: "
            f"{str(error).strip().partition(chr(10))[0][:200]}"
        ) from error
    scores = [next(iter(_tensors(output)), None) for output in (expected, got)]
    used = next((p.dtype for p in cnn.parameters() if p.is_floating_point()), images.dtype)
    return EquivalenceReport(
        layers,
        *errors,
        top1_agreement=_agreement(*scores),
        tolerance=_TOLERANCES.get(used, 1e-5) if tolerance is None else tolerance,
        dtype=str(used).removeprefix("torch."),
        images=len(images),
    )


def _run(model: nn.Module, images: Tensor, names: set[str]) -> tuple[_Leaves, dict[str, _Leaves]]:
    """Leaves of a network's output, and of its named modules' by call, in order of the calls."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), images)
    outputs: dict[str, _Leaves] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            leaves = outputs.setdefault(name, [])
            for path, value in _leaves(output, f"call {len(leaves)}"):
                # A later module may work in place.
                leaves.append((path, value.clone() if isinstance(value, Tensor) else value))

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        with undisturbed(model):
            result = model(images.to(parameter.device, parameter.dtype))
    except Exception as error:
        raise EquivalenceError(
            f"Expected {type(model).__name__} to run on images of "
            f"{'×'.join(map(str, images.shape[1:]))}, but it raised {type(error).__name__}: "
            f"{str(error).strip().partition(chr(10))[0]}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return list(_leaves(result)), outputs


def _leaves(
    output: Any, path: str = "", seen: dict[int, Any] | None = None
) -> Iterator[tuple[str, Any]]:
    """The tensors and other values of a nested output, each with its place.

    What holds others is opened once (`seen`): objects may refer to each other in circles.
    """
    seen = {} if seen is None else seen
    items: Iterable[tuple[Any, Any]]
    if isinstance(output, np.ndarray) and output.dtype.kind in "biufc":
        output = torch.from_numpy(output)
    if isinstance(output, Mapping):
        items = output.items()
    elif isinstance(output, list | tuple):
        items = enumerate(output)
    elif is_dataclass(output) and not isinstance(output, type):
        items = [(field.name, getattr(output, field.name)) for field in fields(output)]
    elif output is None or isinstance(output, Tensor | str | int | float | complex):
        yield path, output
        return
    elif isinstance(output, nn.Module | type):
        items = ()
    else:  # an object of somebody's own; of one without attributes its class is all there is
        items = list(getattr(output, "__dict__", {}).items())
    yield path, type(output)
    if id(output) not in seen:
        seen[id(output)] = output  # held, so that no other object gets its id
        for key, value in items:
            yield from _leaves(value, f"{path}/{key}", seen)


def _tensors(leaves: _Leaves) -> list[Tensor]:
    return [value for _, value in leaves if isinstance(value, Tensor)]


def _difference(a: _Leaves | None, b: _Leaves | None, images: int) -> tuple[float, float]:
    """max |a - b|, and max |a - b| / max |a| by tensor and image; infinite for a mismatch."""
    mismatch = (float("inf"), float("inf"))
    if not a or not b or [path for path, _ in a] != [path for path, _ in b]:
        return mismatch
    absolute, relative = [0.0], [0.0]
    for (_, x), (_, y) in zip(a, b, strict=True):
        if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape:
            for difference, size in _by_image(x, y, images):
                absolute.append(difference)
                zero = 0.0 if difference == 0 else float("inf")
                relative.append(difference / size if size else zero)
        elif isinstance(x, Tensor) or isinstance(y, Tensor) or (x != y and not x != x != y != y):
            return mismatch
    # Not max(): a NaN must come through.
    return tuple(torch.tensor(e, dtype=torch.float64).max().item() for e in (absolute, relative))  # type: ignore[return-value]


def _by_image(x: Tensor, y: Tensor, images: int) -> list[tuple[float, float]]:
    """max |x - y| and max |x| of each image, or of the whole where the first axis is not images."""
    if not x.numel():
        return []
    rows = images if x.dim() > 1 and len(x) == images else 1
    wide = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
    x, y = (tensor.detach().cpu().to(wide).reshape(rows, -1) for tensor in (x, y))
    # Equal infinities are equal, and so are two NaN, though their difference is not a number.
    same = (x == y) | (x.isnan() & y.isnan())
    differences = (x - y).abs().masked_fill(same, 0.0).amax(dim=1)
    sizes = x.abs().masked_fill(~x.isfinite(), 0.0).amax(dim=1)
    return list(zip(differences.tolist(), sizes.tolist(), strict=True))


def _agreement(a: Tensor | None, b: Tensor | None) -> float | None:
    """Share of images, or pixels, with the same arg max over axis 1, of class scores."""
    if a is None or b is None or a.dim() not in (2, 4) or a.shape != b.shape or not a.numel():
        return None
    if not (a.is_floating_point() and b.is_floating_point()):
        return None
    return (a.argmax(dim=1) == b.argmax(dim=1)).double().mean().item()
