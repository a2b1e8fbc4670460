"""A network's answers to labelled images, and the figures that follow from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcnn import metrics
from tcnn.running import eval_mode
from tcnn.tables import csv_text, text_table

_TOP = 5


@dataclass(frozen=True)
class EvaluationResult:
    """What a network answered to each image of a set; every figure follows from these.

    Attributes:
        index: places of the images in their set, (N,), rising.
        labels: their classes, (N,).
        predicted: the output with the highest score, (N,).
        confidence: its softmax probability, (N,).
        losses: cross-entropy, (N,); NaN for an image with several right answers.
        correct: whether the prediction is right, (N,) of bool.
        in_top5: whether a right class is among the five highest scores, (N,) of bool.
    """

    index: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    predicted: Tensor = field(repr=False)
    confidence: Tensor = field(repr=False)
    losses: Tensor = field(repr=False)
    correct: Tensor = field(repr=False)
    in_top5: Tensor = field(repr=False)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def top1(self) -> float:
        """Share of the images whose highest score is a right class's."""
        return self.correct.double().mean().item()

    @property
    def top1_error(self) -> float:
        """Standard error of `top1` for a sample of so many images."""
        return metrics.standard_error(self.correct).item()

    @property
    def top5(self) -> float:
        """Share of the images with a right class among the five highest scores."""
        return self.in_top5.double().mean().item()

    @property
    def loss(self) -> float:
        """Mean cross-entropy; NaN where images have several right answers."""
        return self.losses.double().mean().item()

    @property
    def ece(self) -> float:
        """Expected calibration error over 15 bins."""
        return metrics.expected_calibration_error(self.confidence, self.correct).item()

    def table(self) -> str:
        """One line of figures."""
        return text_table(
            ("images", "top-1 %", "± %", "top-5 %", "loss", "calibration error %"),
            [
                (
                    self.images,
                    f"{self.top1:.2%}",
                    f"{self.top1_error:.2%}",
                    f"{self.top5:.2%}",
                    self.loss,
                    f"{self.ece:.2%}",
                )
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "images": self.images,
            "top1": self.top1,
            "top1_standard_error": finite(self.top1_error),
            "top5": self.top5,
            "loss": finite(self.loss),
            "expected_calibration_error": self.ece,
        }

    def by_class(self, classes: Sequence[str]) -> list[tuple[str, int, float, float, float]]:
        """Name, images, top-1, top-5 and mean confidence of each class that has images."""
        rows = []
        for label in sorted(set(self.labels.tolist())):
            own = self.labels == label
            means = (
                values[own].double().mean().item()
                for values in (self.correct, self.in_top5, self.confidence)
            )
            top1, top5, confidence = means
            rows.append((classes[label], int(own.sum()), top1, top5, confidence))
        return rows

    def confusions(self, classes: Sequence[str]) -> list[tuple[str, str, int, float]]:
        """Class, the other class that it was taken for, how often, and in which share of its
        images; the most frequent first."""
        wrong = ~self.correct
        pairs = Counter(
            zip(self.labels[wrong].tolist(), self.predicted[wrong].tolist(), strict=True)
        )
        totals = Counter(self.labels.tolist())
        return [
            (classes[label], classes[other], count, count / totals[label])
            for (label, other), count in sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
        ]

    def by_class_csv(self, classes: Sequence[str]) -> str:
        """`by_class` as CSV."""
        return csv_text(("class", "images", "top1", "top5", "confidence"), self.by_class(classes))

    def confusions_csv(self, classes: Sequence[str]) -> str:
        """`confusions` as CSV."""
        return csv_text(("class", "taken_for", "images", "share"), self.confusions(classes))


def finite(number: float) -> float | None:
    """The number, or None for infinity and NaN, which JSON has no words for."""
    return number if math.isfinite(number) else None


def answers(
    logits: Tensor,
    index: Tensor,
    labels: Tensor,
    accepted: Sequence[Collection[int]] | None = None,
) -> EvaluationResult:
    """What a batch of scores answers.

    Args:
        logits: (B, K).
        index, labels: of the images, (B,).
        accepted: for each image all the right classes; None is the label alone.
    """
    logits = logits.float().cpu()
    highest = logits.topk(min(_TOP, logits.shape[1]), dim=1).indices
    predicted = logits.argmax(dim=1)
    if accepted is None:
        losses = F.cross_entropy(logits, labels, reduction="none")
        right = torch.zeros_like(logits, dtype=torch.bool)
        right[torch.arange(len(labels)), labels] = True
    else:
        losses = torch.full((len(labels),), float("nan"))
        right = torch.zeros_like(logits, dtype=torch.bool)
        for row, several in zip(right, accepted, strict=True):
            row[list(several)] = True
    return EvaluationResult(
        index=index,
        labels=labels,
        predicted=predicted,
        confidence=logits.softmax(dim=1).amax(dim=1),
        losses=losses,
        correct=right.gather(1, predicted[:, None])[:, 0],
        in_top5=right.gather(1, highest).any(dim=1),
    )


def joined(parts: Sequence[EvaluationResult]) -> EvaluationResult:
    """Several batches as one result, in the order of the images' places."""
    names = EvaluationResult.__dataclass_fields__
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    order = columns["index"].argsort()
    return EvaluationResult(**{name: column[order] for name, column in columns.items()})


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> EvaluationResult:
    """Run a network in eval mode on labelled images.

    Args:
        model: maps (B, C, H, W) to class scores (B, K); left in the mode it came in.
        batches: images and labels, such as a `DataLoader`, or `[(images, labels)]`.

    Raises:
        ValueError: there is no image.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    parts, seen = [], 0
    with eval_mode(model), torch.no_grad():
        for images, labels in batches:
            index = torch.arange(seen, seen + len(labels))
            parts.append(answers(model(images.to(device)), index, labels))
            seen += len(labels)
    if not seen:
        raise ValueError("Expected images to evaluate on, but `batches` holds none.")
    return joined(parts)
