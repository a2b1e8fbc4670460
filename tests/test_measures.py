"""Measures of attention: against loops on random attention, and by hand on a recast layer."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tcnn import GPSA2d, GPSAConfig, recast
from tcnn.analysis import measures
from tcnn.analysis.capture import capture
from tcnn.analysis.heads import heads_report

QUICK = settings(max_examples=25, deadline=None)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, tuple[int, int]]:
    """A convolution of any geometry, and a size that it takes."""
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = draw(st.tuples(st.integers(5, 7), st.integers(5, 7)))
    return nn.Conv2d(1, 1, kernel, stride, padding, dilation, padding_mode=mode), size


def random_attention(*shape: int, seed: int = 0) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double()
    return values / values.sum(dim=(-2, -1), keepdim=True)


def read_by(conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Which pixels each tap of each output reads: the gradient of the convolution with one tap,
    (heads, Hq, Wq, H, W)."""
    rows, columns = conv.kernel_size
    maps = []
    for a, b in itertools.product(range(rows), range(columns)):
        with torch.no_grad():
            conv.weight.zero_()
            conv.weight[0, 0, a, b] = 1
        x = torch.zeros(1, 1, *size, requires_grad=True)
        y = conv(x)[0, 0]
        grads = [torch.autograd.grad(value, x, retain_graph=True)[0][0, 0] for value in y.flatten()]
        maps.append(torch.stack(grads).view(*y.shape, *size))
    return torch.stack(maps).double()


@QUICK
@given(case=convolutions(), seed=st.integers(0, 99))
def test_kernel_window_share_against_what_the_convolution_reads(
    case: tuple[nn.Conv2d, tuple[int, int]], seed: int
) -> None:
    conv, size = case
    layer = GPSA2d.from_conv2d(conv)
    taps = read_by(conv, size)
    window = taps.sum(dim=0) > 0
    attention = random_attention(2, *taps.shape[1:], seed=seed)
    share = measures.kernel_window_share(attention, layer.geometry, conv.padding_mode)
    for image in range(2):
        total = sum(
            attention[image, u, v][window[u, v]].sum().item()
            for u in range(taps.shape[1])
            for v in range(taps.shape[2])
        )
        assert share[image].item() == pytest.approx(total / taps.shape[1:3].numel())
    # Of the convolution's own attention all is within, padded zeros included.
    own = measures.kernel_window_share(taps, layer.geometry, conv.padding_mode)
    assert own.tolist() == pytest.approx([1.0] * len(taps))


@QUICK
@given(case=convolutions(), seed=st.integers(0, 99))
def test_departure_against_what_the_convolution_reads(
    case: tuple[nn.Conv2d, tuple[int, int]], seed: int
) -> None:
    conv, size = case
    layer = GPSA2d.from_conv2d(conv)
    taps = read_by(conv, size)
    attention = random_attention(*taps.shape, seed=seed)
    found = measures.departure(attention, layer.geometry, conv.padding_mode)
    for head, (a, c) in enumerate(zip(attention, taps, strict=True)):
        # What two distributions have in common is the rest of their total variation; of the
        # convolution's, what is missing from a row lies on padding, where random attention is not.
        common = torch.minimum(a, c).sum(dim=(-2, -1)).mean().item()
        assert found[head].item() == pytest.approx(1 - common)
    none = measures.departure(taps, layer.geometry, conv.padding_mode)
    assert none.abs().max().item() == 0


@QUICK
@given(
    heads=st.integers(1, 4), queries=st.integers(1, 3), side=st.integers(1, 4),
    on_padding=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_head_distances_against_loops(
    heads: int, queries: int, side: int, on_padding: bool, seed: int
) -> None:
    attention = random_attention(2, heads, queries, 2, side, side, seed=seed)
    if on_padding:
        attention = attention * torch.rand(2, heads, queries, 2, 1, 1).double()
    found = measures.head_distances(attention)
    redundancy = measures.head_redundancy(attention)
    assert found.shape == (2, heads, heads) and redundancy.shape == (2,)
    rows = attention.flatten(4).flatten(2, 3)
    rows = torch.cat([rows, 1 - rows.sum(dim=-1, keepdim=True)], dim=-1)  # and the padding
    for image in range(2):
        pairs = []
        for h, k in itertools.combinations(range(heads), 2):
            expected = sum(
                0.5 * (rows[image, h, i] - rows[image, k, i]).abs().sum().item()
                for i in range(queries * 2)
            ) / (queries * 2)
            assert found[image, h, k].item() == pytest.approx(expected)
            assert found[image, k, h].item() == pytest.approx(expected)
            pairs.append(expected)
        assert found[image].diagonal().abs().max().item() == 0
        if pairs:
            assert redundancy[image].item() == pytest.approx(sum(pairs) / len(pairs))
        else:
            assert redundancy[image].isnan()


def test_redundancy_of_known_heads() -> None:
    one = torch.zeros(3, 1, 1, 2, 2)
    one[0, ..., 0, 0] = one[1, ..., 0, 0] = one[2, ..., 1, 1] = 1
    assert measures.head_redundancy(one[:2]).item() == 0  # alike
    assert measures.head_redundancy(one[1:]).item() == 1  # apart
    assert measures.head_redundancy(one).item() == pytest.approx(2 / 3)


@QUICK
@given(seed=st.integers(0, 99), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
       first=st.tuples(st.integers(0, 2), st.integers(0, 2)))  # fmt: skip
def test_distance_and_entropy_against_loops(
    seed: int, stride: tuple[int, int], first: tuple[int, int]
) -> None:
    attention = random_attention(3, 2, 6, 5, seed=seed)
    distance = entropy = 0.0
    for u, v, y, x in itertools.product(range(3), range(2), range(6), range(5)):
        a = attention[u, v, y, x].item()
        row, column = u * stride[0] + first[0], v * stride[1] + first[1]
        distance += a * math.hypot(y - row, x - column) / 6
        entropy -= a * math.log(a) / 6
    found = measures.attention_distance(attention, stride, first).item()
    assert found == pytest.approx(distance)
    assert measures.attention_entropy(attention).item() == pytest.approx(entropy)


# A layer that was just recast, by hand


@pytest.fixture
def recast_layer() -> tuple[GPSA2d, Tensor]:
    """3×3, stride 1, padding 1: one head for each offset of -1, 0, 1; and its maps on 6×7."""
    torch.manual_seed(0)
    layer = GPSA2d.from_conv2d(nn.Conv2d(2, 3, 3, padding=1)).eval()
    return layer, layer.attention(torch.randn(2, 2, 6, 7)).mixed


def test_distance_of_a_recast_layer(recast_layer: tuple[GPSA2d, Tensor]) -> None:
    _, mixed = recast_layer
    inner = mixed[..., 1:-1, 1:-1, :, :]  # queries all of whose taps are in the image
    distance = measures.attention_distance(inner, first=(1, 1))
    offsets = [math.hypot(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    for image in distance:
        assert image.tolist() == pytest.approx(offsets)
    assert distance.mean().item() == pytest.approx((4 + 4 * math.sqrt(2)) / 9)


def test_entropy_window_and_departure_of_a_recast_layer(
    recast_layer: tuple[GPSA2d, Tensor],
) -> None:
    layer, mixed = recast_layer
    assert measures.attention_entropy(mixed).abs().max().item() == 0
    assert measures.kernel_window_share(mixed, layer.geometry).tolist() == [[1.0] * 9] * 2
    assert measures.departure(mixed, layer.geometry).abs().max().item() == 0
    inner = mixed[..., 1:-1, 1:-1, :, :]
    assert measures.head_redundancy(inner).tolist() == pytest.approx([1.0, 1.0])  # all apart
    # Where content alone is left, and even, a 3×3 window holds 9 of 42 pixels; 6 or 4 at borders.
    even = torch.full((6, 7, 6, 7), 1 / 42)
    inside = (20 * 9 + 2 * (4 + 5) * 6 + 4 * 4) / 42
    share = measures.kernel_window_share(even, layer.geometry).item()
    assert share == pytest.approx(inside / 42)


def test_measures_are_those_of_the_layer_with_same_padding() -> None:
    """timm's padding by TensorFlow's rule moves the anchors with the size of the input."""
    from timm.layers import Conv2dSame

    for size in ((6, 7), (7, 6)):
        cnn = nn.Sequential(Conv2dSame(1, 1, 3, stride=2))
        model = recast(cnn, "0", input_size=(1, *size)).eval()
        with capture(model) as seen, torch.no_grad():
            model(torch.randn(1, 1, *size))
        heads = {head.tap: head for head in heads_report(seen).heads}
        assert heads[1, 1].position_distance == 0  # the centre of the kernel is the query
        assert {head.window_share for head in heads.values()} == {1.0}
        assert {head.departure for head in heads.values()} == {0.0}


def test_heads_report_has_the_measures_of_its_maps() -> None:
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    config = GPSAConfig(gate_init=0.6)
    model = recast(cnn, ["0", "2"], config, input_size=(2, 8, 7)).eval()
    with capture(model) as seen, torch.no_grad():
        model(torch.randn(3, 2, 8, 7))
    report = heads_report(seen)
    assert list(report.layers) == ["0", "2"] and len(report.layers["0"]) == 9
    maps, layer = seen.attention("0"), seen.layers["0"]
    for index, head in enumerate(report.layers["0"]):
        share = measures.kernel_window_share(maps.content, layer.geometry).mean(dim=0)[index]
        assert head.content_window_share == pytest.approx(share.item())
        assert head.window_share == pytest.approx(0.6 + 0.4 * share.item(), rel=1e-5)  # linear
        on_tap = (maps.content * maps.position)[:, index].sum(dim=(-2, -1)).mean().item()
        assert head.departure == pytest.approx(0.4 * (1 - on_tap), rel=1e-5)
    distances = measures.head_redundancy(maps.mixed).mean().item()
    assert report.redundancy["0"] == pytest.approx(distances, rel=1e-5)
    alone = report.layers["2"][0]
    assert math.isnan(alone.head_distance) and report.to_json()[-1]["head_distance"] is None
    assert "nan" in report.table()
