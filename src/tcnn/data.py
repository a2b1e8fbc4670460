"""Images in memory: labelled sets and their splits; scikit-learn's digits; pictures of a folder."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tcnn.data_config import DataConfig
from tcnn.errors import TCNNError
from tcnn.images import Images
from tcnn.view import View

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    Attributes:
        images: (N, H, W, C), uint8.
        labels: (N,), int64, indices into `classes`.
        classes: names of the classes.

    Raises:
        ValueError: images or labels have another shape or type, or a label names no class.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                "Expected `images` as uint8 (N, H, W, C), "
                f"but got {self.images.dtype} {self.images.shape}."
            )
        if self.labels.shape != (len(self.images),) or self.labels.dtype != np.int64:
            raise ValueError(
                f"Expected `labels` as int64 ({len(self.images)},), "
                f"but got {self.labels.dtype} {self.labels.shape}."
            )
        if len(self) and not (0 <= self.labels.min() <= self.labels.max() < len(self.classes)):
            raise ValueError(
                f"Expected labels from 0 to {len(self.classes) - 1}, "
                f"but got {self.labels.min()} to {self.labels.max()}."
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: npt.NDArray[np.intp]) -> ImageSet:
        """The images at the given indices, in that order."""
        return ImageSet(self.images[indices], self.labels[indices], self.classes)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """What a network is fed: pixels/255, (N, C, H, W) float32, and labels (N,) int64."""
        pixels = torch.from_numpy(self.images).permute(0, 3, 1, 2)
        return pixels.contiguous().float() / 255, torch.from_numpy(self.labels)


class ArrayImages(Images):
    """An `ImageSet`, one by one as images on a disk are."""

    def __init__(self, images: ImageSet, what: str) -> None:
        super().__init__(images.classes, images.labels)
        self._pixels, self._what = images.images, what

    def name(self, index: int) -> str:
        return f"{self._what} {index}"

    def data(self, index: int) -> bytes:
        pixels: npt.NDArray[np.uint8] = self._pixels[index]
        return pixels.tobytes()

    def read(self, index: int) -> Image.Image:
        pixels = self._pixels[index]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")


@dataclass(frozen=True)
class Splits:
    """One set of images in three parts without an image in common."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet


def digits(size: int = 32) -> ImageSet:
    """The 1,797 handwritten digits that scikit-learn ships, 8×8 pixels of 17 grey levels.

    They are resized with bicubic interpolation, which adds pixels but no detail: at 32×32 the last
    stage of a residual network with two strides works on an 8×8 grid, one cell for each original
    pixel. Who wrote which digit is not recorded, so a split cannot keep the writers apart.

    Args:
        size: side of the images in pixels.

    Source: E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI 1998.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(np.asarray(bunch.images, dtype=np.float64))[:, None] * (255 / 16)
    large = F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False)
    pixels = large.round().clamp(0, 255).to(torch.uint8)
    return ImageSet(
        pixels.permute(0, 2, 3, 1).contiguous().numpy(),
        np.asarray(bunch.target, dtype=np.int64),
        tuple(str(name) for name in bunch.target_names),
    )


def split(images: ImageSet, seed: int, validation: float = 0.2, test: float = 0.2) -> Splits:
    """Divide a set into train, validation and test, each with the classes in the same proportions.

    Args:
        images: the whole set.
        seed: fixes which image goes where.
        validation, test: share of each class; at least one image is taken.

    Raises:
        ValueError: the shares leave nothing to train on.
    """
    if min(validation, test) <= 0 or validation + test >= 1:
        raise ValueError(
            "Expected `validation` and `test` above 0 with a sum below 1, "
            f"but got {validation} and {test}."
        )
    rng = np.random.default_rng(seed)
    parts: tuple[list[npt.NDArray[np.intp]], ...] = ([], [], [])
    for label in range(len(images.classes)):
        members = rng.permutation(np.flatnonzero(images.labels == label))
        ends = np.cumsum([max(1, round(share * len(members))) for share in (test, validation)])
        for part, chunk in zip(parts, np.split(members, ends), strict=True):
            part.append(chunk)
    held_out, checked, train = (images.subset(np.sort(np.concatenate(part))) for part in parts)
    return Splits(train, checked, held_out)


def pictures(folder: Path, model: nn.Module, size: tuple[int, int, int], count: int) -> Tensor:
    """Pictures of a folder and of those below it, evenly spread over it, as a network takes them.

    Resized, cropped and normalised as timm evaluates the network, by its `pretrained_cfg` if it has
    one and by ImageNet's statistics if not.

    Args:
        folder: JPEG, PNG, BMP, GIF or WebP files at any depth.
        model: the network that they are for.
        size: (C, H, W); pictures become grey for one channel.
        count: how many, at most.

    Returns:
        (B, C, H, W).

    Raises:
        TCNNError: there are none, or one cannot be read, or C is neither 1 nor 3.
    """
    view = View.of(model, DataConfig(input_size=size))
    if not folder.is_dir():
        raise TCNNError(f"Expected a folder of pictures, but {str(folder)!r} is not a folder.")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _PICTURES)
    if not files:
        raise TCNNError(f"Expected pictures ({', '.join(_PICTURES)}) in {str(folder)!r}: none.")
    transform = view.transform()
    tensors = []
    for index in np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int):
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(files[index]) as picture:
                tensors.append(transform(view.channels(picture.convert("RGB"))))
        except Exception as error:  # damaged and oversized files can raise anything
            raise TCNNError(f"Expected a picture, but {str(files[index])!r}: {error}") from error
    return torch.stack(tensors)
