"""CIFAR-10-C as it is published: one array for each corruption, of five severities in a row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tcnn.corruptions import EXTRA, SEVERITIES, STANDARD
from tcnn.decoding import UnreadableImage
from tcnn.images import DataError, Images, Labels, few, places_of

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


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


def cifar10_c(
    root: Path, paths: Sequence[Path], names: Sequence[str]
) -> list[tuple[str, int, Images]]:
    """Each corruption at each severity, with its images, from CIFAR-10-C's download.

    Args:
        root: the folder of the download.
        paths: what lies in it.
        names: the class of each output of the network; labels are places among them.

    Raises:
        DataError: the download is not there or not whole.
    """
    files = {path.stem: path for path in paths if path.suffix == ".npy"}
    if "labels" not in files or len(files) == 1:
        raise DataError(
            f"Expected CIFAR-10-C in {str(root)!r} as labels.npy and corruptions such as "
            f"{STANDARD[0]}.npy, but it has {few(sorted(path.name for path in files.values()))} of "
            "these: unpack the download there."
        )
    labels = _cifar_labels(files.pop("labels"))
    if foreign := [path.name for name, path in files.items() if name not in STANDARD + EXTRA]:
        raise DataError(
            f"Expected CIFAR-10-C's corruptions in {str(root)!r}, such as "
            f"{STANDARD[0]}.npy, but got {few(foreign)}: move it elsewhere."
        )
    for file in files.values():
        pixels, wanted = _array(file), (len(labels), 32, 32, 3)
        if pixels.dtype != np.uint8 or pixels.shape != wanted:
            raise DataError(
                f"Expected uint8 {wanted} in {str(file)!r}, as many rows as labels.npy has, but "
                f"got {pixels.dtype} {pixels.shape}: fetch both again."
            )
    order = places_of(names)
    ours = np.array([order[name] for name in CIFAR10], np.int64)[labels]
    count = len(labels) // len(SEVERITIES)
    parts: list[tuple[str, int, Images]] = []
    for name in (name for name in STANDARD + EXTRA if name in files):
        for severity in SEVERITIES:
            start = (severity - 1) * count
            images = _Rows(files[name], start, tuple(names), ours[start : start + count])
            parts.append((name, severity, images))
    return parts


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
            if not _dtype(file).itemsize:  # numpy would divide by it, and end the process
                raise ValueError("its items have no bytes")
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


def _dtype(file: Path) -> np.dtype[Any]:
    with file.open("rb") as opened:
        version = np.lib.format.read_magic(opened)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(opened)[2]
        return np.lib.format.read_array_header_2_0(opened)[2]
