"""Measures to figures: each function returns (figure, axes) and writes nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Okabe and Ito's colours, which people with any colour vision can tell apart.
ARM_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
_INK = "#333333"


def accuracy_plot(
    accuracy: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Mapping[str, float]] | None = None,
    title: str = "",
) -> tuple[Figure, Axes]:
    """Bars of accuracy: one group for each condition, one bar in it for each arm.

    Args:
        accuracy: arm → condition ("clean", a corruption, …) → accuracy from 0 to 1; the same
            conditions for every arm.
        errors: the standard errors, likewise, drawn as whiskers.
        title: what was measured, on how many images.
    """
    conditions = list(next(iter(accuracy.values())))
    figure = Figure(figsize=(max(6.0, 1.4 * len(conditions) + 1.5), 4.5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(accuracy)
    for index, (arm, values) in enumerate(accuracy.items()):
        left = np.arange(len(conditions)) + (index - (len(accuracy) - 1) / 2) * width
        heights = np.array([100 * values[condition] for condition in conditions])
        whiskers = np.zeros_like(heights)
        if errors is not None:
            whiskers = np.array([100 * errors[arm][condition] for condition in conditions])
        axes.bar(left, heights, 0.94 * width, color=ARM_COLOURS[index], label=arm)
        if errors is not None:
            axes.errorbar(left, heights, whiskers, fmt="none", ecolor=_INK, capsize=2, lw=1)
        for x, height, whisker in zip(left, heights, whiskers, strict=True):
            axes.annotate(
                f"{height:.1f}", (x, height + whisker), (0, 2), textcoords="offset points",
                ha="center", fontsize=8, color=_INK,
            )  # fmt: skip
    axes.set_xticks(range(len(conditions)), [re.sub("[_ ]", "\n", name) for name in conditions])
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["left"].set_bounds(0, 100)
    axes.tick_params(axis="x", length=0)
    figure.legend(loc="outside lower center", ncols=len(accuracy), frameon=False)
    if title:
        axes.set_title(title, fontsize=11)
    return figure, axes


def curves_plot(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Figure, npt.NDArray[Any]]:
    """Learning curves: loss, validation accuracy and, for hybrids, the mean |content share|.

    Args:
        runs: name → epochs, each with train_loss, val_loss, val_top1 and mean_content_share (None
            for a network without recast layers).
    """
    hybrids = any(epoch["mean_content_share"] is not None for run in runs.values() for epoch in run)
    figure = Figure(figsize=(13.5 if hybrids else 9.0, 4.2), layout="constrained")
    panels = figure.subplots(1, 3 if hybrids else 2)
    for index, (name, epochs) in enumerate(runs.items()):
        colour = ARM_COLOURS[index % len(ARM_COLOURS)]
        dashes = ("-", "--", ":", "-.")[index // len(ARM_COLOURS) % 4]
        x = range(1, len(epochs) + 1)
        style: dict[str, Any] = {"ls": dashes, "marker": "." if len(epochs) < 30 else None}
        if len(runs) == 1:
            panels[0].plot(x, [e["train_loss"] for e in epochs], color=ARM_COLOURS[1],
                           label="training", **style)  # fmt: skip
            panels[0].plot(x, [e["val_loss"] for e in epochs], color=colour, label="validation",
                           **style)  # fmt: skip
        else:
            panels[0].plot(x, [e["val_loss"] for e in epochs], color=colour, label=name, **style)
        panels[1].plot(x, [100 * e["val_top1"] for e in epochs], color=colour, **style)
        if hybrids and epochs and epochs[0]["mean_content_share"] is not None:
            panels[2].plot(x, [e["mean_content_share"] for e in epochs], color=colour, **style)
    titles = ["loss" if len(runs) == 1 else "validation loss", "validation top-1 (%)",
              "mean |content share| of the heads"]  # fmt: skip
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    if hybrids:
        panels[2].set_ylim(0, 1.05 * max(0.01, panels[2].get_ylim()[1]))
    figure.legend(loc="outside lower center", ncols=min(4, max(2, len(runs))), frameon=False)
    return figure, panels


def differences_plot(
    differences: Mapping[str, Mapping[str, tuple[float, float | None, float | None]]],
    accuracy: Mapping[str, Mapping[str, float]],
    control: str,
) -> tuple[Figure, npt.NDArray[Any]]:
    """Each arm against the control: a dot for the difference, a line for its interval, one panel
    for each measure; the accuracy itself stands at the right.

    Args:
        differences: arm → measure → (mean, low, high) in points; None for an unknown end.
        accuracy: arm → measure → accuracy from 0 to 1, of the control too.
        control: name of the arm that all are held against.
    """
    measures = list(next(iter(differences.values())))
    figure = Figure(
        figsize=(4.0 * len(measures) + 1.5, 0.45 * len(accuracy) + 1.6), layout="constrained"
    )
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    arms = list(accuracy)
    for axes, measure in zip(panels, measures, strict=True):
        axes.axvline(0, color=_INK, lw=1)
        for row, arm in enumerate(arms):
            mean, low, high = differences.get(arm, {}).get(measure, (0.0, None, None))
            ends = (mean if low is None else low, mean if high is None else high)
            sure = low is not None and (ends[0] > 0 or ends[1] < 0)
            colour = _INK if arm == control else ARM_COLOURS[0] if sure else "#888888"
            axes.plot(ends, (row, row), color=colour, lw=2.5, solid_capstyle="round")
            axes.plot(mean, row, "o", color=colour, markersize=6)
            axes.annotate(
                f"{100 * accuracy[arm][measure]:.1f} %", (1.02, row),
                xycoords=("axes fraction", "data"), va="center", fontsize=9, color=_INK,
            )  # fmt: skip
        axes.set_title(measure, fontsize=11)
        axes.set_xlabel(f"points of top-1 against {control}")
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color="#DDDDDD", lw=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def gate_plot(
    gates: Mapping[str, Tensor], kernel_sizes: Mapping[str, tuple[int, int]]
) -> tuple[Figure, npt.NDArray[Any]]:
    """The gate of each head, drawn where its tap lies in the kernel, one panel for each layer.

    Args:
        gates: layer → g, (heads,): 1 attends by position alone, 0 by content alone.
        kernel_sizes: layer → (Kh, Kw).
    """
    columns = min(4, len(gates))
    rows = -(-len(gates) // columns)
    figure = Figure(figsize=(2.6 * columns + 1.4, 2.8 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    reach = max(0.01, *(float((1 - gate).abs().max()) for gate in gates.values()))
    for axes in panels.flat[len(gates) :]:
        axes.set_axis_off()
    for axes, (name, gate) in zip(panels.flat, gates.items(), strict=False):
        taps = gate.detach().cpu().double().reshape(kernel_sizes[name]).numpy()
        # Centred on 1, the convolution: it is white, and the two ways to leave it differ in hue.
        image = axes.imshow(taps, cmap="PuOr_r", vmin=1 - reach, vmax=1 + reach)
        for (row, column), value in np.ndenumerate(taps):
            dark = abs(value - 1) > 0.6 * reach
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=9,
                color="white" if dark else "black",
            )  # fmt: skip
        axes.set_title(name, fontsize=10)
        axes.set_xticks(range(taps.shape[1]))
        axes.set_yticks(range(taps.shape[0]))
        axes.tick_params(length=0)
        axes.set_xlabel("kernel column")
        axes.set_ylabel("kernel row")
    bar = figure.colorbar(image, ax=panels, shrink=0.8)
    bar.set_label("gate (1 = the convolution)")
    figure.suptitle("Gate of each head, at its kernel tap", fontsize=12)
    return figure, panels


@dataclass(frozen=True)
class AttentionRow:
    """One image, one of its pixels, and where heads look from there.

    Attributes:
        image: (H, W) or (H, W, 3), to be shown as it is.
        query: row and column of the query's centre, as shares of the image's height and width.
        maps: attention of each head from there, (heads, h, w), not below 0.
    """

    image: npt.NDArray[Any]
    query: tuple[float, float]
    maps: Tensor


def attention_plot(
    rows: Sequence[AttentionRow], titles: Sequence[str], title: str = ""
) -> tuple[Figure, npt.NDArray[Any]]:
    """Each image with its query marked, and beside it one map for each head.

    Every map has its own scale, from 0 (dark) to its largest weight, and says so below.

    Args:
        rows: the images and maps.
        titles: names of the heads, over the columns.
        title: of the figure.
    """
    figure = Figure(
        figsize=(1.7 * (len(titles) + 1) + 0.3, 1.95 * len(rows) + 0.9), layout="constrained"
    )
    panels = figure.subplots(len(rows), len(titles) + 1, squeeze=False)
    for row, line in zip(rows, panels, strict=True):
        height, width = row.image.shape[:2]
        line[0].imshow(row.image, cmap="gray", vmin=0, vmax=255)
        _mark(line[0], row.query, (height, width))
        for axes, weights in zip(line[1:], row.maps.detach().cpu().numpy(), strict=True):
            axes.imshow(weights, cmap="viridis", vmin=0)
            _mark(axes, row.query, weights.shape)
            axes.set_xlabel(f"0 to {weights.max():.3f}", fontsize=8)
        for axes in line:
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, text in zip(panels[0], ["image and query", *titles], strict=True):
        axes.set_title(text, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure, panels


def _mark(axes: Axes, query: tuple[float, float], size: tuple[int, int]) -> None:
    """A cross at the query, legible on dark and on light."""
    y, x = query[0] * size[0] - 0.5, query[1] * size[1] - 0.5
    axes.plot(x, y, "+", color="black", markersize=11, markeredgewidth=3.5)
    axes.plot(x, y, "+", color="#D55E00", markersize=10, markeredgewidth=1.8)
