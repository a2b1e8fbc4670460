"""`DataConfig`: which images, how they are augmented, and who reads them.

In a file without PyTorch, so that the command line's help need not load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tcnn.errors import check_option


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and what is done to them; the names are those of timm's `train.py`.

    Raises:
        ValueError: an option is outside its range; the message names it.
    """

    root: str = ""
    """Folder of the images: class folders, tar shards, parquet or a saved Hugging Face dataset;
    'digits' is scikit-learn's handwritten digits."""

    train: str = "train"
    """Split to train on."""

    val: str = "val"
    """Split to validate on."""

    holdout: int = 0
    """Training images to hold out and validate on in place of `val`, evenly over the classes; for
    choosing recipes without a look at `val`."""

    max_train: int | None = None
    """Training images to take, evenly over the classes; null takes all."""

    max_val: int | None = None
    """Validation images to take, evenly over the classes; null takes all."""

    input_size: tuple[int, int, int] | None = None
    """Channels, height and width of the network's input; null is the network's own."""

    crop: Literal["rrc", "pad", "none"] = "rrc"
    """Training crop: rrc, a random part resized (Inception's); pad, a random shift by up to an
    eighth of the side (for small images); none, as in validation."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that rrc takes."""

    hflip: float = 0.5
    """Probability of a mirror image."""

    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; not together with `aa`."""

    aa: str | None = None
    """Automatic augmentation in timm's notation, such as rand-m9-mstd0.5-inc1 for RandAugment."""

    reprob: float = 0.0
    """Probability of random erasing."""

    mean: tuple[float, ...] | None = None
    """Means of the channels, subtracted from pixels in [0, 1]; null is the network's own."""

    std: tuple[float, ...] | None = None
    """Standard deviations of the channels, divided by; null is the network's own."""

    interpolation: str | None = None
    """Interpolation of resizing: bilinear, bicubic, …; null is the network's own."""

    crop_pct: float | None = None
    """Side of the centre crop of validation by that of the resized image; null is the network's
    own."""

    unreadable: Literal["skip", "fail"] = "skip"
    """What to do about an image that cannot be read: take another and name it in the report, or
    stop."""

    workers: int = 2
    """Processes that read images, for each process that trains; 0 reads in the process itself."""

    def __post_init__(self) -> None:
        for name in ("workers", "holdout"):
            check_option(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("max_train", "max_val"):
            value = getattr(self, name)
            check_option(name, value, value is None or value >= 1, "1 or more, or null")
        for name in ("hflip", "reprob"):
            check_option(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "in [0, 1]")
        low, high = self.scale
        check_option("scale", self.scale, 0 < low <= high <= 1, "two rising shares in (0, 1]")
        check_option("color_jitter", self.color_jitter, self.color_jitter >= 0, "0 or more")
        both = self.color_jitter > 0 and self.aa is not None
        check_option("color_jitter", self.color_jitter, not both, "0 where `aa` is given")
        for name, known in (("crop", ("rrc", "pad", "none")), ("unreadable", ("skip", "fail"))):
            value = getattr(self, name)
            check_option(name, value, value in known, f"one of {', '.join(known)}")
