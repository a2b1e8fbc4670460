"""The pure functions against hand-computed cases and dense softmaxes."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tcnn import functional


def test_offsets_by_hand() -> None:
    offsets = functional.axis_offsets(torch.tensor([0.0, 2.0]), -1, 4)
    assert offsets.tolist() == [[-1, 0, 1, 2], [-3, -2, -1, 0]]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_positional_attention_factorises(height: int, width: int, seed: int) -> None:
    """R ⊗ C equals the softmax of v·(‖δ‖², δ₁, δ₂) over the whole grid, whatever v."""
    v = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = functional.axis_offsets(torch.arange(height).double(), 0, height)
    columns = functional.axis_offsets(torch.arange(width).double(), 0, width)
    r = functional.axis_softmax(rows, v[:, 0], v[:, 1])
    c = functional.axis_softmax(columns, v[:, 0], v[:, 2])
    for h, (u, w) in ((h, q) for h in range(3) for q in ((0, 0), (height - 1, width // 2))):
        scores = [
            v[h] @ torch.tensor([(y - u) ** 2 + (x - w) ** 2, y - u, x - w], dtype=torch.float64)
            for y in range(height)
            for x in range(width)
        ]
        dense = torch.stack(scores).softmax(0).view(height, width)
        torch.testing.assert_close(torch.outer(r[h, u], c[h, w]), dense, rtol=1e-12, atol=1e-14)


def test_no_denormals_and_a_live_gradient() -> None:
    offsets = functional.axis_offsets(torch.arange(200.0), 0, 200)
    quadratic = torch.tensor([-0.05, -1.0, -30.0], requires_grad=True)
    factor = functional.axis_softmax(offsets, quadratic, torch.zeros(3))
    positive = factor[factor > 0]
    assert positive.min() >= torch.finfo(torch.float32).tiny
    torch.testing.assert_close(factor.sum(-1), torch.ones(3, 200))
    factor[1, 5, 6].backward()
    assert quadratic.grad is not None and quadratic.grad[1] > 0


def test_padding_folds_onto_the_pixels_it_copies() -> None:
    factor = torch.eye(7)[None]  # each of 7 padded pixels attends to itself; 2 + 4 + 1 pixels
    expected = {
        "zeros": [None, None, 0, 1, 2, 3, None],
        "replicate": [0, 0, 0, 1, 2, 3, 3],
        "reflect": [2, 1, 0, 1, 2, 3, 2],
        "circular": [2, 3, 0, 1, 2, 3, 0],
    }
    for mode, sources in expected.items():
        folded = functional.fold_padding(factor, 2, 1, mode)[0]
        assert [row.nonzero().flatten().tolist() for row in folded] == [
            [] if source is None else [source] for source in sources
        ]


def test_window_by_hand() -> None:
    offsets = functional.axis_offsets(torch.tensor([0.0, 3.0]), 0, 4)
    one = torch.zeros(1, 1)
    for window, inside in (
        (1, [[1, 0, 0, 0], [0, 0, 0, 1]]),
        (2, [[1, 1, 0, 0], [0, 0, 0, 1]]),  # -0 ≤ δ ≤ 1
        (3, [[1, 1, 0, 0], [0, 0, 1, 1]]),
    ):
        outside = functional.window_mask(offsets, one, window)
        assert (~outside).int().tolist() == inside


def test_content_attention_is_a_scaled_softmax() -> None:
    queries, keys = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 6, 5).double()
    attention = functional.content_attention(*functional.scaled_queries(queries, keys, None))
    for b, h, q in ((0, 0, 0), (1, 2, 3)):
        scores = [math.exp(queries[b, h, q] @ keys[b, h, k] / math.sqrt(5)) for k in range(6)]
        expected = torch.tensor(scores, dtype=torch.float64) / sum(scores)
        torch.testing.assert_close(attention[b, h, q], expected)


def test_attend_and_output_matrix_by_loops() -> None:
    x = torch.randn(2, 4, 2, 3).double()
    attention = torch.randn(2, 3, 5, 6).double()
    kernel = torch.randn(6, 2, 3).double()
    attended = functional.content_attend(x, attention)
    y = functional.output_matrix(attended[..., None], kernel, groups=2)
    expected = torch.zeros(2, 6, 5, 1).double()
    for b, o, h, i, q in _indices(2, 6, 3, 2, 5):
        channel = (o // 3) * 2 + i
        pixels: Tensor = x[b, channel].flatten()
        expected[b, o, q, 0] += kernel[o, i, h] * (attention[b, h, q] @ pixels)
    torch.testing.assert_close(y, expected)


def _indices(*sizes: int) -> list[tuple[int, ...]]:
    return [tuple(index) for index in torch.cartesian_prod(*map(torch.arange, sizes)).tolist()]
