"""HTML in pieces; whatever comes from outside is escaped here."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any


def text(value: object) -> str:
    """Text as HTML shows it."""
    return html.escape(str(value), quote=True)


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element around HTML; `class_` and `aria_label` are spelled class and aria-label."""
    words = [
        name,
        *(f'{k.strip("_").replace("_", "-")}="{text(v)}"' for k, v in attributes.items()),
    ]
    return f"<{' '.join(words)}>{content}</{name}>"


def script_json(value: Any) -> str:
    """JSON to stand in a <script> element, which no text in it can end."""
    dumped = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in ("<", ">", "&", "\u2028", "\u2029"):
        dumped = dumped.replace(sign, f"\\u{ord(sign):04x}")
    return dumped.encode("utf-8", "replace").decode("utf-8")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose first column names the rows; numbers to the right, None as a dash."""
    head = "".join(tag("th", text(header), scope="col") for header in headers)
    lines = []
    for first, *others in rows:
        cells = [tag("th", text(first), scope="row"), *map(_cell, others)]
        lines.append(tag("tr", "".join(cells)))
    whole = tag("thead", tag("tr", head)) + tag("tbody", "".join(lines))
    return tag("div", tag("table", whole), class_="scroll", tabindex=0, role="group",
               aria_label="Table")  # fmt: skip


def folded(summary: str, content: str) -> str:
    """HTML behind a line that opens it."""
    return tag("details", tag("summary", text(summary)) + content)


def figure(title: str, drawing: str, behind: str, note: str = "") -> str:
    """A drawing with its title, a note, and the table behind it."""
    caption = tag("figcaption", tag("strong", text(title)) + (f" {text(note)}" if note else ""))
    return tag("figure", caption + drawing + folded("Table", behind))


def percent(share: float | None) -> str | None:
    """A share as percent with one decimal."""
    return None if share is None else f"{100 * share:.1f} %"


def number(value: float | None) -> str | None:
    """A number in three digits, with the minus sign of print."""
    return None if value is None else f"{value:.3g}".replace("-", "\u2212")


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, with the minus sign of print."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _cell(value: object) -> str:
    if value is None:
        return tag("td", "\u2013")
    if isinstance(value, float):
        value = number(value)
    return tag("td", text(value))
