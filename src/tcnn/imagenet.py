"""ImageNet-1k's classes and what other sets take of them, from the lists that timm ships."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources


@cache
def wnids() -> tuple[str, ...]:
    """WordNet ids of the 1000 classes in the standard order, the one that networks answer in."""
    return _lines("imagenet_synsets.txt")


@cache
def wnids_a() -> tuple[str, ...]:
    """The 200 classes of ImageNet-A, in the standard order."""
    return _lines("imagenet_a_synsets.txt")


@cache
def wnids_r() -> tuple[str, ...]:
    """The 200 classes of ImageNet-R, in the standard order."""
    return _lines("imagenet_r_synsets.txt")


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """ImageNet-ReaL's labels of the 50,000 validation images, in the order of their numbers.

    They are places in `wnids`; an image can have several, or none.

    Source: L. Beyer et al., "Are we done with ImageNet?", arXiv 2006.07159.
    """
    return tuple(tuple(labels) for labels in json.loads(_text("imagenet_real_labels.json")))


def _lines(name: str) -> tuple[str, ...]:
    return tuple(_text(name).split())


def _text(name: str) -> str:
    return (resources.files("timm") / "data" / "_info" / name).read_text("utf-8")
