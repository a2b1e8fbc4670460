"""Aligned text."""

from __future__ import annotations

import pytest

from tcnn.tables import text_table


def test_alignment() -> None:
    table = text_table(("name", "n", "x"), [("a", 1, 0.5), ("long name", 1000, None)])
    assert table == (
        "name          n    x\n"
        "---------  ----  ---\n"
        "a             1  0.5\n"
        "long name  1000    -"
    )  # fmt: skip


def test_rows_of_another_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="rows of 2 cells, but got 1"):
        text_table(("a", "b"), [("x",)])
