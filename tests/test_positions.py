"""Centres and widths of heads, against the attention itself."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tcnn import GPSA2d, GPSAConfig
from tcnn.analysis.positions import head_positions

LEARNED = GPSAConfig(positions="learned", locality_strength=2.0)


def test_a_recast_layer_starts_on_its_taps() -> None:
    conv = nn.Conv2d(2, 2, (3, 2), dilation=(2, 1), padding=(2, 0))
    found = head_positions(GPSA2d.from_conv2d(conv, LEARNED))
    starts = [(y, x) for y in (-2.0, 0.0, 2.0) for x in (0.0, 1.0)]
    assert [head.start for head in found.heads] == starts
    assert [head.tap for head in found.heads] == [(a, b) for a in range(3) for b in range(2)]
    for head in found.heads:
        assert head.centre == pytest.approx(head.start)
        assert head.width == pytest.approx(1 / math.sqrt(2 * 2.0))
        assert head.moved == pytest.approx(0) and head.gate == 1
    fixed = head_positions(GPSA2d.from_conv2d(conv))
    assert [head.centre for head in fixed.heads] == starts
    assert {head.width for head in fixed.heads} == {0.0}


@settings(max_examples=25, deadline=None)
@given(
    α=st.floats(0.3, 2), row=st.floats(-2.5, 2.5), column=st.floats(-2.5, 2.5),
)  # fmt: skip
def test_centre_and_width_are_mean_and_spread_of_the_attention(
    α: float, row: float, column: float
) -> None:
    """On a grid so large that no border cuts it off. (A Gaussian on whole pixels has the moments of
    one on the plane up to exp(-2π²σ²), which is below 6e-3 for α ≤ 2.)"""
    layer = GPSA2d.from_conv2d(nn.Conv2d(1, 1, 1), LEARNED)
    with torch.no_grad():
        layer.v_pos.copy_(torch.tensor([[-α, 2 * α * row, 2 * α * column]]))
    weights = layer.attention(torch.zeros(1, 1, 31, 31)).position[0, 15, 15].double()
    at = torch.arange(31).double() - 15
    mean = (weights.sum(1) @ at).item(), (weights.sum(0) @ at).item()
    variance = (weights.sum(1) @ (at - mean[0]) ** 2).item()
    (head,) = head_positions(layer).heads
    assert head.centre is not None and head.width is not None
    assert head.centre == pytest.approx(mean, abs=0.02)
    assert head.centre == pytest.approx((row, column), abs=1e-5)
    assert head.width**2 == pytest.approx(variance, abs=0.05)
    assert head.moved == pytest.approx(math.hypot(row, column), abs=1e-5)


@pytest.mark.parametrize("quadratic", [0.0, 0.5, math.nan])
def test_a_head_whose_attention_grows_with_the_distance_has_no_centre(quadratic: float) -> None:
    layer = GPSA2d.from_conv2d(nn.Conv2d(1, 1, (1, 2)), LEARNED)
    with torch.no_grad():
        layer.v_pos[1, 0] = quadratic
    found = head_positions(layer)
    assert found.heads[0].centre is not None
    head = found.heads[1]
    assert head.centre is head.width is head.moved is None
    assert "1 heads have no centre" in found.table()
    assert json.loads(json.dumps(found.to_json()))[1]["centre"] is None


def test_networks() -> None:
    model = nn.Sequential(
        GPSA2d(1, 1, 3, config=LEARNED), nn.ReLU(), GPSA2d(1, 1, (1, 2), config=GPSAConfig())
    )
    found = head_positions(model)
    assert {name: len(heads) for name, heads in found.layers.items()} == {"0": 9, "2": 2}
    assert len(found.table().splitlines()) == 2 + 11
    with pytest.raises(ValueError, match="recast it first"):
        head_positions(nn.Linear(1, 1))
