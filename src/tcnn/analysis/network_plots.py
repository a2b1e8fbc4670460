"""Figures of whole networks: each function returns (figure, axes) and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tcnn.analysis.masking import MaskingResult
from tcnn.analysis.plots import ARM_COLOURS
from tcnn.analysis.similarity import CKAResult

_INK = "#333333"
_MOST_NAMES = 30  # layers along an axis whose names are all legible
_KINDS = {"position only": ARM_COLOURS[0], "content only": ARM_COLOURS[1],
          "head ablated": ARM_COLOURS[2]}  # fmt: skip


def cka_plot(
    result: CKAResult, names: tuple[str, str] = ("a", "b"), title: str = ""
) -> tuple[Figure, Axes]:
    """CKA of each layer of the first network with each of the second; grey where there is none.

    Args:
        result: what was measured.
        names: of the two networks.
        title: of the figure.
    """
    matrix = np.array(result.matrix, dtype=float)
    rows, columns = matrix.shape
    side = 0.24
    figure = Figure(
        figsize=(
            min(11.0, max(4.8, side * columns + 3)), min(10.0, max(4.0, side * rows + 2.2))
        ),
        layout="constrained",
    )  # fmt: skip
    axes = figure.add_subplot()
    axes.set_facecolor("#BBBBBB")
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap="viridis", vmin=0, vmax=1)
    for axis, layers in ((axes.xaxis, result.layers_b), (axes.yaxis, result.layers_a)):
        step = -(-len(layers) // _MOST_NAMES)
        axis.set_ticks(range(0, len(layers), step), layers[::step], fontsize=8)
    axes.tick_params(axis="x", rotation=90)
    axes.set_ylabel(names[0])
    axes.set_xlabel(names[1])
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("linear CKA")
    axes.set_title(title or f"{result.images} images in batches of {_sizes(result)}", fontsize=11)
    return figure, axes


def _sizes(result: CKAResult) -> str:
    mean = result.images / result.batches
    return f"{mean:.0f}" if mean.is_integer() else f"about {mean:.0f}"


def rollout_plot(
    images: Sequence[npt.NDArray[Any]], maps: Tensor, titles: Sequence[str], title: str = ""
) -> tuple[Figure, npt.NDArray[Any]]:
    """Images above, and below each its attention rollout.

    Each map has its own scale, from 0 (dark) to its largest weight, and says so below.

    Args:
        images: (H, W) or (H, W, 3), to be shown as they are.
        maps: weights over the image's area, (B, h, w): the mean over queries of
            `rollout.attention_rollout`, for one.
        titles: over the images.
        title: of the figure.
    """
    figure = Figure(figsize=(max(3.4, 1.9 * len(images) + 0.3), 4.7), layout="constrained")
    panels = figure.subplots(2, len(images), squeeze=False)
    shown = zip(panels.T, images, maps.detach().cpu().numpy(), titles, strict=True)
    for (above, below), image, weights, text in shown:
        above.imshow(image, cmap="gray", vmin=0, vmax=255)
        above.set_title(text, fontsize=9)
        below.imshow(weights, cmap="viridis", vmin=0)
        below.set_xlabel(f"0 to {weights.max():.3f}", fontsize=8)
        for axes in (above, below):
            axes.set_xticks([])
            axes.set_yticks([])
    figure.suptitle(title or "Attention rollout, mean over queries", fontsize=12)
    return figure, panels


def masking_plot(result: MaskingResult, most: int = 24, title: str = "") -> tuple[Figure, Axes]:
    """Change of top-1 by mask, ranked: a bar with its 95 % interval.

    Args:
        result: what was measured.
        most: masks that are shown: all that take more than one head, then the heads whose loss of
            them changes most. What is left out is said.
        title: of the figure.
    """
    wide = [score for score in result.scores if score.mask.kind != "head ablated"]
    heads = [score for score in result.scores if score.mask.kind == "head ablated"]
    kept = sorted(heads, key=lambda score: -abs(score.change))[: max(0, most - len(wide))]
    shown = [score for score in result.scores if score in wide or score in kept]
    figure = Figure(figsize=(8.0, 0.28 * len(shown) + 1.9), layout="constrained")
    axes = figure.add_subplot()
    for row, score in enumerate(shown):
        axes.barh(row, 100 * score.change, 0.7, color=_KINDS[score.mask.kind])
        axes.plot((100 * score.low, 100 * score.high), (row, row), color=_INK, lw=1.3)
    axes.axvline(0, color=_INK, lw=1)
    axes.set_yticks(range(len(shown)), [str(score.mask) for score in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        f"change of top-1 in points, from {100 * result.top1:.1f} % on {result.images} images"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#DDDDDD", lw=0.8)
    axes.set_axisbelow(True)
    left_out = len(heads) - len(kept)
    note = f" ({left_out} heads that matter less are not shown)" if left_out else ""
    axes.set_title((title or "Masked attention") + note, fontsize=11)
    return figure, axes
