"""Labelled images on disk: finds what lies in a folder (class folders, tar shards, parquet, saved
datasets) and opens it."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tcnn.decoding import SUFFIXES
from tcnn.hugging_face import open_parquet, open_saved
from tcnn.images import DataError, Images, Labels, few, ordered, places_of
from tcnn.tar_shards import TarShards

_VALIDATION = ("val", "validation", "valid")
_SPLITS = ("train", "test", *_VALIDATION)


def open_images(root: str | Path, split: str, classes: Sequence[str] | None = None) -> Images:
    """The labelled images of one split, in whichever of these layouts they lie below `root`.

    - `split/<class>/**/x.jpg`
    - `split/*.tar` or `split*.tar`, not compressed: holding `<class>/x.jpg`, or for each `x.jpg` a
      label as `x.cls` or in `x.json` under "label"
    - `split/*.parquet`, `split*.parquet`, the same in `data`; a copy that is read faster is put in
      Hugging Face's cache
    - `split`, a folder that a Hugging Face dataset was saved to

    The split "" is `root` itself; val, validation and valid are one split. Classes are ordered as
    text, or by number if all are numbers. Labels that are numbers stand for lines of `classes.txt`
    beside the files, where there is one.

    Args:
        root: folder of the data set.
        split: name of the part.
        classes: those that a model was saved with, in its order; the set must have the same ones.

    Raises:
        DataError: there is no such set or there are several, one is damaged, a class is empty, or
            the classes are others.
    """
    root = Path(root)
    names = _VALIDATION if split in _VALIDATION else (split,)
    if not root.is_dir():
        raise DataError(f"Expected a folder with images, but {str(root)!r} is not a folder.")
    try:
        found = [layout for name in names for layout in _layouts(root, name)]
        if not found:
            raise DataError(
                f"Expected {split!r} images in {str(root)!r} as {names[0]}/<class>/x.jpg, "
                f"{names[0]}*.tar, {names[0]}*.parquet or a saved dataset, but it holds "
                f"{few(_contents(root, names))}: name another root or split (a root without "
                "splits has the split '')."
            )
        if len(found) > 1:
            raise DataError(
                f"Expected one set of {split!r} images in {str(root)!r}, but got "
                f"{' and '.join(what for what, _ in found)}: leave one of them there."
            )
        images = found[0][1]()
        _check(images, f"{str(root)!r}, split {split!r}")
    except OSError as error:
        raise DataError(f"Expected a data set in {str(root)!r}, but got: {error}.") from error
    return images if classes is None else _mapped(images, tuple(classes), str(root), split)


def _layouts(root: Path, name: str) -> Iterator[tuple[str, Callable[[], Images]]]:
    """Every set of images that lies under a split's name: what it is, and how to open it."""
    folder = root / name
    listed = _listed(folder)
    if any(path.name == "state.json" for path in listed):
        yield f"a saved dataset in {str(folder)!r}", partial(open_saved, root, folder)
    elif any(path.is_dir() for path in listed):
        yield f"class folders in {str(folder)!r}", partial(class_folders, root, name)
    if name:
        beside = rf"{re.escape(name)}(?![A-Za-z])"  # train-0.tar, but not trainval-0.tar
        places = {folder: "", root: beside, root / "data": beside}
    else:
        places = {root: rf"(?!({'|'.join(_SPLITS)})(?![A-Za-z]))"}  # files of no split
    for place, start in places.items():
        files = [path for path in _listed(place) if re.match(start, path.name) and path.is_file()]
        for suffix, opened in _OPENED.items():
            if chosen := [path for path in files if path.suffix == suffix]:
                yield f"{suffix} files in {str(place)!r}", partial(opened, root, chosen)


def _check(images: Images, where: str) -> None:
    """Refuse a set without images, with an empty class, or whose classes are splits."""
    found = images.classes
    if not found:
        raise DataError(f"Expected images in {where}, but there is none.")
    if set(found) <= set(_SPLITS):
        raise DataError(
            f"Expected classes in {where}, but got {few(found)}, which are names of splits: name "
            "one of them as the split, or put the class folders at the top."
        )
    counts = np.bincount(images.labels, minlength=len(found))
    if empty := [name for name, count in zip(found, counts, strict=True) if not count]:
        raise DataError(
            f"Expected images of every class in {where}, but of {len(empty)} there is none (empty "
            f"class): {few(empty)}; add images, or remove the class."
        )


def _mapped(images: Images, classes: tuple[str, ...], root: str, split: str) -> Images:
    """The images with their labels as places in `classes`, by name."""
    order = places_of(classes)
    found = set(images.classes)
    missing = [name for name in classes if name not in found]
    foreign = [name for name in images.classes if name not in order]
    if missing or foreign:
        raise DataError(
            f"Expected the model's {len(classes)} classes in {root!r}, split {split!r}, but "
            f"{len(missing)} are missing ({few(missing)}) and {len(foreign)} are foreign "
            f"({few(foreign)}): give data of the same classes, or name them as the model does."
        )
    images.labels = np.array([order[name] for name in images.classes], np.int64)[images.labels]
    images.classes = classes
    return images


class Files(Images):
    """Pictures in files, named by their path below the root."""

    def __init__(
        self, root: Path, paths: Sequence[str], classes: tuple[str, ...], labels: Labels
    ) -> None:
        super().__init__(classes, labels)
        self._root, self._paths = root, paths

    def name(self, index: int) -> str:
        return self._paths[index]

    def data(self, index: int) -> bytes:
        return (self._root / self._paths[index]).read_bytes()


def class_folders(root: Path, split: str) -> Files:
    """The pictures of `root/split/<class>/**`; a class may be empty."""
    paths: list[str] = []
    classes = ordered(path.name for path in _listed(root / split) if path.is_dir())
    ends = []
    for name in classes:
        paths += pictures(root, posixpath.join(split, name))
        ends.append(len(paths))
    counts = np.diff(ends, prepend=0)
    return Files(root, paths, classes, np.repeat(np.arange(len(classes), dtype=np.int64), counts))


def pictures(root: Path, folder: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths below the root of a folder's pictures at any depth, in order; links are followed."""
    place = os.path.realpath(root / folder)
    if place in above:  # a link back to a folder around it
        return
    with os.scandir(root / folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        path = f"{folder}/{entry.name}"
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from pictures(root, path, above | {place})
        elif path.lower().endswith(SUFFIXES):
            yield path


def _listed(folder: Path) -> list[Path]:
    """What a folder holds, if it is one, in order; hidden entries are none of it."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _contents(root: Path, names: Sequence[str]) -> list[str]:
    folders = dict.fromkeys([*(root / name for name in names), root])
    return [path.relative_to(root).as_posix() for folder in folders for path in _listed(folder)]


_OPENED: dict[str, Callable[[Path, Sequence[Path]], Images]] = {
    ".tar": TarShards,
    ".parquet": open_parquet,
}
