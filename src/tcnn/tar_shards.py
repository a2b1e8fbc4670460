"""Labelled images in tar files: class folders inside, or labels beside pictures (webdataset)."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tcnn.decoding import SUFFIXES
from tcnn.images import DataError, Images, few, listed_names, named

_NOTES = (".cls", ".json")  # beside a picture in a tar file


class TarShards(Images):
    """Pictures in tar files, whose places in them are looked up once."""

    def __init__(self, root: Path, shards: Sequence[Path]) -> None:
        self._root = root
        self._shards = [shard.relative_to(root).as_posix() for shard in shards]
        self._names: list[str] = []
        places: list[tuple[int, int, int]] = []
        labels: list[str] = []
        noted = False
        for number, shard in enumerate(shards):
            pictures, notes = _index(shard)
            self._names += pictures
            places += [(number, *place) for place in pictures.values()]
            labels += _labels(shard, list(pictures), notes)
            noted |= bool(notes)
        self._places = np.array(places, np.int64).reshape(-1, 3)
        super().__init__(*named(labels, listed_names(shards[0].parent) if noted else None))

    def name(self, index: int) -> str:
        return f"{self._shards[self._places[index, 0]]}/{self._names[index]}"

    def data(self, index: int) -> bytes:
        shard, offset, size = self._places[index].tolist()
        # Opened each time, which is cheap beside decoding: a handle that stays open cannot be
        # pickled, and forked processes would move its position under each other's feet.
        with open(self._root / self._shards[shard], "rb") as file:
            file.seek(offset)
            return file.read(size)


def _index(shard: Path) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Offset and size of each picture of a tar file, and the labels written beside pictures."""
    pictures: dict[str, tuple[int, int]] = {}
    notes: dict[str, str] = {}
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or it keeps a record of each
                name = posixpath.normpath(member.name)
                if any(part.startswith(".") for part in name.split("/")) or member.isdir():
                    continue
                if name.lower().endswith(SUFFIXES + _NOTES) and not member.isfile():
                    raise DataError(
                        f"Expected files in {str(shard)!r}, but {name!r} is a link: pack it with "
                        "`tar --dereference --hard-dereference`."
                    )
                if name.lower().endswith(SUFFIXES):
                    pictures[name] = member.offset_data, member.size
                elif name.endswith(_NOTES) and (part := tar.extractfile(member)):
                    text = part.read().decode().strip()
                    if name.endswith(".cls"):
                        notes[_key(name)] = text
                    elif isinstance(note := json.loads(text), dict) and "label" in note:
                        notes.setdefault(_key(name), str(note["label"]))
            file.seek(tar.offset)  # `tarfile` takes a damaged header for the end
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    except (tarfile.TarError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"Expected a whole tar file, not compressed, with labels as text or JSON, but "
            f"{str(shard)!r}: {error}."
        ) from error
    return pictures, notes


def _key(name: str) -> str:
    """What the files of one sample have in common: their path up to the name's first dot."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _labels(shard: Path, names: list[str], notes: dict[str, str]) -> list[str]:
    """Class names or numbers of a tar file's pictures, from notes or from the top folder."""
    if not notes:
        if loose := [name for name in names if "/" not in name]:
            raise DataError(
                f"Expected <class>/x.jpg, or a label as x.cls or in x.json, in {str(shard)!r}, but "
                f"got {few(loose)}: pack class folders, or add labels."
            )
        return [name.partition("/")[0] for name in names]
    keys = [_key(name) for name in names]
    if bare := [name for name, key in zip(names, keys, strict=True) if key not in notes]:
        raise DataError(
            f"Expected a label for each picture in {str(shard)!r}, but got none for {few(bare)}: "
            "add x.cls, or x.json with a label."
        )
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise DataError(
            f"Expected one picture for each label in {str(shard)!r}, but got several of "
            f"{few(twice)}: give each a name of its own before the first dot."
        )
    return [notes[key] for key in keys]
