"""Captures, measures and plots."""

from __future__ import annotations

import json
import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from tcnn import GPSAConfig, recast
from tcnn.analysis import measures, plots
from tcnn.analysis.capture import capture
from tcnn.analysis.heads import heads_report


def hybrid(gate: float = 0.7) -> nn.Module:
    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), nn.ReLU(inplace=True),
    )  # fmt: skip
    return recast(cnn, ["0", "3"], GPSAConfig(gate_init=gate), input_size=(2, 8, 7))


X = torch.randn(3, 2, 8, 7, generator=torch.Generator().manual_seed(0))


# Capture


def test_capture_records_and_changes_nothing() -> None:
    model = hybrid().eval()
    with torch.no_grad():
        expected = model(X)
        with capture(model) as seen:
            got = model(X)
    assert torch.equal(expected, got)
    assert set(seen.layers) == set(seen.gates) == set(seen.inputs) == {"0", "3"}
    assert seen.gates["0"].tolist() == pytest.approx([0.7] * 9)
    assert torch.equal(seen.inputs["0"], X)
    with torch.no_grad():
        assert torch.equal(seen.inputs["3"], model[:3](X))  # not what the in-place ReLU left
    maps = seen.attention("3")
    assert maps.content.shape == (3, 3, 4, 4, 4, 4)
    # The maps are what the layer computed with: apply them by hand.
    layer, x = seen.layers["3"], seen.inputs["3"]
    attended = torch.einsum("bhuvyx,bcyx->bchuv", maps.mixed, x)
    y = torch.einsum("och,bchuv->bouv", layer.weight.flatten(2), attended)
    with torch.no_grad():
        torch.testing.assert_close(y + layer.bias[:, None, None], layer(x))


def test_capture_removes_its_hooks_and_lets_errors_through() -> None:
    model = hybrid().train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    fails = model[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), capture(model):
        model.eval()(X)
    fails.remove()
    assert [module.training for module in model.modules()] == before
    assert set(before) == {False, True}  # the modes differ, or nothing would be shown
    assert all(not m._forward_pre_hooks for m in model.modules())
    with capture(model) as seen:
        pass
    model(X)
    assert seen.inputs == {}


def test_gradients_pass_through_a_capture() -> None:
    model = hybrid()
    with capture(model):
        model(X).sum().backward()
    assert model[0].gating_param.grad is not None


def test_capture_by_keyword_and_of_one_image() -> None:
    layer = hybrid()[3]
    with capture(layer) as seen:
        layer(input=torch.randn(4, 5, 6))
    assert seen.attention("").content.shape == (1, 3, 5, 6, 5, 6)


def test_capture_errors() -> None:
    with pytest.raises(ValueError, match="recast it first"), capture(nn.Linear(2, 2)):
        pass
    with capture(hybrid()) as seen:
        pass
    with pytest.raises(KeyError, match="but got '0'"):
        seen.attention("0")


# Measures


def test_content_share() -> None:
    gate = torch.tensor([1.0, 0.25, -0.5])
    assert measures.content_share(gate).tolist() == [0, 0.75, 1.5]


def test_distance_and_entropy_against_loops() -> None:
    shape, stride = (2, 3, 4, 2, 7, 5), (2, 3)
    attention = torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
    attention /= attention.sum(dim=(-2, -1), keepdim=True)
    distance = measures.attention_distance(attention, stride)
    entropy = measures.attention_entropy(attention)
    assert distance.shape == entropy.shape == (2, 3)
    for b in range(2):
        for h in range(3):
            total = surprise = 0.0
            for u in range(4):
                for v in range(2):
                    for y in range(7):
                        for x in range(5):
                            a = attention[b, h, u, v, y, x].item()
                            total += a * math.hypot(y - 2 * u, x - 3 * v)
                            surprise -= a * math.log(a)
            assert distance[b, h].item() == pytest.approx(total / 8)
            assert entropy[b, h].item() == pytest.approx(surprise / 8)


def test_measures_of_known_attention() -> None:
    one = torch.zeros(3, 3, 3, 3)
    for u in range(3):
        for v in range(3):
            one[u, v, u, v] = 1
    assert measures.attention_distance(one).item() == 0
    assert measures.attention_entropy(one).item() == 0
    even = torch.full((3, 3, 3, 3), 1 / 9)
    assert measures.attention_entropy(even).item() == pytest.approx(math.log(9))


def test_distance_of_a_shut_convolution() -> None:
    """A head on a tap at distance d adds d for every query whose tap lies in the image."""
    model = hybrid(gate=1.0).eval()
    with capture(model) as seen, torch.no_grad():
        model(X)
    heads = {(h.layer, h.tap): h for h in heads_report(seen).heads}
    assert len(heads) == 12
    assert heads["3", (0, 1)].attention_distance == 0
    assert heads["3", (0, 0)].attention_distance == pytest.approx(
        3 / 4
    )  # one of 4 columns falls off
    # Stride 2 on 8×7: the tap at (-1, -1) misses the first row and column of 4×4 queries.
    assert heads["0", (0, 0)].attention_distance == pytest.approx(math.sqrt(2) * 9 / 16)
    assert heads["0", (2, 1)].position_distance == pytest.approx(1)  # rows 1, 3, 5, 7 of 8


def test_heads_report_output() -> None:
    model = hybrid().eval()
    with capture(model) as seen, torch.no_grad():
        model(X)
    report = heads_report(seen)
    assert report.heads[0].content_share == pytest.approx(0.3)
    assert report.heads[0].attention_distance == pytest.approx(
        0.7 * report.heads[0].position_distance + 0.3 * report.heads[0].content_distance, rel=1e-5
    )
    assert report.heads[0].pixels == 56
    spread = math.exp(report.heads[0].content_entropy) / 56
    assert report.heads[0].content_spread == pytest.approx(spread)
    assert len(report.table().splitlines()) == 14
    assert json.loads(json.dumps(report.to_json()))[9]["tap"] == [0, 0]


# Plots


def drawn(figure: Figure) -> list[str]:
    """Texts of a figure, each of which must lie inside it."""
    FigureCanvasAgg(figure).draw()
    edges = figure.bbox
    texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]
    for text in texts:
        box = text.get_window_extent()
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= edges.x1 + 1 and box.y1 <= edges.y1 + 1
        assert inside, text.get_text()
    return [text.get_text() for text in texts]


@pytest.fixture(autouse=True)
def no_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plot wrote to disk or opened a window")

    monkeypatch.setattr(Figure, "savefig", refuse)
    monkeypatch.setattr(Figure, "show", refuse)


def test_accuracy_plot() -> None:
    accuracy = {
        "control": {"clean": 0.975, "gaussian_noise": 0.5},
        "hybrid": {"clean": 1.0, "gaussian_noise": 0.25},
    }
    errors = {arm: dict.fromkeys(values, 0.02) for arm, values in accuracy.items()}
    figure, axes = plots.accuracy_plot(accuracy, errors, "A title")
    bars = [round(p.get_height(), 3) for p in axes.patches]
    assert bars == [97.5, 50, 100, 25]
    texts = drawn(figure)
    assert {"97.5", "100.0", "clean", "gaussian\nnoise", "control", "hybrid", "A title"} <= set(
        texts
    )
    assert len({p.get_facecolor() for p in axes.patches}) == 2
    plots.accuracy_plot(accuracy)


def test_gate_plot_draws_each_gate_at_its_tap() -> None:
    gates = {"layer4.0.conv1": torch.linspace(-0.2, 1.4, 9), "b": torch.tensor([1.0, 0.5, 0.25])}
    figure, panels = plots.gate_plot(gates, {"layer4.0.conv1": (3, 3), "b": (1, 3)})
    assert np.allclose(
        panels.flat[0].images[0].get_array(), np.linspace(-0.2, 1.4, 9).reshape(3, 3)
    )
    low, high = panels.flat[1].images[0].get_clim()
    assert (low + high) / 2 == pytest.approx(1)  # the convolution in the middle of the colours
    assert high - 1 == pytest.approx(1.2)
    assert {"-0.20", "1.40", "0.25", "layer4.0.conv1"} <= set(drawn(figure))


@pytest.mark.parametrize("layers", [1, 4, 5, 9])
def test_gate_plot_of_many_layers(layers: int) -> None:
    gates = {f"layer{i}": torch.ones(9) for i in range(layers)}
    figure, panels = plots.gate_plot(gates, dict.fromkeys(gates, (3, 3)))
    assert sum(axes.axison for axes in panels.flat) == layers
    assert set(gates) <= set(drawn(figure))


def test_attention_plot() -> None:
    maps = torch.rand(3, 4, 4)
    rows = [
        plots.AttentionRow(np.zeros((16, 16), np.uint8), (0.125, 0.625), maps),
        plots.AttentionRow(np.zeros((16, 16, 3), np.uint8), (0.875, 0.375), maps),
    ]
    figure, panels = plots.attention_plot(rows, ["a", "b", "c"], "A title")
    assert panels.shape == (2, 4)
    assert np.allclose(panels[1, 2].images[0].get_array(), maps[1])
    # The query is the pixel (0, 2) of 4×4, and its centre in the image.
    assert panels[0, 1].lines[0].get_xydata().tolist() == [[2, 0]]
    assert panels[0, 0].lines[0].get_xydata().tolist() == [[9.5, 1.5]]
    assert {"image and query", "c", "A title", f"0 to {maps[0].max():.3f}"} <= set(drawn(figure))


def test_plots_leave_pyplot_alone() -> None:
    import subprocess
    import sys

    code = "import sys, tcnn.analysis.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
