"""Plots of the analysis: they draw what was measured, and every text lies inside the figure."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from tcnn.analysis import head_plots, network_plots
from tcnn.analysis.gate_history import GateHistory
from tcnn.analysis.heads import HeadFigures, HeadsReport
from tcnn.analysis.masking import Mask, MaskingResult, MaskScore
from tcnn.analysis.positions import HeadPosition, PositionsReport
from tcnn.analysis.similarity import CKAResult


@pytest.fixture(autouse=True)
def no_disk_and_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plot wrote to disk or opened a window")

    monkeypatch.setattr(Figure, "savefig", refuse)
    monkeypatch.setattr(Figure, "show", refuse)


def drawn(figure: Figure) -> set[str]:
    """Texts of a figure, each of which must lie inside it; axes' labels and legends apart."""
    FigureCanvasAgg(figure).draw()
    edges = figure.bbox
    unseen = {  # ticks beyond the limits of their axis, which are not drawn
        tick.label1
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]
    texts = [text for text in texts if text not in unseen]
    for text in texts:
        box = text.get_window_extent()
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= edges.x1 + 1 and box.y1 <= edges.y1 + 1
        assert inside, text.get_text()
    for legend in figure.legends:
        box = legend.get_window_extent()
        for axes in figure.axes:
            if axes.axison:
                assert not box.overlaps(axes.xaxis.label.get_window_extent()), "legend on label"
    return {text.get_text() for text in texts}


def report(layers: int) -> HeadsReport:
    figures = HeadFigures("", (0, 0), 0.5, 0.5, 1.0, 4.0, 2.5, 3.0, 0.2, 0.6, 0.4, 0.3, 64)
    return HeadsReport(
        tuple(
            replace(figures, layer=f"layer4.{i}.conv2", tap=(0, b), content_distance=4.0 + b + i)
            for i in range(layers)
            for b in range(3)
        )
    )


@pytest.mark.parametrize("layers", [1, 3, 16])
def test_distance_plot(layers: int) -> None:
    figure, axes = head_plots.distance_plot(report(layers))
    lines = {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
    assert set(lines) == {"position", "content", "mixed by the gates"}
    assert lines["content"].get_ydata().tolist() == [5.0 + i for i in range(layers)]
    assert lines["position"].get_ydata().tolist() == [1.0] * layers
    assert {"layer4.0.conv2", "attention distance (pixels of the layer)"} <= drawn(figure)
    assert "A title" in drawn(head_plots.distance_plot(report(2), "A title")[0])


@pytest.mark.parametrize("layers", [1, 3, 16])
def test_entropy_plot(layers: int) -> None:
    figure, axes = head_plots.entropy_plot(report(layers))
    most = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert most == pytest.approx([math.log(64)] * layers)
    assert axes.get_ylim()[1] >= math.log(64)
    assert "all pixels alike: ln(pixels)" in drawn(figure)


@pytest.mark.parametrize("layers", [1, 2, 5, 9])
def test_gate_history_plot(layers: int) -> None:
    gates = {f"layer{i}": ((1.0, 0.8), (1.4, 0.2)) for i in range(layers)}
    figure, panels = head_plots.gate_history_plot(GateHistory((1, 2), gates))
    axes = panels.flat[layers - 1]
    assert [line.get_ydata().tolist() for line in axes.lines[1:]] == [
        [1.0, 1.4], [0.8, 0.2], [pytest.approx(0.9), pytest.approx(0.8)]
    ]  # fmt: skip
    low, high = axes.get_ylim()
    assert low < 0.2 and high > 1.4
    assert {"heads", "their mean", "epoch", "gate", f"layer{layers - 1}"} <= drawn(figure)
    assert sum(axes.axison for axes in panels.flat) == layers


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_positions_plot(layers: int) -> None:
    head = HeadPosition("", (0, 0), (-1.0, 0.0), (-3.0, 2.0), 0.5, 1.0)
    heads = [
        replace(h, layer=f"layer{i}")
        for i in range(layers)
        for h in (head, replace(head, tap=(0, 1), start=(1.0, 0.0), centre=None, width=None))
    ]
    figure, panels = head_plots.positions_plot(PositionsReport(tuple(heads)))
    axes = panels.flat[0]
    circles = [patch for patch in axes.patches if isinstance(patch, Circle)]
    squares = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [(c.center, c.radius) for c in circles] == [((2.0, -3.0), 0.5)]  # column, row
    assert [(s.get_x(), s.get_y()) for s in squares] == [(-0.5, -1.5), (-0.5, 0.5)]
    bottom, top = axes.get_ylim()
    assert bottom > 1.5 > -3.5 > top  # rows run down, and all is in sight
    assert {"no centre", "width σ", "rows from the query", "layer0"} <= drawn(figure)
    whole = PositionsReport(tuple(head for head in heads if head.centre))
    assert "no centre" not in drawn(head_plots.positions_plot(whole)[0])


@pytest.mark.parametrize("layers", [1, 8, 53])
def test_cka_plot(layers: int) -> None:
    names = tuple(f"layer4.{i}.conv1" for i in range(layers))
    matrix = np.linspace(-0.1, 1, layers * layers).reshape(layers, layers)
    matrix[0, 0] = np.nan
    rows = tuple(map(tuple, matrix.tolist()))
    result = CKAResult(names, names, rows, 100, 4, 0)
    figure, axes = network_plots.cka_plot(result, ("CNN", "hybrid"))
    image = axes.images[0]
    assert np.array_equal(np.ma.filled(image.get_array(), np.nan), matrix, equal_nan=True)
    assert image.get_clim() == (0, 1)
    texts = drawn(figure)
    assert {"CNN", "hybrid", "linear CKA", "100 images in batches of 25"} <= texts
    assert "layer4.0.conv1" in texts
    shown = [t.get_text() for t in axes.get_yticklabels()]
    assert len(shown) <= 30


@pytest.mark.parametrize("count", [1, 4])
def test_rollout_plot(count: int) -> None:
    images = [np.zeros((16, 16), np.uint8), *[np.zeros((16, 16, 3), np.uint8)] * 3][:count]
    maps = torch.rand(count, 4, 4)
    figure, panels = network_plots.rollout_plot(images, maps, list("abcd")[:count])
    assert panels.shape == (2, count)
    assert np.allclose(panels[1, 0].images[0].get_array(), maps[0])
    assert f"0 to {maps[0].max():.3f}" in drawn(figure)


def test_masking_plot() -> None:
    scores = [MaskScore(Mask("content only"), 0.1, -0.8, -0.85, -0.75)]
    scores += [MaskScore(Mask("head ablated", "layer4.0.conv2", (i // 3, i % 3)),
                         0.9 - i / 100, -i / 100, -i / 50, 0.0) for i in range(9)]  # fmt: skip
    scores.append(MaskScore(Mask("position only"), 0.91, 0.01, 0.0, 0.02))
    result = MaskingResult(400, 0.9, tuple(sorted(scores, key=lambda score: score.change)))
    figure, axes = network_plots.masking_plot(result)
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == pytest.approx([100 * score.change for score in result.scores])
    intervals = [line.get_xdata() for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert intervals[0] == pytest.approx((-85, -75))
    texts = drawn(figure)
    assert "head ablated, layer4.0.conv2 (2, 2)" in texts and "Masked attention" in texts
    assert "change of top-1 in points, from 90.0 % on 400 images" in texts
    figure, axes = network_plots.masking_plot(result, most=5)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        "content only, all layers",
        *(f"head ablated, layer4.0.conv2 (2, {b})" for b in (2, 1, 0)),
        "position only, all layers",
    ]
    assert "Masked attention (6 heads that matter less are not shown)" in drawn(figure)


def test_plots_leave_pyplot_alone() -> None:
    code = (
        "import sys, tcnn.analysis.head_plots, tcnn.analysis.network_plots; "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
