"""The pictures that a page shows: some that the run was validated on, or those of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from tcnn import datasets
from tcnn.data import ArrayImages, digits, split
from tcnn.data_config import DataConfig
from tcnn.decoding import UnreadableImage
from tcnn.errors import TCNNError
from tcnn.images import Images, take
from tcnn.loaders import open_data, open_validation
from tcnn.report.contents import Contents, plain_options
from tcnn.sources import origin
from tcnn.view import View


@dataclass(frozen=True)
class Picture:
    """A picture, what to call it, and its class, if that is known."""

    image: Image.Image
    title: str
    label: str | None = None


def view_of(contents: Contents, model: nn.Module) -> View:
    """How the run showed pictures to its network."""
    if contents.run is not None:
        return View(**plain_options(contents.run["view"]))
    return View.of(model, _data(contents))


def pictures(
    contents: Contents, model: nn.Module, count: int, folder: Path | None = None
) -> list[Picture]:
    """At most `count` pictures, evenly over the classes; those that cannot be read are left out.

    Args:
        contents: of the run.
        model: its network.
        count: how many.
        folder: pictures at any depth of it, of no known class, in place of the run's.

    Raises:
        TCNNError: there are none, or they are not where the run had them.
    """
    if folder is not None:
        if not folder.is_dir():
            raise TCNNError(f"Expected a folder of pictures, but {str(folder)!r} is not a folder.")
        paths = [path.removeprefix("./") for path in datasets.pictures(folder, ".")]
        images: Images = datasets.Files(folder, paths, ("",), np.zeros(len(paths), np.int64))
    else:
        images = _validated_on(contents, model)
    read = _read(take(images, count, seed=0), labelled=folder is None)
    if not (found := list(read)):
        where = "of the run" if folder is None else f"in {str(folder)!r}"
        raise TCNNError(f"Expected pictures {where} that can be read, but there is none.")
    return found


def _validated_on(contents: Contents, model: nn.Module) -> Images:
    if contents.demo is not None:
        size, seed = contents.demo["config"]["size"], contents.demo["seed"]
        return ArrayImages(split(digits(size), seed).test, "digit")
    data = contents.data
    if data is None or not data.root:
        raise TCNNError("Expected images that the run was validated on, but it was on none.")
    classes = origin(model).classes
    if data.holdout:
        return open_data(data, classes)[1]
    return open_validation(data, classes)


def _data(contents: Contents) -> DataConfig | None:
    if contents.demo is None:
        return contents.data
    size = contents.demo["config"]["size"]  # as the demonstration shows its digits
    return DataConfig(input_size=(1, size, size), mean=(0.0,), std=(1.0,))


def _read(images: Images, labelled: bool) -> Iterator[Picture]:
    for index in range(len(images)):
        label = images.classes[int(images.labels[index])] if labelled else None
        try:
            yield Picture(images.read(index), images.name(index), label)
        except UnreadableImage:
            continue
