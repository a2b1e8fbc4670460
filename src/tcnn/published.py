"""Published robustness sets of ImageNet and CIFAR-10 in their published layouts, for a network with
the classes of either in any order."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tcnn import imagenet
from tcnn.corruptions import EXTRA, SEVERITIES, STANDARD
from tcnn.datasets import Files, class_folders, pictures
from tcnn.images import DataError, Images, Labels, few, ordered, places_of
from tcnn.published_cifar import CIFAR10, cifar10_c

SUITES = (
    *("imagenet-c", "cifar10-c", "imagenet-a", "imagenet-r"),
    *("imagenet-v2", "imagenet-sketch", "imagenet-real"),
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


def _cifar10_c(source: _Source) -> tuple[PublishedPart, ...]:
    return tuple(
        PublishedPart(
            name,
            severity,
            partial(PublishedImages, images, note=source.note(len(images))),
            view_fixed=True,
        )
        for name, severity, images in cifar10_c(source.root, _visible(source.root), source.names)
    )


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
