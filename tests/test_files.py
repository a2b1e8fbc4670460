"""Files that appear whole or not at all, folders that can be written to, and provenance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tcnn
from tcnn.files import make_folder, write_json, write_whole
from tcnn.provenance import provenance


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")

    def half(file: Path) -> None:
        file.write_text("hal")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_whole(path, half)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, lambda file: file.write_text("after"))
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_plain_and_keeps_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"α": [1, 2.5, None]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "α" in text
    assert json.loads(text) == {"α": [1, 2.5, None]}


def test_folders(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(tcnn.TCNNError, match="can be written to"):
            make_folder(tmp_path / place)


def test_provenance_names_versions_and_machine() -> None:
    found = provenance()
    assert found["versions"]["tcnn"] == tcnn.__version__
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["hardware"]["threads"] == torch.get_num_threads()
    assert found["hardware"]["processor"]
