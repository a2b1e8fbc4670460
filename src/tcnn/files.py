"""Files and folders: written whole or not at all, and known to be writable before the work."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tcnn.errors import TCNNError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place, then move it there, so that it is never half there.

    Args:
        path: the file; its folder is there.
        write: called with the path to write to, of the same name.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as passing:
        file = Path(passing) / path.name
        write(file)
        # So that a power cut cannot leave the name without content.
        with file.open("r+b") as written:
            os.fsync(written.fileno())
        file.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write text, whole or not at all; what is no Unicode (in names of files) is escaped."""
    write_whole(path, lambda file: file.write_bytes(text.encode("utf-8", "backslashreplace")))


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def make_folder(folder: Path) -> None:
    """Make a folder, if it is not there, and see that it can be written to.

    Raises:
        TCNNError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise TCNNError(
            f"Expected a folder that can be written to, but {str(folder)!r} says: "
            f"{error.strerror}. Give another folder."
        ) from error


def clear_leftovers(folder: Path) -> None:
    """Remove what writes that were cut short left in a folder, by `write_whole` or by `save`."""
    for name in (".writing-*", ".saving-*"):
        for leftover in folder.glob(name):
            shutil.rmtree(leftover, ignore_errors=True)
