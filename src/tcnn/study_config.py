"""`ArmConfig` and `MeasureConfig`: what a study trains, and what it measures.

In a file without PyTorch, so that the command line's help need not load it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tcnn.errors import check_option


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One arm of a study: where it starts, and in what it differs from the others.

    Its recipe is `train` from a pretrained CNN, and `pretrain` from scratch or from a CNN that is
    trained in part. With P epochs of pretraining and F of fine-tuning the whole budget is P + F.

    Raises:
        ValueError: an option is outside its range; the message names it.
    """

    hybrid: bool = False
    """Recast the network before it is trained."""

    start: Literal["pretrained", "scratch"] | float = "pretrained"
    """pretrained: the pretrained CNN, for F epochs; scratch: random weights, for the whole budget;
    a share s between 0 and 1: the CNN of the arm that trains it from scratch, after s of the whole
    budget, for the rest of it."""

    epochs: int | None = None
    """Epochs of this arm; null is what `start` gives it, 0 tests the network as it is."""

    train: dict[str, Any] = field(default_factory=dict)
    """Options of the recipe that differ."""

    gpsa: dict[str, Any] = field(default_factory=dict)
    """Options of the recast layers that differ."""

    targets: str | list[str] | None = None
    """What to recast; null is the study's choice."""

    def __post_init__(self) -> None:
        known = self.start in ("pretrained", "scratch") or (
            isinstance(self.start, float) and 0 < self.start < 1
        )
        check_option("start", self.start, known, "pretrained, scratch, or a share between 0 and 1")
        counts = self.epochs is None or self.epochs >= 0
        check_option("epochs", self.epochs, counts, "0 or more, or null")
        own = not {"epochs", "seed"} & set(self.train)
        check_option("train", self.train, own, "without epochs (an option of the arm) and seed")
        for name in ("gpsa", "targets"):
            value = getattr(self, name)
            check_option(name, value, self.hybrid or not value, "left out where hybrid is false")


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What every arm is tested on, beside the clean validation images.

    Raises:
        ValueError: an option is outside its range; the message names it.
    """

    corruptions: list[str] | None = None
    """Corruptions, made here; null is the 15 of the mCE."""

    severities: list[int] = field(default_factory=lambda: [1, 3, 5])
    """Their severities, from 1 to 5; none measures no corruption."""

    images: int | None = 2000
    """Validation images to corrupt and attack, evenly over the classes; null takes all."""

    fgsm: list[float] = field(default_factory=lambda: [1.0])
    """Sizes ε of FGSM attacks in grey levels (of 255)."""

    batch_size: int = 256
    """Images in a batch."""

    def __post_init__(self) -> None:
        known = all(severity in (1, 2, 3, 4, 5) for severity in self.severities)
        check_option("severities", self.severities, known, "whole numbers from 1 to 5")
        sizes = all(0 <= size <= 255 for size in self.fgsm)
        check_option("fgsm", self.fgsm, sizes, "grey levels from 0 to 255")
        counts = self.images is None or self.images >= 2
        check_option("images", self.images, counts, "2 or more, or null")
        check_option("batch_size", self.batch_size, self.batch_size >= 1, "1 or more")
