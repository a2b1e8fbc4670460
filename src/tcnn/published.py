"""Published robustness sets of ImageNet and CIFAR-10 in their published layouts, for a network with
the classes of either in any order."""

from __future__ import annotations

import os
import posixpath
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tcnn import imagenet
from tcnn.corruptions import EXTRA, SEVERITIES, STANDARD
from tcnn.datasets import Files, class_folders, pictures
from tcnn.decoding import UnreadableImage
from tcnn.images import DataError, Images, Labels, few, ordered, places_of

SUITES = (
    *("imagenet-c", "cifar10-c", "imagenet-a", "imagenet-r"),
    *("imagenet-v2", "imagenet-sketch", "imagenet-real"),
)
CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_GROUPS = ("noise", "blur", "weather", "digital", "extra")  # of ImageNet-C's download
_COUNTS = {  # images of a part, as published
    "imagenet-c": 50_000,
    "cifar10-c": 10_000,
    "imagenet-a": 7_500,
    "imagenet-r": 30_000,
    "imagenet-v2": 10_000,
    "imagenet-sketch": 50_889,
    "imagenet-real": 50_000,
}
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(_n\d{8})?\.\w+")  # Hugging Face adds a class


@dataclass(frozen=True, eq=False)
class PublishedImages:
    """The images of a part, and which answers to them are right.

    Attributes:
        images: their labels are places in the part's `outputs`.
        accepted: for each image all labels that count as right (ImageNet-ReaL has several; the one
            in `images` is the first of them); None is the label alone.
        note: how they differ from what was published, or were chosen from it; "" if not.
    """

    images: Images
    accepted: tuple[frozenset[int], ...] | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class PublishedPart:
    """Images of a published suite that are scored together.

    Attributes:
        name: the corruption; "" for a suite of one part.
        severity: 1 to 5, or None.
        open: finds the images, of which a whole suite can have millions. Raises DataError.
        outputs: the network's outputs that compete, (K,) int64; None is all of them.
        view_fixed: the images are already cut as a network takes them, and are not to be cropped
            again.
    """

    name: str
    severity: int | None
    open: Callable[[], PublishedImages]
    outputs: Labels | None = None
    view_fixed: bool = False


def open_published(
    suite: str, folder: str | Path, outputs: int, classes: Sequence[str] | None = None
) -> tuple[PublishedPart, ...]:
    """The parts of a suite, in the layout that its download unpacks to.

    | suite | files below `folder` |
    |---|---|
    | imagenet-c | `<corruption>/<severity>/<wnid>/x.JPEG`, also below noise, blur, and so on |
    | cifar10-c | `<corruption>.npy` with five severities one after the other, and `labels.npy` |
    | imagenet-a, imagenet-r | `<wnid>/x.jpg`, of 200 classes; the others' outputs do not compete |
    | imagenet-v2 | `<0 to 999>/x.jpeg` |
    | imagenet-sketch | `<wnid>/x.JPEG`, also below sketch or val |
    | imagenet-real | ImageNet's validation files, in class folders or not, also below val |

    The names of folders and the heads of arrays are checked here, the rest when a part is opened.

    Args:
        suite: one of `SUITES`.
        folder: where it was unpacked to.
        outputs: how many the network has.
        classes: those that the network was saved with, in its order: wnids, or CIFAR-10's names.
            None takes the standard order: wnids sorted, or CIFAR-10's names sorted.

    Raises:
        DataError: the suite is not there or not whole, or the network has other classes.
    """
    if suite not in SUITES:
        raise DataError(f"Expected a suite of {', '.join(SUITES)}, but got {suite!r}.")
    root = Path(folder)
    source = _Source(suite, root, _names(suite, outputs, classes))
    with source.errors():
        if not root.is_dir():
            what = "is no folder" if root.exists() else "does not exist"
            raise DataError(
                f"Expected a folder with {suite}, but {str(root)!r} {what}: give the one that the "
                "download was unpacked to."
            )
        if not _visible(root):
            raise DataError(
                f"Expected {suite} in {str(root)!r}, but it is empty: unpack the download there."
            )
        return _OPENED[suite](source)


def _names(suite: str, outputs: int, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The class of each output of a network."""
    what, names = ("CIFAR-10", CIFAR10) if suite == "cifar10-c" else ("ImageNet", imagenet.wnids())
    if outputs != len(names):
        raise DataError(
            f"Expected a network with {what}'s {len(names)} classes for {suite}, but got one with "
            f"{outputs} outputs: score one that was trained on {what}."
        )
    if classes is None:
        return names
    places_of(classes)
    if wrong := _difference(classes, names):
        raise DataError(
            f"Expected a network with {what}'s {len(names)} classes for {suite}, such as "
            f"{names[0]!r}, but in its class list {wrong}: name them so, in any order."
        )
    return tuple(classes)


@dataclass(frozen=True)
class _Source:
    """A suite, where it lies, and the class of each output of the network."""

    suite: str
    root: Path
    names: tuple[str, ...]

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Say what the system refuses as every other fault of the data."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"Expected {self.suite} in {str(self.root)!r}, but got: {error}."
            ) from error

    def check(self, found: Collection[str], wanted: Collection[str], what: str, at: str) -> None:
        """Refuse names at a place other than the published ones."""
        if wrong := _difference(found, wanted):
            raise DataError(
                f"Expected {self.suite}'s {len(wanted)} {what} in {str(self.root / at)!r}, but "
                f"{wrong}: unpack the whole download there, and keep nothing else beside it."
            )

    def note(self, found: int) -> str:
        """What there is to say of the number of images."""
        published = _COUNTS[self.suite]
        return "" if found == published else f"{found} images, but {published} were published"

    def folder_part(
        self,
        at: str,
        labels: Mapping[str, int],
        classes: tuple[str, ...],
        name: str = "",
        severity: int | None = None,
        outputs: Labels | None = None,
        view_fixed: bool = False,
    ) -> PublishedPart:
        """The part whose class folders lie at a place; `labels` has what each stands for."""
        self.check(_folders(self.root / at), labels, "class folders", at)
        opened = partial(self._open_folder, at, labels, classes)
        return PublishedPart(name, severity, opened, outputs, view_fixed)

    def _open_folder(
        self, at: str, labels: Mapping[str, int], classes: tuple[str, ...]
    ) -> PublishedImages:
        with self.errors():
            images = class_folders(self.root, at)
        self.check(images.classes, labels, "class folders", at)  # they may have changed by now
        counts = np.bincount(images.labels, minlength=len(labels))
        if empty := [images.classes[place] for place in np.flatnonzero(counts == 0)]:
            raise DataError(
                f"Expected images in each class folder of {str(self.root / at)!r}, but "
                f"{len(empty)} are empty ({few(empty)}): unpack the whole download there."
            )
        images.labels = np.array([labels[name] for name in images.classes], np.int64)[images.labels]
        images.classes = classes
        return PublishedImages(images, note=self.note(len(images)))


def _imagenet_c(source: _Source) -> tuple[PublishedPart, ...]:
    groups = [name for name in _folders(source.root) if name in _GROUPS]
    places: dict[str, str] = {}
    for above in ("", *groups):
        for name in _folders(source.root / above):
            at = posixpath.join(above, name)
            if not above and name in groups:
                continue
            if name not in STANDARD + EXTRA:
                raise DataError(
                    f"Expected ImageNet-C's corruptions in {str(source.root)!r}, such as "
                    f"{STANDARD[0]!r}, but got {at!r}: move it elsewhere."
                )
            if name in places:
                raise DataError(
                    f"Expected each corruption once in {str(source.root)!r}, but got "
                    f"{places[name]!r} and {at!r}: keep one of them."
                )
            places[name] = at
    found = [name for name in STANDARD + EXTRA if name in places]
    if not found:
        raise DataError(
            f"Expected ImageNet-C's corruptions as folders in {str(source.root)!r}, such as "
            f"{STANDARD[0]!r}, but it has none: unpack the download there."
        )
    labels, parts = places_of(source.names), []
    for name in found:
        at = places[name]
        severities = [str(severity) for severity in SEVERITIES]
        source.check(_folders(source.root / at), severities, f"severities of {name}", at)
        for severity in SEVERITIES:
            place = f"{at}/{severity}"
            part = source.folder_part(place, labels, source.names, name, severity, view_fixed=True)
            parts.append(part)
    return tuple(parts)


def _some_classes(wnids: Callable[[], tuple[str, ...]], source: _Source) -> tuple[PublishedPart]:
    """The part with the given classes, whose outputs alone compete."""
    order, chosen = places_of(source.names), wnids()
    outputs = np.array([order[name] for name in chosen], np.int64)
    return (source.folder_part("", places_of(chosen), chosen, outputs=outputs),)


def _imagenet_v2(source: _Source) -> tuple[PublishedPart]:
    order = places_of(source.names)
    labels = {str(number): order[name] for number, name in enumerate(imagenet.wnids())}
    return (source.folder_part("", labels, source.names),)


def _imagenet_sketch(source: _Source) -> tuple[PublishedPart]:
    found = _folders(source.root)
    at = found[0] if len(found) == 1 and found[0] in ("sketch", "val") else ""
    return (source.folder_part(at, places_of(source.names), source.names),)


def _imagenet_real(source: _Source) -> tuple[PublishedPart]:
    return (PublishedPart("", None, partial(_open_real, source)),)


def _open_real(source: _Source) -> PublishedImages:
    with source.errors():
        below = "val" if (source.root / "val").is_dir() else "."
        paths = [path.removeprefix("./") for path in pictures(source.root, below)]
    numbers = _validation_numbers(source, paths)
    order, real = places_of(source.names), imagenet.real_labels()
    outputs = [order[name] for name in imagenet.wnids()]
    answers = [[outputs[label] for label in real[number - 1]] for number in numbers]
    kept = [place for place, accepted in enumerate(answers) if accepted]
    if not kept:
        raise DataError(
            f"Expected ImageNet's validation images in {str(source.root)!r}, but got {len(paths)} "
            "images, of which none has a ReaL label: put the validation set there."
        )
    notes = [source.note(len(paths))]
    if without := len(paths) - len(kept):
        notes.append(f"{without} of {len(paths)} images have no ReaL label and are left out")
    images = Files(
        source.root,
        [paths[place] for place in kept],
        source.names,
        np.array([answers[place][0] for place in kept], np.int64),
    )
    accepted = tuple(frozenset(answers[place]) for place in kept)
    return PublishedImages(images, accepted, "; ".join(filter(None, notes)))


def _validation_numbers(source: _Source, paths: Sequence[str]) -> list[int]:
    """The number in the name of each of ImageNet's validation files."""
    files: dict[int, str] = {}
    for path in paths:
        match = _VALIDATION_NAME.fullmatch(posixpath.basename(path))
        number = int(match[1]) if match else 0
        if not 1 <= number <= _COUNTS["imagenet-real"]:
            raise DataError(
                "Expected ImageNet's validation images, ILSVRC2012_val_00000001.JPEG to "
                f"ILSVRC2012_val_00050000.JPEG, in {str(source.root)!r}, but got {path!r}: move it "
                "elsewhere."
            )
        if number in files:
            raise DataError(
                f"Expected each validation image once in {str(source.root)!r}, but got "
                f"{files[number]!r} and {path!r}: keep one of them."
            )
        files[number] = path
    return list(files)


class _Rows(Images):
    """Consecutive pictures of an array in a file, which each process opens for itself.

    Args:
        file: a .npy file, (rows, H, W, 3), uint8.
        start: the first row.
        classes, labels: as for `Images`; there are as many rows as labels.
    """

    def __init__(self, file: Path, start: int, classes: tuple[str, ...], labels: Labels) -> None:
        super().__init__(classes, labels)
        self._file, self._start = file, start
        self._pixels: npt.NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # the pixels stay in the file

    def name(self, index: int) -> str:
        return f"{self._file.name}, row {self._start + index}"

    def data(self, index: int) -> bytes:
        return self._row(index).tobytes()

    def read(self, index: int) -> Image.Image:
        try:
            return Image.fromarray(self._row(index))
        except (DataError, OSError) as error:  # the file was there when the part was opened
            raise UnreadableImage(self.name(index), str(error).rstrip(".")) from error

    def _row(self, index: int) -> npt.NDArray[np.uint8]:
        if self._pixels is None:
            self._pixels = _array(self._file)
        row: npt.NDArray[np.uint8] = np.ascontiguousarray(self._pixels[self._start + index])
        return row


def _cifar10_c(source: _Source) -> tuple[PublishedPart, ...]:
    files = {path.stem: path for path in _visible(source.root) if path.suffix == ".npy"}
    if "labels" not in files or len(files) == 1:
        raise DataError(
            f"Expected CIFAR-10-C in {str(source.root)!r} as labels.npy and corruptions such as "
            f"{STANDARD[0]}.npy, but it has {few(sorted(path.name for path in files.values()))} of "
            "these: unpack the download there."
        )
    labels = _cifar_labels(files.pop("labels"))
    if foreign := [path.name for name, path in files.items() if name not in STANDARD + EXTRA]:
        raise DataError(
            f"Expected CIFAR-10-C's corruptions in {str(source.root)!r}, such as "
            f"{STANDARD[0]}.npy, but got {few(foreign)}: move it elsewhere."
        )
    for file in files.values():
        pixels, wanted = _array(file), (len(labels), 32, 32, 3)
        if pixels.dtype != np.uint8 or pixels.shape != wanted:
            raise DataError(
                f"Expected uint8 {wanted} in {str(file)!r}, as many rows as labels.npy has, but "
                f"got {pixels.dtype} {pixels.shape}: fetch both again."
            )
    order = places_of(source.names)
    ours = np.array([order[name] for name in CIFAR10], np.int64)[labels]
    count = len(labels) // len(SEVERITIES)
    parts = []
    for name in (name for name in STANDARD + EXTRA if name in files):
        for severity in SEVERITIES:
            start = (severity - 1) * count
            images = _Rows(files[name], start, source.names, ours[start : start + count])
            opened = partial(PublishedImages, images, note=source.note(count))
            parts.append(PublishedPart(name, severity, opened, view_fixed=True))
    return tuple(parts)


def _cifar_labels(file: Path) -> Labels:
    """Labels of all severities, which must be the same for each of them."""
    labels = _array(file)
    whole = labels.dtype.kind in "iu" and labels.ndim == 1 and labels.size > 0
    if not whole or len(labels) % len(SEVERITIES):
        raise DataError(
            f"Expected whole numbers (5·n,) in {str(file)!r}, of 5 severities, but got "
            f"{labels.dtype} {labels.shape}: fetch it again."
        )
    if not (0 <= labels.min() <= labels.max() < len(CIFAR10)):
        raise DataError(
            f"Expected labels from 0 to {len(CIFAR10) - 1} in {str(file)!r}, but got "
            f"{labels.min()} to {labels.max()}: fetch it again."
        )
    if (labels.reshape(len(SEVERITIES), -1) != labels[: len(labels) // len(SEVERITIES)]).any():
        raise DataError(
            f"Expected the same labels for each severity in {str(file)!r}, but they differ: fetch "
            "it again."
        )
    return labels.astype(np.int64)


def _array(file: Path) -> npt.NDArray[Any]:
    """The array in a .npy file, left on the disk; Python objects, which run code, are refused."""
    try:
        with warnings.catch_warnings(action="ignore"):
            array = np.lib.format.open_memmap(file, mode="r")
    except OSError:
        raise
    except Exception as error:  # a damaged head can raise anything
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"Expected an array of numbers in {str(file)!r}, but it cannot be read ({reason}): "
            "fetch it again."
        ) from error
    return array


def _visible(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if not entry.name.startswith("."))


def _folders(folder: Path) -> tuple[str, ...]:
    """Names of a folder's folders, in order; links are followed."""
    with os.scandir(folder) as entries:
        return ordered(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def _difference(found: Collection[str], wanted: Collection[str]) -> str:
    """Which names are not there, and which are there but are not wanted; "" if none."""
    here, published = set(found), set(wanted)
    missing = [name for name in wanted if name not in here]
    foreign = [name for name in found if name not in published]
    if not missing and not foreign:
        return ""
    return (
        f"{len(missing)} are missing ({few(missing)}) and {len(foreign)} foreign ({few(foreign)})"
    )


_OPENED: dict[str, Callable[[_Source], tuple[PublishedPart, ...]]] = {
    "imagenet-c": _imagenet_c,
    "cifar10-c": _cifar10_c,
    "imagenet-a": partial(_some_classes, imagenet.wnids_a),
    "imagenet-r": partial(_some_classes, imagenet.wnids_r),
    "imagenet-v2": _imagenet_v2,
    "imagenet-sketch": _imagenet_sketch,
    "imagenet-real": _imagenet_real,
}
