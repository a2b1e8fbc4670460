"""Labelled images in parquet files and saved datasets, through Hugging Face's `datasets`."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tcnn.errors import TCNNError
from tcnn.images import DataError, Images, few, listed_names, named

_LABELS = ("label", "labels", "class", "target", "fine_label")  # names of columns


class HuggingFaceTable(Images):
    """Rows of a Hugging Face dataset, named by the file they come from.

    Args:
        dataset: with the columns `image` and `label`.
        image, label: names of the columns.
        files: what the rows come from, in order, and how many of them.
        folder: of a `classes.txt`, if the labels are plain numbers.
    """

    def __init__(
        self, dataset: Any, image: str, label: str, files: dict[str, int], folder: Path
    ) -> None:
        from datasets import Image as ImageFeature

        feature = dataset.features[label]
        names = tuple(feature.names) if hasattr(feature, "names") else listed_names(folder)
        super().__init__(*named(dataset[label][:], names))
        if isinstance(dataset.features[image], ImageFeature):
            dataset = dataset.cast_column(image, ImageFeature(decode=False))
        self._dataset, self._image = dataset, image
        self._files, self._ends = list(files), np.cumsum(list(files.values()))

    def name(self, index: int) -> str:
        index = range(len(self))[index]
        part = int(np.searchsorted(self._ends, index, side="right"))
        return f"{self._files[part]} row {index - (self._ends[part - 1] if part else 0)}"

    def data(self, index: int) -> bytes:
        value = self._dataset[int(index)][self._image]
        if isinstance(value, dict):
            stored = value["bytes"]
            value = Path(value["path"]).read_bytes() if stored is None and value["path"] else stored
        return value or b""


def open_saved(root: Path, folder: Path) -> Images:
    """The dataset of a folder that `save_to_disk` wrote."""
    name = folder.relative_to(root).as_posix()
    with _library(folder) as datasets:
        dataset = datasets.load_from_disk(str(folder))
        columns = _columns(dataset.features, str(folder))
        return HuggingFaceTable(dataset, *columns, {name: len(dataset)}, folder)


def open_parquet(root: Path, files: Sequence[Path]) -> Images:
    """The rows of parquet files, through a copy in Hugging Face's cache."""
    from pyarrow import parquet

    rows = {}
    for file in files:
        with _library(file):
            rows[file.relative_to(root).as_posix()] = parquet.read_metadata(file).num_rows
    with _library(files[0].parent) as datasets:
        features = datasets.Features.from_arrow_schema(parquet.read_schema(files[0]))
        columns = _columns(features, str(files[0]))
        patterns = [glob.escape(str(file.absolute())) for file in files]  # not taken as they are
        dataset = datasets.Dataset.from_parquet(patterns, columns=list(columns))
        return HuggingFaceTable(dataset, *columns, rows, files[0].parent)


@contextmanager
def _library(where: Path) -> Iterator[Any]:
    """The package `datasets` without its progress bars; what it raises becomes a DataError."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    except TCNNError:
        raise
    except Exception as error:  # damaged files can raise anything
        cause = " ".join(str(error.__cause__ or error).split())
        raise DataError(
            f"Expected whole data for `datasets` in {str(where)!r}, but got: {cause}"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _columns(features: Any, where: str) -> tuple[str, str]:
    """Names of the columns that hold the images and the labels."""
    import datasets

    def those(accepted: Callable[[Any], bool]) -> list[str]:
        return [name for name, feature in features.items() if accepted(feature)]

    images = those(lambda feature: isinstance(feature, datasets.Image)) or those(
        lambda feature: (
            getattr(feature, "dtype", None) in ("binary", "large_binary")
            or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
        )
    )
    labels = [name for name in features if name.lower() in _LABELS] or those(
        lambda feature: isinstance(feature, datasets.ClassLabel)
    )
    for what, chosen in (("images", images), ("labels", labels)):
        if len(chosen) != 1:
            raise DataError(
                f"Expected one column of {what} in {where!r}, but got {few(chosen)} of the "
                f"columns {few(list(features))}: rename or remove columns (labels: "
                f"{', '.join(_LABELS)})."
            )
    kind = getattr(features[labels[0]], "dtype", "")
    if not re.fullmatch(r"u?int\d+|(large_)?string", kind):
        raise DataError(
            f"Expected the labels {labels[0]!r} in {where!r} as integers or text, but got "
            f"{features[labels[0]]}."
        )
    return images[0], labels[0]
