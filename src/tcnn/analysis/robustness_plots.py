"""Robustness to figures: each function returns (figure, axes) and writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from tcnn.analysis.paper import NETWORKS
from tcnn.analysis.plots import ARM_COLOURS
from tcnn.errors import TCNNError

_INK = "#333333"
# Panel of `scatter_plot` → attribute of the paper's networks.
_PANELS = {
    "ImageNet-C": "imagenet_c",
    "ImageNet-A": "imagenet_a",
    "ImageNet-R": "imagenet_r",
    "FGSM": "fgsm",
}


def severity_plot(
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    severities: Sequence[int],
    standard: Collection[str],
    *,
    clean: Mapping[str, float] | None = None,
    title: str = "",
) -> tuple[Figure, npt.NDArray[Any]]:
    """Accuracy by severity: a panel for the mean over standard corruptions, then one for each.

    Args:
        curves: model → corruption → top-1 from 0 to 1 at each severity; the same corruptions for
            every model.
        severities: of the values.
        standard: names of the standard corruptions; the others are marked as extra, and are no part
            of the mean.
        clean: model → top-1 on clean images, drawn as a dashed line.
        title: what was measured, on how many images.

    Raises:
        TCNNError: the models have different corruptions, a curve has another length than
            `severities`, no corruption is a standard one, or a model lacks its clean top-1.
    """
    names = _common(curves, "corruptions")
    counted = [name for name in names if name in standard]
    lengths = {len(values) for model in curves.values() for values in model.values()}
    if lengths != {len(severities)} or not counted:
        raise TCNNError(
            f"Expected curves of {len(severities)} severities, some of standard corruptions, but "
            f"got curves of {sorted(lengths)} of {', '.join(names)}."
        )
    if clean is not None:
        _same(clean, curves, "clean")
    drawn = len(names) + 1
    rows = -(-drawn // 5)
    columns = -(-drawn // rows)
    figure = Figure(figsize=(max(6.0, 2.3 * columns + 0.6), 2.0 * rows + 1.2), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    titles = [f"mean of {len(counted)} standard", *(_title(name, standard) for name in names)]
    for axes, text in zip(panels.flat, titles, strict=False):
        axes.set_title(text, fontsize=9, fontweight="bold" if axes is panels.flat[0] else None)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", lw=0.8)
        axes.set_axisbelow(True)
    for index, (model, by_name) in enumerate(curves.items()):
        mean = np.mean([by_name[name] for name in counted], axis=0)
        for axes, values in zip(panels.flat, [mean, *map(by_name.get, names)], strict=False):
            colour = ARM_COLOURS[index]
            if clean is not None:
                axes.axhline(100 * clean[model], color=colour, lw=1, ls="--")
            axes.plot(severities, 100 * np.asarray(values), ".-", color=colour, label=model)
    for axes in panels.flat[drawn:]:
        axes.set_axis_off()
    for axes in panels.flat[drawn - columns : drawn]:  # the lowest of each column
        axes.set_xlabel("severity", fontsize=9)
        axes.tick_params(labelbottom=True)
    panels.flat[0].set_xticks(severities)
    panels.flat[0].set_ylim(0, min(100, 1.08 * panels.flat[0].get_ylim()[1]))
    figure.supylabel("top-1 accuracy (%)", fontsize=10)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    if clean is not None:
        handles, labels = [*handles, Line2D([], [], color=_INK, lw=1, ls="--")], [*labels, "clean"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, panels


def suites_plot(
    accuracy: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Mapping[str, float]],
    title: str = "",
) -> tuple[Figure, Axes]:
    """Bars of accuracy: one group for each suite, one bar in it for each model, 95 % whiskers.

    Args:
        accuracy: model → suite → top-1 from 0 to 1; the same suites for every model.
        errors: the standard errors, likewise; a whisker is 1.96 of them to either side.
        title: what was measured.

    Raises:
        TCNNError: the models, or their suites, are not the same everywhere.
    """
    suites = _common(accuracy, "suites")
    _same(errors, accuracy, "errors")
    for model in accuracy:
        _same(errors[model], accuracy[model], "errors")
    height = 0.8 / len(accuracy)
    figure = Figure(
        figsize=(7.5, 0.42 * len(suites) * (len(accuracy) + 0.6) + 1.5), layout="constrained"
    )
    axes = figure.add_subplot()
    for index, (model, values) in enumerate(accuracy.items()):
        centres = np.arange(len(suites)) + (index - (len(accuracy) - 1) / 2) * height
        widths = np.array([100 * values[suite] for suite in suites])
        whiskers = np.array([196 * errors[model][suite] for suite in suites])
        axes.barh(centres, widths, 0.94 * height, color=ARM_COLOURS[index], label=model)
        axes.errorbar(widths, centres, xerr=whiskers, fmt="none", ecolor=_INK, capsize=2, lw=1)
        for y, width, whisker in zip(centres, widths, whiskers, strict=True):
            axes.annotate(
                f"{width:.1f}", (width + whisker, y), (4, 0), textcoords="offset points",
                va="center", fontsize=8, color=_INK,
            )  # fmt: skip
    axes.set_yticks(range(len(suites)), suites)
    axes.set_ylim(len(suites) - 0.5, -0.5)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("top-1 accuracy (%), whiskers of 95 %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["bottom"].set_bounds(0, 100)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=len(accuracy), frameon=False)
    if title:
        axes.set_title(title, fontsize=11)
    return figure, axes


def scatter_plot(
    points: Mapping[str, Mapping[str, tuple[float, float]]], note: str, title: str = ""
) -> tuple[Figure, npt.NDArray[Any]]:
    """Robust against clean accuracy: the paper's two families as it has them, and ours beside.

    The paper's points are read off its figure, to about ±0.1. They are of ImageNet; `note` says
    what ours are of, for only on the same files are the two to be compared.

    Args:
        points: panel, of "ImageNet-C", "ImageNet-A", "ImageNet-R" and "FGSM" → our model →
            (clean, robust) top-1 from 0 to 1.
        note: the data of our points, such as "CIFAR-10, generated corruptions".
        title: of the figure.

    Raises:
        TCNNError: there is no panel, or one that the paper has not.

    Source: d'Ascoli, Sagun, Biroli, Morcos 2021 (arXiv 2106.05795) fig. 1.
    """
    if not points or not points.keys() <= _PANELS.keys():
        raise TCNNError(
            f"Expected panels of {', '.join(_PANELS)}, but got {', '.join(points) or 'none'}."
        )
    columns = 2 if len(points) == 4 else len(points)
    rows = len(points) // columns
    figure = Figure(figsize=(max(7.6, 4.2 * columns + 0.5), 3.8 * rows + 1.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, (panel, ours) in zip(panels.flat, points.items(), strict=True):
        for family, colour in (("ResNet-RS", ARM_COLOURS[0]), ("T-CNN", ARM_COLOURS[1])):
            networks = [network for network in NETWORKS if network.family == family]
            x = [network.clean for network in networks]
            y = [getattr(network, _PANELS[panel]) for network in networks]
            axes.plot(x, y, color=colour, lw=1.2, alpha=0.6)
            sizes = [0.8 * network.parameters for network in networks]
            axes.scatter(x, y, sizes, color=colour, edgecolors="white", lw=0.6, zorder=3)
        for index, (clean, robust) in enumerate(ours.values()):
            axes.plot(
                100 * clean, 100 * robust, "D", color=ARM_COLOURS[2 + index % 2], markersize=8,
                markeredgecolor=_INK, markeredgewidth=0.8, zorder=4,
            )  # fmt: skip
        axes.margins(0.12)
        _name(axes, ours)
        axes.set_title(panel, fontsize=11)
        axes.set_xlabel("clean top-1 (%)")
        axes.set_ylabel(f"{panel} top-1 (%)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#EEEEEE", lw=0.8)
        axes.set_axisbelow(True)
    style: dict[str, Any] = {"ls": "-", "marker": "o", "markersize": 8, "markeredgecolor": "white"}
    handles = [
        Line2D([], [], color=ARM_COLOURS[0], label="ResNet-RS, the paper's", **style),
        Line2D([], [], color=ARM_COLOURS[1], label="T-CNN, the paper's", **style),
        Line2D([], [], color="white", marker="D", markeredgecolor=_INK, label="ours"),
    ]
    # The note is the legend's title: nothing else is sure to leave room for the other.
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, title_fontsize=8.5,
        title=f"Ours: {note}.\nThe paper's: ImageNet, read off figure 1 of arXiv 2106.05795 "
        f"(±0.1); area by parameters, {min(n.parameters for n in NETWORKS)} to "
        f"{max(n.parameters for n in NETWORKS)} M.",
    )  # fmt: skip
    if title:
        figure.suptitle(title, fontsize=12)
    return figure, panels


def _name(axes: Axes, ours: Mapping[str, tuple[float, float]]) -> None:
    """Names beside our points, towards the middle: above the highest, below the others.

    Under all points, lest a name hide one.
    """
    middle = sum(axes.get_xlim()) / 200
    highest = max(ours, key=lambda model: ours[model][1], default=None)
    for model, (clean, robust) in ours.items():
        left = clean > middle
        axes.annotate(
            model, (100 * clean, 100 * robust), (-7 if left else 7, 7 if model == highest else -7),
            textcoords="offset points", ha="right" if left else "left",
            va="bottom" if model == highest else "top", fontsize=9, color=_INK, zorder=2.5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _title(name: str, standard: Collection[str]) -> str:
    return name.replace("_", " ") + ("" if name in standard else " (extra)")


def _common(models: Mapping[str, Mapping[str, Any]], what: str) -> list[str]:
    """Names that every model has."""
    if not 1 <= len(models) <= len(ARM_COLOURS):
        raise TCNNError(f"Expected 1 to {len(ARM_COLOURS)} models, but got {len(models)}.")
    first, *others = models.values()
    if not first or any(other.keys() != first.keys() for other in others):
        raise TCNNError(
            f"Expected the same {what} for every model, but got "
            f"{'; '.join(', '.join(model) or 'none' for model in models.values())}."
        )
    return list(first)


def _same(got: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    if got.keys() != expected.keys():
        raise TCNNError(
            f"Expected `{what}` for {', '.join(expected)}, but got {', '.join(got) or 'none'}."
        )
