"""Rows to aligned text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def text_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay `rows` out under `headers`: numbers to the right, the rest to the left, None as "-".

    Raises:
        ValueError: a row has another length than the headers.
    """
    body = [list(row) for row in rows]
    for row in body:
        if len(row) != len(headers):
            raise ValueError(f"Expected rows of {len(headers)} cells, but got {len(row)}: {row!r}.")
    numeric = [
        any(isinstance(row[i], int | float) for row in body)
        and all(row[i] is None or isinstance(row[i], int | float) for row in body)
        for i in range(len(headers))
    ]
    cells = [list(headers), *([_cell(value) for value in row] for row in body)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay `rows` out under `headers` as a table of Markdown; None as "-"."""
    lines = [headers, ["---"] * len(headers), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_text(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The rows as comma-separated values, in full precision; None is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows(rows)
    return stream.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)
