"""Content attention by one path, whatever the sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from tcnn import content, content_blocks, content_tiles

PATHS = ["dense", "blocks", "tiles"]


@contextmanager
def forced(path: str, block: int | None = None) -> Iterator[None]:
    """Take a path wherever it can be taken, in blocks of so many entries.

    Queries that are anchored beyond the image have no tiles; blocks stand in for them.
    """

    def choose(*, tiles: bool, **_: Any) -> str:
        return path if tiles or path != "tiles" else "blocks"

    blocks = content_blocks._BLOCK_ELEMENTS if block is None else block
    tiles = content_tiles._BLOCK_ELEMENTS if block is None else block
    with (
        mock.patch.object(content, "choose_path", choose),
        mock.patch.object(content, "_TILE_SHARE", 0 if path == "tiles" else content._TILE_SHARE),
        mock.patch.object(content_blocks, "_BLOCK_ELEMENTS", blocks),
        mock.patch.object(content_tiles, "_BLOCK_ELEMENTS", tiles),
    ):
        yield
