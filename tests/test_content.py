"""The paths of content attention: which is taken, what each costs, and where each gives way.

That all of them compute the same is in test_layers_sweep.py and test_layers_transforms.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

import tcnn
from reference import reference_of, relative_error, with_open_gates
from tcnn import content, content_tiles

PATHS = ["dense", "blocks", "tiles"]


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attention is small enough for the dense path."""
    monkeypatch.setattr(content, "_DENSE_ELEMENTS", 0)


def flops(layer: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        layer(x)
    return counter.get_total_flops()


# Which path


def test_the_path_follows_size_window_and_dropout() -> None:
    def path(side: int, tile_keys: int | None = None, drops: bool = False) -> str:
        return content.choose_path(
            batch=4, heads=9, queries=side**2, keys=side**2, tile_keys=tile_keys, drops=drops
        )

    assert path(7) == "dense" and path(28) == path(56) == "blocks"
    assert path(28, drops=True) == "dense"
    assert path(28, tile_keys=100) == path(28, tile_keys=100, drops=True) == "tiles"
    assert path(7, tile_keys=36) == "dense" and path(28, tile_keys=700) == "blocks"


def largest_tensor(layer: nn.Module, x: Tensor) -> int:
    """Elements of the largest tensor that a step makes or keeps."""
    seen = [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple) else (out,):
                if isinstance(value, Tensor):
                    seen[0] = max(seen[0], value.untyped_storage().nbytes() // x.element_size())
            return out

    with Watch():
        layer(x).sum().backward()
    return seen[0]


@pytest.mark.parametrize("window", [None, 7])
def test_no_matrix_of_all_queries_and_keys(window: int | None) -> None:
    layer = tcnn.GPSA2d(8, 8, 3, padding=1, config=tcnn.GPSAConfig(gate_init=0.7, window=window))
    x = torch.randn(2, 8, 40, 40, requires_grad=True)
    dense = 2 * 9 * 1600**2
    assert largest_tensor(layer, x) < dense / 10


def test_a_window_costs_the_same_for_each_pixel() -> None:
    layer = tcnn.GPSA2d(4, 4, 3, padding=1, config=tcnn.GPSAConfig(gate_init=0.7, window=7))
    each = []
    with torch.no_grad():
        for side in (28, 112):
            each.append(flops(layer, torch.randn(1, 4, side, side)) / side**2)
    assert each[1] <= 1.2 * each[0]


def test_a_merged_position_saves_the_convolution() -> None:
    layer = tcnn.GPSA2d(16, 16, 3, padding=1, config=tcnn.GPSAConfig(gate_init=0.7))
    x = torch.randn(1, 16, 7, 7)
    alone = flops(nn.Conv2d(16, 16, 3, padding=1), x)
    with torch.no_grad():
        merged = flops(layer, x)
        nn.init.zeros_(layer.gating_param[:1])
        split = flops(layer, x)  # eight heads of nine, beside the convolution
    assert merged <= split - alone + (split - alone) / 8 * 1.01


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 20),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 9),
    st.integers(1, 6),
)
def test_a_tile_sees_all_that_its_queries_see(
    size: int, stride: int, beyond: int, window: int, side: int
) -> None:
    anchors = torch.arange(0, size + beyond, stride).clamp(max=size - 1).float()
    tiles = content_tiles.axis_tiles(anchors, size, stride, window, side)
    assert (tiles.keys >= 0).all() and (tiles.keys < size).all()
    for queries, keys in zip(tiles.queries.tolist(), tiles.keys.tolist(), strict=True):
        assert len(set(keys)) == len(keys)
        for query in queries:
            anchor = int(anchors[query])
            near = range(anchor - (window - 1) // 2, anchor + window // 2 + 1)
            assert {key for key in near if 0 <= key < size} <= set(keys)
    assert tiles.queries.unique().tolist() == list(range(len(anchors)))
    assert (tiles.offsets[0, 0] == tiles.keys[0] - anchors[tiles.queries[0, 0]]).all()


# Exactness and number formats


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("training", [False, True])
def test_shut_gates_are_the_convolution_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, path: str, training: bool
) -> None:
    monkeypatch.setattr(content, "choose_path", lambda **_: path)
    conv = nn.Conv2d(4, 6, 3, 2, 1, padding_mode="reflect")
    layer = tcnn.GPSA2d.from_conv2d(conv, tcnn.GPSAConfig(window=5)).train(training)
    x = torch.randn(2, 4, 12, 11)
    assert torch.equal(layer(x), conv(x))
    with torch.inference_mode():
        assert torch.equal(layer(x), conv(x))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_numbers(
    monkeypatch: pytest.MonkeyPatch, path: str, positions: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(content, "choose_path", lambda **_: path)
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(positions=positions, gate_init=0.6, window=5, content="cosine")
    layer = tcnn.GPSA2d(8, 8, 3, padding=1, config=config)
    image = torch.randn(2, 8, 12, 12)
    expected = reference_of(layer, image)
    direction = torch.randn(expected.shape)
    wanted = torch.autograd.grad((expected * direction).sum(), list(layer.parameters()))
    limit = 1e-5 if dtype == torch.float32 else 3e-2
    for autocast in (False, True):
        if autocast and dtype == torch.float32:
            continue
        own, x = (layer, image) if autocast else (layer.to(dtype), image.to(dtype))
        with torch.autocast("cpu", dtype, enabled=autocast):
            found = own(x)
        assert found.dtype == dtype and relative_error(found, expected) < limit
        found = torch.autograd.grad((found * direction).sum(), list(own.parameters()))
        for (name, _), mine, truth in zip(own.named_parameters(), found, wanted, strict=True):
            if name != "v_pos" and truth.abs().max() > 1:  # of weights that move a float16 output
                assert relative_error(mine, truth) < 5 * limit, name
        layer = layer.float()


@pytest.mark.parametrize("path", PATHS)
def test_empty_batches(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(content, "choose_path", lambda **_: path)
    layer = with_open_gates(tcnn.GPSA2d(3, 4, 3, 2, 1, config=tcnn.GPSAConfig(window=3)))
    empty = layer(torch.empty(0, 3, 9, 8, requires_grad=True))
    assert empty.shape == (0, 4, 5, 4)
    empty.sum().backward()
    assert layer.weight.grad is not None and (layer.weight.grad == 0).all()


# Where only plain operations will do


def test_blocks_refuse_a_second_derivative(everything_is_large: None) -> None:
    layer = with_open_gates(tcnn.GPSA2d(2, 2, 3, padding=1))
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own doing
@pytest.mark.parametrize("window", [None, 3])
def test_transforms_take_the_dense_path(everything_is_large: None, window: int | None) -> None:
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(window=window)
    layer = with_open_gates(tcnn.GPSA2d(3, 4, 3, padding=1, dtype=torch.float64, config=config))
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    state = {n: p.detach() for n, p in layer.named_parameters()}

    def total(image: Tensor) -> Tensor:
        return functional_call(layer, state, (image[None],)).square().sum()

    y = layer(x).detach()
    torch.testing.assert_close(vmap(lambda image: layer(image))(x).detach(), y)
    each = vmap(grad(total))(x)
    image = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(image).square().sum(), image)
    torch.testing.assert_close(each, expected)
    direction = torch.randn_like(x[0])
    _, forward = jvp(total, (x[0],), (direction,))
    torch.testing.assert_close(forward, (expected[0] * direction).sum())
    assert layer.to("meta")(x.to("meta")).shape == y.shape
