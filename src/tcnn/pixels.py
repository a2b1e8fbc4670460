"""Images in pixels, as a network sees them before they are normalised, and what is done to them."""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tcnn.corruptions import corrupt, image_rng
from tcnn.decoding import UnreadableImage
from tcnn.errors import TCNNError
from tcnn.images import Images
from tcnn.reading import Unread
from tcnn.view import View

Array = npt.NDArray[np.uint8]
Change = Callable[[Array, int], Array]  # an image (H, W, C) and its place in the set → the same


@dataclass(frozen=True)
class Corrupted:
    """A corruption; its randomness follows from the seed, itself and the image's place."""

    name: str
    severity: int
    seed: int

    def __call__(self, image: Array, index: int) -> Array:
        rng = image_rng(self.seed, self.name, self.severity, index)
        return corrupt(image, self.name, self.severity, rng)


@dataclass(frozen=True)
class Shuffled:
    """grid × grid patches in a random order: what is left is texture.

    Rows and columns that the grid does not divide stay where they are, at the bottom and the right.

    Source: Naseer et al. 2021 (arXiv 2105.10497) §3.3.
    """

    grid: int
    seed: int

    def __call__(self, image: Array, index: int) -> Array:
        _check_grid(self.grid, image)
        rng = np.random.default_rng([self.seed, zlib.crc32(b"patch-shuffle"), self.grid, index])
        height, width = (side // self.grid for side in image.shape[:2])
        result = image.copy()
        for to, whence in enumerate(rng.permutation(self.grid**2)):
            (y, x), (v, u) = divmod(to, self.grid), divmod(int(whence), self.grid)
            result[y * height : (y + 1) * height, x * width : (x + 1) * width] = image[
                v * height : (v + 1) * height, u * width : (u + 1) * width
            ]
        return result


@dataclass(frozen=True)
class Occluded:
    """A share of grid × grid patches, taken at random, made black.

    Source: Naseer et al. 2021 (arXiv 2105.10497) §3.1, random PatchDrop.
    """

    share: float
    grid: int
    seed: int

    def __call__(self, image: Array, index: int) -> Array:
        _check_grid(self.grid, image)
        key = [self.seed, zlib.crc32(b"occlusion"), round(1e6 * self.share), self.grid, index]
        rng = np.random.default_rng(key)
        patches = np.ones(self.grid**2, bool)
        patches[rng.permutation(self.grid**2)[: round(self.share * self.grid**2)]] = False
        kept = patches.reshape(self.grid, self.grid)
        rows, columns = (np.arange(side) * self.grid // side for side in image.shape[:2])
        result: Array = image * kept[rows[:, None], columns][..., None]
        return result


def _check_grid(grid: int, image: Array) -> None:
    if grid > min(image.shape[:2]):
        raise ValueError(
            f"Expected images of {grid} pixels a side or more for {grid}×{grid} patches, but got "
            f"{image.shape}."
        )


class Shown(NamedTuple):
    """One image.

    Attributes:
        place: its index in the set.
        pixels: (C, H, W), uint8; None if it cannot be read.
        label: its class.
        checksum: CRC-32 of the pixels.
        seconds: to read it, and to change it.
        unread: its name, and why it cannot be read.
    """

    place: int
    pixels: Tensor | None
    label: int
    checksum: int
    seconds: tuple[float, float]
    unread: Unread | None


class PixelImages(Dataset[Shown]):
    """Images as a network sees them, changed. Equal for any number of worker processes.

    Raises:
        TCNNError: images of this size cannot be changed so.
    """

    def __init__(self, images: Images, view: View, change: Change | None) -> None:
        self.images, self.view, self.change = images, view, change
        self.transform = view.in_pixels()
        if change is not None:
            channels, height, width = view.input_size
            try:  # on grey, in this process: from a worker an error comes as many lines
                change(np.full((height, width, channels), 128, np.uint8), 0)
            except ValueError as error:
                raise TCNNError(f"{error} Give --data.input_size, or leave this out.") from error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Shown:
        begin = time.perf_counter()
        label = int(self.images.labels[index])
        try:
            with warnings.catch_warnings(action="ignore"):
                picture = self.view.channels(self.images.read(index))
                pixels = self.transform(picture)
        except UnreadableImage as error:
            return Shown(index, None, label, 0, (0.0, 0.0), (error.name, error.reason))
        read = time.perf_counter()
        if self.change is not None:
            changed = self.change(pixels.permute(1, 2, 0).numpy(), index)
            pixels = torch.from_numpy(np.ascontiguousarray(changed.transpose(2, 0, 1)))
        done = time.perf_counter()
        checksum = zlib.crc32(pixels.numpy().tobytes())
        return Shown(index, pixels, label, checksum, (read - begin, done - read), None)


def as_listed(items: Sequence[Shown]) -> list[Shown]:
    """A batch as it is: its images may not all be there."""
    return list(items)
