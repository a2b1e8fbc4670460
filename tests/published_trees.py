"""Published suites in small: each picture carries in its colour how a reader of colours answers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tcnn import imagenet

SEVERITIES = (1, 2, 3, 4, 5)


def colour(answer: int) -> tuple[int, int, int]:
    """A digit of the answer in each channel, with steps that JPEG and resizing leave apart."""
    hundreds, rest = divmod(answer, 100)
    return (10 + 25 * hundreds, 10 + 25 * (rest // 10), 10 + 25 * (rest % 10))


def answer(picture: Image.Image) -> int:
    """The number that a picture's colour says: a class, in the standard order."""
    mean = np.asarray(picture, np.float64).mean((0, 1))
    hundreds, tens, ones = np.rint((mean - 10) / 25).astype(int)
    return int(100 * hundreds + 10 * tens + ones)


class Tree:
    """Writes suites below a folder; pictures with one answer are one file with many names.

    `wrong` is of how many classes the pictures carry another answer than the label, of those that
    come first in the published order.
    """

    def __init__(self, root: Path, size: int = 4) -> None:
        self.root, self.size = root, size
        self._painted = root / ".painted"
        self._painted.mkdir(parents=True)

    def link(self, file: Path, says: int) -> None:
        """A JPEG that carries an answer."""
        painted = self._painted / f"{says}.jpg"
        if not painted.exists():
            picture = Image.new("RGB", (self.size, self.size), colour(says))
            picture.save(painted, quality=95)
        os.link(painted, file)

    def folders(self, at: Path, labels: Mapping[str, int], wrong: int = 0) -> None:
        """A folder for each name with a picture of its label, or, if wrong, of the next label."""
        says = list(labels.values())
        for place, name in enumerate(labels):
            (at / name).mkdir(parents=True)
            self.link(at / name / f"{name}.JPEG", says[(place + (place < wrong)) % len(says)])

    def imagenet_c(self, corruptions: Sequence[str], wrong: int = 0) -> Path:
        """`wrong` classes at severity 1, twice as many at severity 2, and so on."""
        for corruption in corruptions:
            for severity in SEVERITIES:
                at = self.root / "imagenet-c" / corruption / str(severity)
                self.folders(at, standard(), wrong * severity)
        return self.root / "imagenet-c"

    def cifar10_c(self, corruptions: Sequence[str], rows: int = 20, wrong: int = 0) -> Path:
        """As many rows for each severity; `wrong` of them at severity 1, twice as many at 2 ..."""
        folder = self.root / "cifar10-c"
        folder.mkdir()
        labels = np.arange(rows) % 10
        says = np.stack([(labels + (np.arange(rows) < wrong * s)) % 10 for s in SEVERITIES])
        colours = np.array([colour(label) for label in range(10)], np.uint8)[says.reshape(-1)]
        pixels: npt.NDArray[np.uint8] = np.tile(colours[:, None, None], (1, 32, 32, 1))
        for corruption in corruptions:
            np.save(folder / f"{corruption}.npy", pixels)
        np.save(folder / "labels.npy", np.tile(labels, 5))
        return folder

    def subset(self, suite: str, wrong: int = 0) -> Path:
        """imagenet-a or imagenet-r."""
        names = imagenet.wnids_a() if suite == "imagenet-a" else imagenet.wnids_r()
        self.folders(self.root / suite, {name: standard()[name] for name in names}, wrong)
        return self.root / suite

    def imagenet_v2(self, wrong: int = 0) -> Path:
        self.folders(self.root / "imagenet-v2", {str(k): k for k in range(1000)}, wrong)
        return self.root / "imagenet-v2"

    def imagenet_sketch(self, below: str = "", wrong: int = 0) -> Path:
        self.folders(self.root / "imagenet-sketch" / below, standard(), wrong)
        return self.root / "imagenet-sketch"

    def imagenet_real(self, answers: Mapping[int, int], below: str = "") -> Path:
        """Validation images by their numbers, with what each carries."""
        folder = self.root / "imagenet-real"
        (folder / below).mkdir(parents=True, exist_ok=True)
        for number, says in answers.items():
            self.link(folder / below / f"ILSVRC2012_val_{number:08}.JPEG", says)
        return folder


@cache
def standard() -> dict[str, int]:
    """ImageNet-1k's classes and their places in the standard order."""
    return {name: place for place, name in enumerate(imagenet.wnids())}
