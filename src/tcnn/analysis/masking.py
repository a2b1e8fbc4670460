"""Masking experiments: what a hybrid still classifies rightly without some of its attention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tcnn import metrics
from tcnn.layers import GPSA2d, gpsa_layers
from tcnn.running import eval_mode
from tcnn.tables import text_table

Kind = Literal["position only", "content only", "head ablated"]


@dataclass(frozen=True)
class Mask:
    """What is taken from a hybrid.

    Attributes:
        kind: "position only" sets gates to g = 1, "content only" to g = 0, "head ablated" lets a
            head's kernel slice W[:, :, a, b] contribute nothing.
        layer: where; None for all recast layers.
        tap: (a, b) of the head that is ablated; None for the other kinds.
    """

    kind: Kind
    layer: str | None = None
    tap: tuple[int, int] | None = None

    def __str__(self) -> str:
        where = "all layers" if self.layer is None else self.layer
        return f"{self.kind}, {where}" + (f" {self.tap}" if self.tap is not None else "")


@dataclass(frozen=True)
class MaskScore:
    """What a mask changed.

    Attributes:
        mask: what was taken away.
        top1: of the masked hybrid.
        change: its top-1 less that of the whole hybrid, on the same images.
        low, high: ends of the change's 95 % bootstrap interval over images.
    """

    mask: Mask
    top1: float
    change: float
    low: float
    high: float


@dataclass(frozen=True)
class MaskingResult:
    """A hybrid with one mask after another.

    Attributes:
        images: how many it was tested on.
        top1: of the whole hybrid.
        scores: of the masks, from the largest loss to the largest gain.
    """

    images: int
    top1: float
    scores: tuple[MaskScore, ...]

    def of(self, mask: Mask) -> MaskScore:
        """The score of a mask."""
        return next(score for score in self.scores if score.mask == mask)

    def table(self) -> str:
        """One row for each mask, the largest loss first, below that of the whole hybrid."""
        rows: list[tuple[object, ...]] = [("none", f"{100 * self.top1:.2f}", "", "")]
        for score in self.scores:
            interval = f"[{100 * score.low:+.2f}, {100 * score.high:+.2f}]"
            change = f"{100 * score.change:+.2f}"
            rows.append((str(score.mask), f"{100 * score.top1:.2f}", change, interval))
        return text_table(("masked", "top-1 %", "change in points", "95 %"), rows)

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {"images": self.images, "top1": self.top1, "scores": list(map(asdict, self.scores))}


def all_masks(model: nn.Module) -> tuple[Mask, ...]:
    """Position only and content only, in all layers and in each, and every head ablated."""
    layers = gpsa_layers(model)
    kinds: tuple[Kind, ...] = ("position only", "content only")
    places = [None, *layers] if len(layers) > 1 else [None]
    return (
        *(Mask(kind, place) for kind in kinds for place in places),
        *(
            Mask("head ablated", name, divmod(head, layer.geometry.kernel_size[1]))
            for name, layer in layers.items()
            for head in range(layer.heads)
        ),
    )


def masking(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    masks: Sequence[Mask] | None = None,
) -> MaskingResult:
    """Test a hybrid in eval mode, whole and with each mask, on the same images.

    Each batch is read once and shown to all, so that differences are paired whatever the order or
    the augmentation of the images. It costs one pass for each mask. No parameter is written to; the
    model is as it was however this ends.

    Args:
        model: maps (B, C, H, W) to class scores (B, K).
        batches: images and labels, such as a `DataLoader`.
        masks: what to take away; None is `all_masks`.

    Raises:
        ValueError: the network holds no `GPSA2d`, a mask names a layer or head that is not there,
            or there is no image.

    Source: position only and content only after d'Ascoli et al. 2021, "ConViT" (arXiv 2103.10697);
        the interval is `metrics.paired_bootstrap`.
    """
    layers = gpsa_layers(model)
    if not layers:
        raise ValueError(
            f"Expected a hybrid, but {type(model).__name__} holds no GPSA2d: recast it first."
        )
    chosen = all_masks(model) if masks is None else tuple(masks)
    for mask in chosen:
        _check(mask, layers)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    whole: list[Tensor] = []
    rights: list[list[Tensor]] = [[] for _ in chosen]
    with eval_mode(model), torch.no_grad():
        for images, labels in batches:
            x = images.to(device)
            whole.append(metrics.correct(model(x).cpu(), labels.cpu()))
            for mask, right in zip(chosen, rights, strict=True):
                with masked(model, mask):
                    right.append(metrics.correct(model(x).cpu(), labels.cpu()))
    if not whole or not sum(map(len, whole)):
        raise ValueError("Expected images to test on, but `batches` holds none.")
    reference = torch.cat(whole).double()
    scores = []
    for mask, right in zip(chosen, rights, strict=True):
        correct = torch.cat(right).double()
        difference = correct - reference
        low, high = metrics.paired_bootstrap(difference)
        change = difference.mean().item()
        scores.append(MaskScore(mask, correct.mean().item(), change, low, high))
    scores.sort(key=lambda score: score.change)
    return MaskingResult(len(reference), reference.mean().item(), tuple(scores))


@contextmanager
def masked(model: nn.Module, mask: Mask) -> Iterator[None]:
    """The hybrid without what the mask takes, inside the block; as it was after, however it ends.

    Raises:
        ValueError: the mask names a layer or head that is not there.
    """
    layers = gpsa_layers(model)
    _check(mask, layers)
    chosen = layers.values() if mask.layer is None else [layers[mask.layer]]
    with ExitStack() as undo:
        for layer in chosen:
            # Methods of this one layer: parameters may be tied to those of others.
            if mask.tap is not None:
                undo.enter_context(_instead(layer, "_kernel", _Without(layer, mask.tap)))
            else:
                gate = 1.0 if mask.kind == "position only" else 0.0
                undo.enter_context(_instead(layer, "_gate_and_share", _Constant(layer, gate)))
        yield


@contextmanager
def _instead(layer: GPSA2d, method: str, function: Any) -> Iterator[None]:
    before = vars(layer).get(method)
    vars(layer)[method] = function
    try:
        yield
    finally:
        if before is None:
            del vars(layer)[method]
        else:
            vars(layer)[method] = before


class _Constant:
    """(g, 1 - g) of a layer whose heads all have one gate."""

    def __init__(self, layer: GPSA2d, gate: float) -> None:
        self.layer, self.value = layer, gate

    def __call__(self) -> tuple[Tensor, Tensor]:
        gate = torch.full_like(self.layer.gating_param, self.value)
        return gate, 1 - gate


class _Without:
    """The kernel of a layer with one tap at 0."""

    def __init__(self, layer: GPSA2d, tap: tuple[int, int]) -> None:
        self.kernel, self.tap = layer._kernel, tap

    def __call__(self) -> Tensor:
        kernel = self.kernel().clone()
        kernel[:, :, self.tap[0], self.tap[1]] = 0
        return kernel


def _check(mask: Mask, layers: dict[str, GPSA2d]) -> None:
    if mask.layer is not None and mask.layer not in layers:
        raise ValueError(
            f"Expected a mask of a recast layer, one of {list(layers)}, but got {mask.layer!r}."
        )
    if mask.kind == "head ablated":
        if mask.layer is None or mask.tap is None:
            raise ValueError(f"Expected the layer and the tap of a head to ablate, but got {mask}.")
        rows, columns = layers[mask.layer].geometry.kernel_size
        if not (0 <= mask.tap[0] < rows and 0 <= mask.tap[1] < columns):
            raise ValueError(
                f"Expected a tap of {mask.layer}'s {rows}×{columns} kernel, but got {mask.tap}."
            )
    elif mask.tap is not None:
        raise ValueError(f"Expected no tap with {mask.kind!r}, but got {mask.tap}.")
