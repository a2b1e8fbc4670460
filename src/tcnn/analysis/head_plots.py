"""Figures of a hybrid's heads: each function returns (figure, axes) and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import MaxNLocator

from tcnn.analysis.gate_history import GateHistory
from tcnn.analysis.heads import HeadsReport
from tcnn.analysis.plots import ARM_COLOURS
from tcnn.analysis.positions import HeadPosition, PositionsReport

_INK, _FAINT = "#333333", "#888888"
_DISTANCES = (  # attribute, name, colour, marker
    ("position_distance", "position", ARM_COLOURS[0], "s"),
    ("content_distance", "content", ARM_COLOURS[1], "^"),
    ("attention_distance", "mixed by the gates", ARM_COLOURS[2], "o"),
)


def distance_plot(report: HeadsReport, title: str = "") -> tuple[Figure, Axes]:
    """Attention distance by depth: a point for each head, a line through each layer's mean, for
    position, content and their mixture."""
    figure, axes = _depth_axes(report)
    for index, (attribute, label, colour, marker) in enumerate(_DISTANCES):
        shift = 0.18 * (index - 1)
        _by_depth(axes, report, attribute, colour, marker, label, shift)
    axes.set_ylabel("attention distance (pixels of the layer)")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    axes.set_title(title or "How far heads look, by depth", fontsize=11)
    return figure, axes


def entropy_plot(report: HeadsReport, title: str = "") -> tuple[Figure, Axes]:
    """Entropy of the content attention by depth: a point for each head, a line through each layer's
    mean, and the most that it can be, ln(pixels)."""
    figure, axes = _depth_axes(report)
    _by_depth(axes, report, "content_entropy", ARM_COLOURS[1], "^", "content", 0.0)
    for place, heads in enumerate(report.layers.values()):
        most = np.log(heads[0].pixels)
        axes.plot(
            (place - 0.35, place + 0.35), (most, most), color=_INK, lw=1.2, ls="--",
            label="" if place else "all pixels alike: ln(pixels)",
        )  # fmt: skip
    axes.set_ylabel("entropy of content attention (nats)")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.set_title(title or "How widely heads look at content, by depth", fontsize=11)
    return figure, axes


def gate_history_plot(history: GateHistory, title: str = "") -> tuple[Figure, npt.NDArray[Any]]:
    """Gates through training, one panel for each layer: a thin line for each head, a thick one for
    their mean."""
    figure, panels = _panels(len(history.gates), width=2.9, height=2.3)
    for axes, (layer, rows) in zip(panels.flat, history.gates.items(), strict=False):
        values = np.array(rows)
        axes.axhline(1, color=_INK, lw=1, ls="--")
        axes.plot(history.epochs, values, color=ARM_COLOURS[0], lw=0.8, alpha=0.5)
        marker = "." if len(rows) == 1 else None
        axes.plot(history.epochs, values.mean(axis=1), color=ARM_COLOURS[1], lw=2.2, marker=marker)
        axes.set_title(layer, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    reach = max(0.05, *(abs(1 - np.array(rows)).max() for rows in history.gates.values()))
    for axes in panels.flat[: len(history.gates)]:
        axes.set_ylim(1 - 1.08 * reach, 1 + 1.08 * reach)
    handles = [
        Line2D([], [], color=ARM_COLOURS[0], lw=0.8, label="heads"),
        Line2D([], [], color=ARM_COLOURS[1], lw=2.2, label="their mean"),
        Line2D([], [], color=_INK, lw=1, ls="--", label="the convolution"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    _label(panels, len(history.gates), "epoch", "gate")
    figure.suptitle(title or "Gates through training", fontsize=12)
    return figure, panels


def positions_plot(report: PositionsReport, title: str = "") -> tuple[Figure, npt.NDArray[Any]]:
    """Where each head looks by position, over the kernel grid, one panel for each layer.

    A square is a kernel tap, a dot the head's centre with a line from its tap, a circle its width
    σ; a cross marks the tap of a head without a centre, a plus the query.
    """
    layers = report.layers
    figure, panels = _panels(len(layers), width=2.7, height=2.9)
    for axes, (layer, heads) in zip(panels.flat, layers.items(), strict=False):
        _draw_positions(axes, heads)
        axes.set_title(layer, fontsize=10)
    handles = [
        Line2D([], [], color=_FAINT, marker="s", mfc="none", ls="", ms=9, label="kernel tap"),
        Line2D([], [], color=ARM_COLOURS[0], marker="o", label="centre, from its tap"),
        Line2D([], [], color=ARM_COLOURS[1], marker="o", mfc="none", ls="", ms=11, label="width σ"),
        Line2D([], [], color=_INK, marker="+", ls="", ms=10, label="query"),
    ]
    if any(head.centre is None for head in report.heads):
        cross = Line2D([], [], color="#D55E00", marker="x", ls="", ms=8, label="no centre")
        handles.append(cross)
    columns = 5 if panels.shape[1] > 2 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    _label(panels, len(layers), "columns from the query", "rows from the query")
    figure.suptitle(title or "Centre and width of each head", fontsize=12)
    return figure, panels


def _draw_positions(axes: Axes, heads: Sequence[HeadPosition]) -> None:
    points = [head.start for head in heads] + [(0.0, 0.0)]
    for head in heads:
        (y, x), style = head.start, {"fill": False, "edgecolor": _FAINT}
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **style))  # type: ignore[arg-type]
        if head.centre is None or head.width is None:
            axes.plot(x, y, "x", color="#D55E00", ms=8, mew=2)
            continue
        row, column = head.centre
        axes.plot((x, column), (y, row), color=ARM_COLOURS[0], lw=1.5)
        axes.plot(column, row, "o", color=ARM_COLOURS[0], ms=4)
        circle = Circle((column, row), head.width, fill=False, edgecolor=ARM_COLOURS[1], lw=1.3)
        axes.add_patch(circle)
        points += [(row - head.width, column - head.width), (row + head.width, column + head.width)]
    axes.plot(0, 0, "+", color=_INK, ms=10, mew=1.5)
    low, high = np.min(points, axis=0) - 0.3, np.max(points, axis=0) + 0.3
    axes.update_datalim([low[::-1], high[::-1]])
    axes.autoscale_view()
    axes.invert_yaxis()  # rows run down
    axes.set_aspect("equal", adjustable="datalim")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def _panels(count: int, width: float, height: float) -> tuple[Figure, npt.NDArray[Any]]:
    """A figure with as many panels, the spare ones off."""
    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(
        figsize=(max(4.6, width * columns + 0.6), height * rows + 1.3), layout="constrained"
    )
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[count:]:
        axes.set_axis_off()
    return figure, panels


def _label(panels: npt.NDArray[Any], count: int, x: str, y: str) -> None:
    """Name the axes of the lowest panel of each column, and of the first of each row."""
    for axes in panels.flat[max(0, count - panels.shape[1]) : count]:
        axes.set_xlabel(x, fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel(y, fontsize=9)


def _depth_axes(report: HeadsReport) -> tuple[Figure, Axes]:
    """Axes with the layers along them."""
    layers = report.layers
    figure = Figure(figsize=(max(6.0, 0.75 * len(layers) + 2), 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xticks(range(len(layers)), list(layers), rotation=35, ha="right", fontsize=9)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _by_depth(
    axes: Axes,
    report: HeadsReport,
    attribute: str,
    colour: str,
    marker: str,
    label: str,
    shift: float,
) -> None:
    means = []
    for place, heads in enumerate(report.layers.values()):
        values = [getattr(head, attribute) for head in heads]
        means.append(np.mean(values))
        axes.plot(
            np.full(len(values), place + shift), values, marker, color=colour, ms=4, alpha=0.45,
            mew=0,
        )  # fmt: skip
    axes.plot(
        np.arange(len(means)) + shift, means, marker=marker, color=colour, lw=2, ms=7, label=label
    )
