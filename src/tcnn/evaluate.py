"""A network and labelled images to a result: top-1 and loss, clean and under corruption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcnn import metrics
from tcnn.corruptions import CORRUPTIONS, SEVERITIES, corrupt_all
from tcnn.data import ImageSet, loader
from tcnn.running import eval_mode
from tcnn.tables import text_table
from tcnn.view import View


@dataclass(frozen=True)
class EvaluationResult:
    """How a network did on one set of images.

    Attributes:
        images: number of images.
        top1: share of them whose highest score is the label's.
        loss: mean cross-entropy.
        correct: which of them, (N,) of bool, in their order.
    """

    images: int
    top1: float
    loss: float
    correct: Tensor = field(repr=False, compare=False)

    @property
    def top1_error(self) -> float:
        """Standard error of `top1` for a sample of so many images."""
        return metrics.standard_error(self.correct).item()

    def table(self) -> str:
        """One line of figures."""
        return text_table(
            ("images", "top-1 %", "± %", "loss"),
            [(self.images, f"{self.top1:.2%}", f"{self.top1_error:.2%}", self.loss)],
        )

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "images": self.images,
            "top1": self.top1,
            "top1_standard_error": self.top1_error,
            "loss": self.loss,
        }


@dataclass(frozen=True)
class CorruptionResult:
    """How a network did on one corruption of a set at one severity."""

    corruption: str
    severity: int
    result: EvaluationResult


@dataclass(frozen=True)
class RobustnessResult:
    """How a network did on a set of images, clean and under every corruption and severity.

    Attributes:
        clean: the images as they are.
        corrupted: one entry for each corruption and severity, grouped by corruption.
        source: "generated": the corrupted images were made here, they are no published files.
    """

    clean: EvaluationResult
    corrupted: tuple[CorruptionResult, ...]
    source: str = "generated"

    @property
    def corruptions(self) -> tuple[str, ...]:
        """The corruptions, in order."""
        return tuple(dict.fromkeys(row.corruption for row in self.corrupted))

    @property
    def errors(self) -> Tensor:
        """Error rates, (corruptions, severities), as `metrics.corruption_error` takes them."""
        rates = torch.tensor([1 - row.result.top1 for row in self.corrupted], dtype=torch.float64)
        return rates.view(len(self.corruptions), -1)

    @property
    def top1(self) -> float:
        """Mean top-1 over all corruptions and severities."""
        return self.scores().mean().item()

    def scores(self, corruption: str | None = None) -> Tensor:
        """Share of the corrupted versions of each image that were classified rightly, (N,).

        The versions of one image are not independent of each other, so it is over images, with
        these scores, that standard errors are taken.

        Args:
            corruption: its versions alone; None takes all.
        """
        rows = [row for row in self.corrupted if corruption in (None, row.corruption)]
        return torch.stack([row.result.correct for row in rows]).double().mean(dim=0)

    def by_corruption(self) -> dict[str, float]:
        """Top-1 of each corruption, the mean over its severities."""
        return {name: self.scores(name).mean().item() for name in self.corruptions}

    def table(self) -> str:
        """Top-1 in per cent by corruption and severity."""
        severities = list(dict.fromkeys(row.severity for row in self.corrupted))
        rows = [
            (name, *(round(100 - 100 * e, 1) for e in errors), round(100 * mean, 1))
            for (name, mean), errors in zip(
                self.by_corruption().items(), self.errors.tolist(), strict=True
            )
        ]
        headers = ("top-1 %", *(f"severity {s}" for s in severities), "mean")
        return "\n".join(
            [
                text_table(headers, rows),
                "",
                f"top-1 on {self.clean.images} images: clean {self.clean.top1:.2%}, "
                f"{self.source} corruptions {self.top1:.2%}.",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "clean": self.clean.to_json(),
            "corruptions": self.source,
            "corrupted_top1": self.top1,
            "corrupted_top1_standard_error": metrics.standard_error(self.scores()).item(),
            "by_corruption": self.by_corruption(),
            "corrupted": [
                {"corruption": r.corruption, "severity": r.severity, **r.result.to_json()}
                for r in self.corrupted
            ],
        }


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> EvaluationResult:
    """Run a network in eval mode on labelled images.

    Args:
        model: maps (B, C, H, W) to class scores (B, K); left in the mode it came in.
        batches: images and labels, such as a `DataLoader`, or `[(images, labels)]`.

    Raises:
        ValueError: there is no image.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    hits, losses = [], []
    with eval_mode(model), torch.no_grad():
        for images, labels in batches:
            logits = model(images.to(device)).float().cpu()
            hits.append(metrics.correct(logits, labels))
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
    if not sum(map(len, hits)):
        raise ValueError("Expected images to evaluate on, but `batches` holds none.")
    correct = torch.cat(hits)
    return EvaluationResult(
        images=len(correct),
        top1=correct.double().mean().item(),
        loss=torch.cat(losses).double().mean().item(),
        correct=correct,
    )


def evaluate_corrupted(
    model: nn.Module,
    images: ImageSet,
    seed: int,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 256,
    view: View | None = None,
    progress: Callable[[str], None] | None = None,
) -> RobustnessResult:
    """Run a network on images as they are and under every corruption and severity.

    Args:
        model: as in `evaluate`.
        images: the images; corrupted as uint8, before anything else is done to them.
        seed: fixes the corruptions' randomness: two networks see the same corrupted images.
        corruptions, severities: which of them.
        batch_size: images in a batch.
        view: how the network takes them; None is pixels in [0, 1].
        progress: called with one line for each corruption.
    """
    clean = evaluate(model, loader(images, batch_size, view))
    rows = []
    for name in corruptions:
        for severity in severities:
            pixels = corrupt_all(images.images, name, severity, seed)
            corrupted = ImageSet(pixels, images.labels, images.classes)
            result = evaluate(model, loader(corrupted, batch_size, view))
            rows.append(CorruptionResult(name, severity, result))
        if progress:
            mean = sum(row.result.top1 for row in rows[-len(severities) :]) / len(severities)
            progress(f"{name}: top-1 {mean:.1%}")
    return RobustnessResult(clean, tuple(rows))
