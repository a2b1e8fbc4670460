"""`ImagesConfig`: which images, and who reads them; `DataConfig`: how they are augmented, too.

In a file without PyTorch, so that the command line's help need not load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tcnn.errors import check_option


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Images, as a network is tested on them; the names are those of timm's scripts.

    Raises:
        ValueError: an option is outside its range; the message names it.
    """

    root: str = ""
    """Folder of the images: class folders, tar shards, parquet or a saved Hugging Face dataset;
    'digits' is scikit-learn's handwritten digits."""

    val: str = "val"
    """Split to validate or test on."""

    max_val: int | None = None
    """Images of it to take, evenly over the classes; null takes all."""

    input_size: tuple[int, int, int] | None = None
    """Channels, height and width of the network's input; null is the network's own."""

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
    """What to do about an image that cannot be read: leave it out (in training take another) and
    name it in the report, or stop."""

    workers: int = 2
    """Processes that read images, for each process that computes; 0 reads in the process itself."""

    def __post_init__(self) -> None:
        check_option("workers", self.workers, self.workers >= 0, "0 or more")
        some = self.max_val is None or self.max_val >= 1
        check_option("max_val", self.max_val, some, "1 or more, or null")
        known = self.unreadable in ("skip", "fail")
        check_option("unreadable", self.unreadable, known, "one of skip, fail")


@dataclass(frozen=True, kw_only=True)
class DataConfig(ImagesConfig):
    """Images and what is done to them in training.

    Raises:
        ValueError: an option is outside its range; the message names it.
    """

    train: str = "train"
    """Split to train on."""

    holdout: int = 0
    """Training images to hold out and validate on in place of `val`, evenly over the classes; for
    choosing recipes without a look at `val`."""

    max_train: int | None = None
    """Training images to take, evenly over the classes; null takes all."""

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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("holdout", self.holdout, self.holdout >= 0, "0 or more")
        some = self.max_train is None or self.max_train >= 1
        check_option("max_train", self.max_train, some, "1 or more, or null")
        for name in ("hflip", "reprob"):
            check_option(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "in [0, 1]")
        low, high = self.scale
        check_option("scale", self.scale, 0 < low <= high <= 1, "two rising shares in (0, 1]")
        check_option("color_jitter", self.color_jitter, self.color_jitter >= 0, "0 or more")
        both = self.color_jitter > 0 and self.aa is not None
        check_option("color_jitter", self.color_jitter, not both, "0 where `aa` is given")
        crops = ("rrc", "pad", "none")
        check_option("crop", self.crop, self.crop in crops, f"one of {', '.join(crops)}")
