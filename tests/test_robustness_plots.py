"""What the figures show against what went in."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tcnn.analysis.paper import NETWORKS
from tcnn.analysis.plots import ARM_COLOURS
from tcnn.analysis.robustness_plots import scatter_plot, severity_plot, suites_plot
from tcnn.errors import TCNNError

STANDARD = [f"standard_{i}" for i in range(15)]
EXTRA = [f"extra_{i}" for i in range(4)]
SEVERITIES = (1, 3, 5)


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def curves(names: list[str], models: int) -> dict[str, dict[str, list[float]]]:
    rng = np.random.default_rng(len(names))
    return {f"m{i}": {n: rng.random(3).tolist() for n in names} for i in range(models)}


def drawn(axes: Axes, style: str = "-") -> list[list[float]]:
    """y-data of the lines of one style."""
    return [list(line.get_ydata()) for line in axes.lines if line.get_linestyle() == style]


def legend(figure: Figure) -> list[str]:
    (only,) = figure.legends
    return [text.get_text() for text in only.get_texts()]


def inside(figure: Figure) -> None:
    """Every visible text lies within the figure, and the legend on no panel."""
    FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = figure.bbox
    texts = [t for axes in figure.axes if axes.axison for t in (*axes.texts, axes.title)]
    for text in (*texts, *figure.texts, figure.legends[0].get_title(),
                 *figure.legends[0].get_texts()):  # fmt: skip
        box = text.get_window_extent(renderer)
        if text.get_text():
            assert box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1, text
            assert box.y0 >= frame.y0 - 1 and box.y1 <= frame.y1 + 1, text
    below = figure.legends[0].get_window_extent(renderer)
    for axes in figure.axes:
        if axes.axison:
            assert not axes.get_tightbbox(renderer).overlaps(below)


@pytest.mark.parametrize(
    ("models", "names", "with_clean"),
    [
        (1, STANDARD[:1], False),
        (2, STANDARD[:5], True),
        (1, EXTRA[:2] + STANDARD[:5], True),
        (2, STANDARD + EXTRA, False),
    ],
)
def test_severities(models: int, names: list[str], with_clean: bool) -> None:
    values = curves(names, models)
    clean = {model: 0.8 + i / 10 for i, model in enumerate(values)} if with_clean else None
    figure, panels = severity_plot(values, SEVERITIES, STANDARD, clean=clean, title="2000 images")
    shown = [axes for axes in panels.flat if axes.axison]
    assert len(shown) == 1 + len(names)
    assert all(not axes.lines for axes in panels.flat if not axes.axison)
    standard = [name for name in names if name in STANDARD]
    assert shown[0].get_title() == f"mean of {len(standard)} standard"
    for row, by_name in zip(drawn(shown[0]), values.values(), strict=True):
        expected = [100 * sum(by_name[n][s] for n in standard) / len(standard) for s in range(3)]
        assert row == pytest.approx(expected)
    for axes, name in zip(shown[1:], names, strict=True):
        title = name.replace("_", " ") + (" (extra)" if name in EXTRA else "")
        assert axes.get_title() == title
        assert [
            line.get_xdata().tolist() for line in axes.lines if line.get_linestyle() == "-"
        ] == [list(SEVERITIES)] * models
        for row, by_name in zip(drawn(axes), values.values(), strict=True):
            assert row == pytest.approx([100 * v for v in by_name[name]])
        dashed = [row[0] for row in drawn(axes, "--")]
        assert dashed == pytest.approx([100 * v for v in (clean or {}).values()])
    assert len({axes.get_ylim() for axes in shown}) == 1
    assert shown[0].get_ylim()[0] == 0
    assert legend(figure) == [*values, *(["clean"] if with_clean else [])]
    inside(figure)


def test_severities_out_of_step() -> None:
    good = curves(STANDARD[:2], 2)
    with pytest.raises(TCNNError, match=r"4 severities.*curves of \[3\]"):
        severity_plot(good, (1, 2, 3, 4), STANDARD)
    with pytest.raises(TCNNError, match="some of standard corruptions"):
        severity_plot(curves(EXTRA, 1), SEVERITIES, STANDARD)
    with pytest.raises(TCNNError, match="same corruptions for every model"):
        severity_plot({**good, "m1": curves(EXTRA, 1)["m0"]}, SEVERITIES, STANDARD)
    with pytest.raises(TCNNError, match="`clean` for m0, m1, but got m0"):
        severity_plot(good, SEVERITIES, STANDARD, clean={"m0": 0.8})
    with pytest.raises(TCNNError, match="1 to 4 models, but got 0"):
        severity_plot({}, SEVERITIES, STANDARD)


@pytest.mark.parametrize(("models", "suites"), [(1, 1), (1, 6), (2, 1), (2, 6)])
def test_suites(models: int, suites: int) -> None:
    rng = np.random.default_rng(suites)
    names = [f"suite {i}" for i in range(suites)]
    accuracy = {f"m{i}": dict(zip(names, rng.random(suites), strict=True)) for i in range(models)}
    accuracy["m0"]["suite 0"] = 1.0  # its label must not be cut off
    errors = {m: {n: 0.001 * (i + 1) for i, n in enumerate(names)} for m in accuracy}
    figure, axes = suites_plot(accuracy, errors, "2000 images")
    expected = [100 * accuracy[m][n] for m, n in itertools.product(accuracy, names)]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(expected)
    assert [text.get_text() for text in axes.texts] == [f"{v:.1f}" for v in expected]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names
    for index, model in enumerate(accuracy):
        (segments,) = axes.containers[2 * index + 1].lines[2]  # type: ignore[attr-defined]
        for segment, name in zip(segments.get_segments(), names, strict=True):
            middle, reach = 100 * accuracy[model][name], 196 * errors[model][name]
            assert segment[:, 0].tolist() == pytest.approx([middle - reach, middle + reach])
    for bar, suite in zip(axes.patches, names * models, strict=True):
        assert round(bar.get_y() + bar.get_height() / 2) == names.index(suite)
    assert legend(figure) == list(accuracy)
    inside(figure)


def test_suites_out_of_step() -> None:
    accuracy = {"a": {"x": 0.5, "y": 0.5}, "b": {"x": 0.5, "y": 0.5}}
    with pytest.raises(TCNNError, match="same suites for every model"):
        suites_plot({**accuracy, "b": {"x": 0.5}}, accuracy)
    with pytest.raises(TCNNError, match="`errors` for a, b, but got a"):
        suites_plot(accuracy, {"a": accuracy["a"]})
    with pytest.raises(TCNNError, match="`errors` for x, y, but got x"):
        suites_plot(accuracy, {**accuracy, "b": {"x": 0.5}})


PANELS = {
    "ImageNet-C": "imagenet_c", "ImageNet-A": "imagenet_a", "ImageNet-R": "imagenet_r",
    "FGSM": "fgsm",
}  # fmt: skip


@pytest.mark.parametrize(
    ("count", "ours"),
    [
        (1, {"resnet50.a1_in1k": (0.81, 0.45)}),
        (2, {"ResNet-18": (0.93, 0.75), "T-ResNet-18": (0.935, 0.76)}),
        (3, {"ResNet-18": (0.45, 0.02), "T-ResNet-18": (0.45, 0.02)}),
        (4, {"ResNet-18": (0.81, 0.15), "T-ResNet-18": (0.82, 0.21)}),
    ],
)
def test_scatter(count: int, ours: dict[str, tuple[float, float]]) -> None:
    panels = list(PANELS)[:count]
    note = "CIFAR-10, generated corruptions"
    figure, grid = scatter_plot(dict.fromkeys(panels, ours), note, "Robustness")
    assert grid.size == count
    for axes, panel in zip(grid.flat, panels, strict=True):
        assert axes.get_title() == panel
        for cloud, line, family, colour in zip(
            axes.collections, axes.lines[:2], ("ResNet-RS", "T-CNN"), ARM_COLOURS, strict=False
        ):
            networks = [n for n in NETWORKS if n.family == family]
            expected = [[n.clean, getattr(n, PANELS[panel])] for n in networks]
            assert cloud.get_offsets().tolist() == expected
            assert line.get_xydata().tolist() == expected
            sizes = cloud.get_sizes() / [n.parameters for n in networks]
            assert np.ptp(sizes) < 1e-9
            assert to_hex(cloud.get_facecolor()[0]) == to_hex(colour)
        diamonds = [line for line in axes.lines if line.get_marker() == "D"]
        assert [line.get_xydata()[0].tolist() for line in diamonds] == [
            pytest.approx([100 * clean, 100 * robust]) for clean, robust in ours.values()
        ]
        assert {text.get_text(): text.xy for text in axes.texts} == {
            model: pytest.approx((100 * clean, 100 * robust))
            for model, (clean, robust) in ours.items()
        }
    caption = figure.legends[0].get_title().get_text()
    assert note in caption
    assert "±0.1" in caption and "2106.05795" in caption
    inside(figure)


@pytest.mark.parametrize("points", [{}, {"ImageNet-V2": {"a": (0.5, 0.5)}}])
def test_scatter_of_no_such_panel(points: dict[str, dict[str, tuple[float, float]]]) -> None:
    with pytest.raises(TCNNError, match="panels of ImageNet-C"):
        scatter_plot(points, "note")


def test_the_paper_s_networks() -> None:
    """Both families at the same depths, T-CNNs a little larger and better on every clean image."""
    families = [[n for n in NETWORKS if n.family == f] for f in ("ResNet-RS", "T-CNN")]
    for cnn, hybrid in zip(*families, strict=True):
        assert cnn.depth == hybrid.depth
        assert hybrid.parameters - cnn.parameters in (2, 3)
        for measure in ("clean", *PANELS.values()):
            assert getattr(hybrid, measure) > getattr(cnn, measure)


def test_figures_render() -> None:
    figure, _ = scatter_plot({"FGSM": {"a": (0.8, 0.1)}}, "note")
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    assert stream.getvalue().startswith(b"\x89PNG")
