"""Small plots as SVG, coloured by the page's style sheet so that they follow light and dark.

What tells lines and dots apart is never colour alone: lines have dashes of their own, dots shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tcnn.report.markup import number, tag, text

STYLES = 6  # colours and dashes of the style sheet: s0 … s5
_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 36
_ROW = 24


@dataclass(frozen=True)
class Line:
    """A line through points (x, y), in one of the styles."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int


@dataclass(frozen=True)
class Dot:
    """A value in a row, in one of the styles; `low` and `high` are the ends of its interval."""

    value: float
    style: int
    title: str
    low: float | None = None
    high: float | None = None


def lines(
    title: str, drawn: Sequence[Line], x_name: str, *, whole: tuple[float, float] | None = None
) -> str:
    """Lines over a common axis.

    Args:
        title: what the lines are, for who cannot see them.
        drawn: the lines.
        x_name: name of the horizontal axis.
        whole: range of the vertical axis; None is that of the points.
    """
    points = [point for line in drawn for point in line.points if math.isfinite(point[1])]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ticks = _ticks(*(whole or (min(ys), max(ys))))
    low, high = ticks[0], ticks[-1]
    first, last = min(xs), max(xs)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (y - low) / (high - low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    for tick in ticks:
        y = at(first, tick)[1]
        parts.append(_rule(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(_label(_LEFT - 6, y + 4, number(tick) or "", "end"))
    places = sorted(set(xs))
    stride = max(1, math.ceil(len(places) / 7))
    for x in places[::stride]:
        parts.append(_label(at(x, low)[0], _HEIGHT - _BOTTOM + 15, f"{x:g}", "middle"))
    parts.append(_label((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, x_name, "middle"))
    for line in drawn:
        path = " ".join("{:.1f},{:.1f}".format(*at(*p)) for p in line.points if math.isfinite(p[1]))
        name = tag("title", text(line.name))
        parts.append(tag("polyline", name, class_=f"line s{line.style % STYLES}", points=path))
        for x, y in line.points if len(line.points) < 12 else ():
            if math.isfinite(y):
                told = tag("title", text(f"{line.name}: {number(y)} at {x:g}"))
                parts.append(_mark(*at(x, y), line.style, told, 3))
    return _svg(title, _WIDTH, _HEIGHT, parts)


def rows(
    title: str, named: Sequence[tuple[str, Sequence[Dot]]], x_name: str, *, zero: bool = False
) -> str:
    """Dots in rows, with intervals where they have one.

    Args:
        title: what the dots are.
        named: the rows from the top, each with its name.
        x_name: name of the horizontal axis.
        zero: mark 0, and have it in view.
    """
    dots = [dot for _, row in named for dot in row]
    ends = [end for dot in dots for end in (dot.value, dot.low, dot.high) if end is not None]
    ends += [0.0] if zero else []
    ticks = _ticks(min(ends), max(ends))
    longest = max(len(name) for name, _ in named)
    left = min(150, 14 + 6.2 * min(longest, 22))
    height = _TOP + _ROW * len(named) + _BOTTOM

    def at(x: float) -> float:
        return left + (x - ticks[0]) / (ticks[-1] - ticks[0]) * (_WIDTH - left - _RIGHT)

    parts = []
    for tick in ticks:
        parts.append(_rule(at(tick), _TOP, at(tick), height - _BOTTOM, zero and tick == 0))
        parts.append(_label(at(tick), height - _BOTTOM + 15, number(tick) or "", "middle"))
    parts.append(_label((left + _WIDTH - _RIGHT) / 2, height - 4, x_name, "middle"))
    for index, (name, row) in enumerate(named):
        y = _TOP + _ROW * (index + 0.5)
        short = name if len(name) <= 22 else f"{name[:9]}…{name[-12:]}"
        parts.append(tag("g", tag("title", text(name)) + _label(left - 8, y + 4, short, "end")))
        for dot in row:
            if dot.low is not None and dot.high is not None:
                parts.append(
                    f'<line class="reach s{dot.style % STYLES}" x1="{at(dot.low):.1f}" '
                    f'x2="{at(dot.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                )
            told = tag("title", text(dot.title))
            parts.append(_mark(at(dot.value), y, dot.style, told, 4.5))
    return _svg(title, _WIDTH, height, parts)


def legend(names: Sequence[tuple[str, int]], dots: bool = False) -> str:
    """What the styles of lines, or of dots, stand for."""
    entries = []
    for name, style in names:
        drawing = (
            _mark(13, 7, style, "", 4.5)
            if dots
            else f'<line class="line s{style % STYLES}" x1="1" x2="25" y1="7" y2="7"/>'
        )
        picture = tag("svg", drawing, viewBox="0 0 26 14", width=26, height=14, aria_hidden="true")
        entries.append(tag("li", picture + text(name)))
    return tag("ul", "".join(entries), class_="legend")


def head_strip(shares: Sequence[float], kernel: tuple[int, int], reach: float, title: str) -> str:
    """The heads of a layer at their taps, each a square as strong as its content share is large.

    A positive share is a full square, a negative one has a bar across it.
    """
    side, parts = 10, []
    for index, share in enumerate(shares):
        row, column = divmod(index, kernel[1])
        x, y = column * side + 1, row * side + 1
        strength = min(1.0, abs(share) / reach)
        kind = "below" if share < 0 else "above"
        told = tag("title", text(f"tap ({row}, {column}): gate {1 - share:.3f}"))
        parts.append(
            f'<g>{told}<rect class="tap" x="{x}" y="{y}" width="8" height="8"/>'
            f'<rect class="{kind}" x="{x}" y="{y}" width="8" height="8" '
            f'fill-opacity="{strength:.2f}"/>'
        )
        if share < 0 and strength > 0.05:
            parts.append(f'<line class="bar" x1="{x + 1}" x2="{x + 7}" y1="{y + 4}" y2="{y + 4}"/>')
        parts.append("</g>")
    width, height = kernel[1] * side, kernel[0] * side
    return _svg(title, width, height, parts, class_="strip", width=2 * width, height=2 * height)


def _svg(title: str, across: float, down: float, parts: list[str], **attributes: object) -> str:
    given: dict[str, object] = {"class_": "plot", **attributes}
    box = f"0 0 {across:g} {down:g}"
    return tag("svg", "".join(parts), viewBox=box, role="img", aria_label=title, **given)


def _rule(x1: float, y1: float, x2: float, y2: float, strong: bool = False) -> str:
    kind = "rule strong" if strong else "rule"
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _label(x: float, y: float, words: str, anchor: str) -> str:
    return tag("text", text(words), x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _mark(x: float, y: float, style: int, content: str, r: float) -> str:
    """A circle, diamond or square, by the style."""
    kind = f"dot s{style % STYLES}"
    if style % 3 == 0:
        return tag("circle", content, class_=kind, cx=f"{x:.1f}", cy=f"{y:.1f}", r=r)
    if style % 3 == 1:
        path = f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:g} {1.3 * r:g}l{-1.3 * r:g} {1.3 * r:g}"
        return tag("path", content, class_=kind, d=f"{path}l{-1.3 * r:g} {-1.3 * r:g}z")
    return tag("rect", content, class_=kind, x=f"{x - r:.1f}", y=f"{y - r:.1f}", width=2 * r,
               height=2 * r)  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that reach over a range."""
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
