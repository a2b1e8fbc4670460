"""Labelled images that are read when they are asked for, and the names of their classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tcnn.decoding import UnreadableImage, decode
from tcnn.errors import TCNNError

Labels = npt.NDArray[np.int64]


class DataError(TCNNError):
    """Images are not where, or not as, they were expected."""


class Images(ABC):
    """Labelled images, each read when it is asked for. They pickle, for worker processes.

    Attributes:
        classes: names of the classes.
        labels: (N,), places in `classes`.
    """

    def __init__(self, classes: tuple[str, ...], labels: Labels) -> None:
        self.classes, self.labels = classes, labels

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What a report calls an image."""

    @abstractmethod
    def data(self, index: int) -> bytes:
        """An image as it is stored."""

    def read(self, index: int) -> Image.Image:
        """An image as `decode` reads it.

        Raises:
            UnreadableImage: it cannot be read.
        """
        try:
            return decode(self.data(index), self.name(index))
        except OSError as error:
            raise UnreadableImage(self.name(index), error.strerror or str(error)) from error


class Subset(Images):
    """The images at the given indices, in that order."""

    def __init__(self, images: Images, indices: npt.NDArray[np.integer]) -> None:
        super().__init__(images.classes, images.labels[indices])
        self._images, self._indices = images, indices

    def name(self, index: int) -> str:
        return self._images.name(int(self._indices[index]))

    def data(self, index: int) -> bytes:
        return self._images.data(int(self._indices[index]))

    def read(self, index: int) -> Image.Image:
        return self._images.read(int(self._indices[index]))


def take(images: Images, count: int | None, seed: int) -> Images:
    """At most `count` images, of every class the same share (rounded up or down).

    Args:
        images: the whole set.
        count: None takes all.
        seed: fixes which; they stay in their order.
    """
    if count is None or count >= len(images):
        return images
    return Subset(images, _taken(images, count, seed))


def _taken(images: Images, count: int, seed: int) -> npt.NDArray[np.intp]:
    total = len(images)
    shuffled = np.random.default_rng(seed).permutation(total)
    by_class = shuffled[np.argsort(images.labels[shuffled], kind="stable")]
    taken: npt.NDArray[np.intp] = np.sort(by_class[np.arange(count) * total // count])
    return taken


def hold_out(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """The rest of a set, and the `count` images that `take` takes of it."""
    held = np.zeros(len(images), bool)
    held[_taken(images, count, seed)] = True
    return Subset(images, np.flatnonzero(~held)), Subset(images, np.flatnonzero(held))


def named(
    values: Sequence[str | int | None], names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Labels]:
    """Classes and labels from labels as numbers or names; numbers are places in `names`, if any."""
    if bare := sum(value is None or (isinstance(value, int) and value < 0) for value in values):
        raise DataError(
            f"Expected a label for each image, but {bare} of {len(values)} have none: choose a "
            "split with labels."
        )
    texts = [str(value) for value in values]
    if names is None or not all(text.isdecimal() for text in texts):
        classes = ordered(set(texts))
        order = places_of(classes)
        return classes, np.array([order[text] for text in texts], np.int64)
    places_of(names)
    numbers = [int(text) for text in texts]
    if max(numbers, default=0) >= len(names):
        raise DataError(
            f"Expected labels below {len(names)}, the number of class names, but got "
            f"{max(numbers)}: give the list that the labels were made with."
        )
    return names, np.array(numbers, np.int64)


def listed_names(folder: Path) -> tuple[str, ...] | None:
    """The lines of `classes.txt`, if the folder has one."""
    file = folder / "classes.txt"
    if not file.is_file():
        return None
    return tuple(line.strip() for line in file.read_text("utf-8").splitlines())


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """In the order of numbers, if all are: as text, "10" would come before "2"."""
    listed = sorted(names)
    return tuple(sorted(listed, key=int) if all(name.isdecimal() for name in listed) else listed)


def places_of(names: Sequence[str]) -> dict[str, int]:
    """Place of each name; each must be there once, or it does not say which class it means."""
    places = {name: place for place, name in enumerate(names)}
    if len(places) < len(names):
        twice = [name for place, name in enumerate(names) if places[name] != place]
        raise DataError(
            f"Expected every class name once, but got {few(twice)} more than once: make the names "
            "differ."
        )
    return places


def few(names: Sequence[str]) -> str:
    """The first few names of a list, for a message."""
    shown = ", ".join(repr(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
