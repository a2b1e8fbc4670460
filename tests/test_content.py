"""The paths of content attention: which is taken, what each costs, and where each gives way.

That all of them compute the same is in test_layers_sweep.py and test_layers_transforms.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

import tcnn
from paths import PATHS, forced
from reference import reference_of, relative_error, with_open_gates
from tcnn import content, content_op


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attention is small enough for the dense path."""
    monkeypatch.setattr(content, "_DENSE_PAIRS", 0)


@pytest.fixture
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every attention takes the path that the test is given."""
    with forced(request.param):
        yield request.param


def flops(layer: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        layer(x)
    return counter.get_total_flops()


# Which path


def test_the_path_follows_size_and_window() -> None:
    def path(side: int, window: int | None = None) -> str:
        scene = content.Scene((side, side), (side, side), (0, 0), (1, 1), window)
        return content.choose_path(pairs=side**4, tiles=scene.tile is not None)

    assert path(7) == path(14) == "dense" and path(28) == path(56) == "blocks"
    assert path(28, 7) == path(56, 7) == "tiles"
    assert path(7, 5) == "dense" and path(28, 27) == "blocks"


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
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 9),
)
def test_tiles_pay(size: tuple[int, int], stride: tuple[int, int], window: int) -> None:
    """The tile found is the cheapest, and sees no more than a quarter of the image."""
    grid = (-(-size[0] // stride[0]), -(-size[1] // stride[1]))
    scene = content.Scene(size, grid, (0, 0), stride, window)

    def cost(rows: int, columns: int) -> float:
        patch = ((rows - 1) * stride[0] + window) * ((columns - 1) * stride[1] + window)
        tiles = -(-grid[0] // rows) * -(-grid[1] // columns)
        return tiles * patch * (rows * columns + 2)

    costs = {
        (rows, columns): cost(rows, columns)
        for rows in range(1, min(8, grid[0]) + 1)
        for columns in range(1, min(8, grid[1]) + 1)
    }
    if scene.tile is not None:
        assert costs[scene.tile] == min(costs.values())
        assert 4 * scene.span(scene.tile)[0] * scene.span(scene.tile)[1] <= size[0] * size[1]
    else:
        assert 4 * window**2 > size[0] * size[1] or min(costs.values()) < costs[1, 1]
    moved = dataclasses.replace(scene, origin=(stride[0], 0))  # the last query lies beyond
    assert moved.tile is None or (grid[0] * stride[0]) <= size[0] - 1


# Exactness and number formats


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("training", [False, True])
def test_shut_gates_are_the_convolution_to_the_bit(path: str, training: bool) -> None:
    conv = nn.Conv2d(4, 6, 3, 2, 1, padding_mode="reflect")
    layer = tcnn.GPSA2d.from_conv2d(conv, tcnn.GPSAConfig(window=5)).train(training)
    x = torch.randn(2, 4, 12, 11)
    assert torch.equal(layer(x), conv(x))
    with torch.inference_mode():
        assert torch.equal(layer(x), conv(x))


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_numbers(path: str, positions: str, dtype: torch.dtype) -> None:
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


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_empty_batches(path: str) -> None:
    layer = with_open_gates(tcnn.GPSA2d(3, 4, 3, 2, 1, config=tcnn.GPSAConfig(window=3)))
    empty = layer(torch.empty(0, 3, 9, 8, requires_grad=True))
    assert empty.shape == (0, 4, 5, 4)
    empty.sum().backward()
    assert layer.weight.grad is not None and (layer.weight.grad == 0).all()


# Dropout, the same in both passes


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_gradients_under_dropout(path: str, positions: Any) -> None:
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(attn_drop=0.4, window=3, positions=positions, locality_strength=1.0)
    layer = with_open_gates(tcnn.GPSA2d(3, 4, 3, padding=1, dtype=torch.float64, config=config))
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]

    def total() -> Tensor:
        torch.manual_seed(1)
        return (layer(x) * torch.linspace(-1, 1, 2 * 4 * 72).view(2, 4, 9, 8)).sum()

    gradients = torch.autograd.grad(total(), inputs)
    for tensor, gradient in zip(inputs, gradients, strict=True):
        direction = torch.randn_like(tensor)
        with torch.no_grad():
            tensor += 1e-6 * direction
            above = total()
            tensor -= 2e-6 * direction
            below = total()
            tensor += 1e-6 * direction
        expected = (gradient * direction).sum().item()
        assert ((above - below) / 2e-6).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_dropout_drops_as_many_as_asked(path: str) -> None:
    """Of an image of ones a content output is Σ S·mask / (1 - p): 1 on average."""
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(attn_drop=0.25, window=5, gate_init=0.0)
    layer = tcnn.GPSA2d(1, 1, 1, bias=False, dtype=torch.float64, config=config)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.qk.weight)  # every key of the 25 alike
    x = torch.ones(64, 1, 16, 16, dtype=torch.float64)
    inner = layer(x)[:, :, 2:-2, 2:-2]
    assert inner.mean().item() == pytest.approx(1, abs=0.01)
    assert inner.var().item() == pytest.approx(0.25 / 0.75 / 25, rel=0.05)
    assert layer.eval()(x)[0, 0, 8, 8].item() == pytest.approx(1)


# Keys of cells


@pytest.mark.parametrize("path", ["dense", "blocks"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding_mode": "reflect"}])
@pytest.mark.parametrize("content", ["dot", "cosine"])
def test_keys_of_cells(path: str, options: dict[str, Any], content: Any) -> None:
    """Against attention that is computed cell by cell, and against its own maps."""
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(key_stride=3, content=content)
    conv = nn.Conv2d(4, 5, 3, padding=1, dtype=torch.float64, **options)
    layer = with_open_gates(tcnn.GPSA2d.from_conv2d(conv, config))
    x = torch.randn(2, 4, 8, 10, dtype=torch.float64)
    cells = [(slice(i, i + 3), slice(j, j + 3)) for i in range(0, 8, 3) for j in range(0, 10, 3)]
    means = torch.stack([x[:, :, a, b].mean((2, 3)) for a, b in cells], dim=2)
    shift = x.mean((2, 3))[..., None] if content == "cosine" else 0.0
    step = options.get("stride", 1)
    anchors = x[:, :, ::step, ::step].flatten(2) - shift
    weight = layer.qk.weight.view(2, 9, -1, 4)
    kernel, gate = layer.weight.flatten(2), layer.gate
    y = conv(x) * 0 + conv.bias.view(-1, 1, 1)
    for h in range(9):
        q = torch.einsum("dc,bcn->bnd", weight[0, h], anchors)
        k = torch.einsum("dc,bcn->bnd", weight[1, h], means - shift)
        if content == "cosine":
            q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
            q = q * layer.logit_scale[h].exp()
        else:
            q = q / q.shape[-1] ** 0.5
        seen = torch.softmax(q @ k.mT, -1) @ means.mT
        y = y + (1 - gate[h]) * (kernel[:, :, h] @ seen.mT).view_as(y)
        one = torch.zeros_like(conv.weight)
        one.flatten(2)[:, :, h] = kernel[:, :, h] * gate[h]
        alone = nn.Conv2d(4, 5, 3, padding=1, bias=False, dtype=torch.float64, **options)
        alone.weight.data = one
        y = y + alone(x)
    torch.testing.assert_close(layer(x), y)
    maps = layer.attention(x)
    torch.testing.assert_close(maps.content.sum((-2, -1)), torch.ones_like(maps.content[..., 0, 0]))
    if not options:
        seen = torch.einsum("bhuvyx,bcyx->bchuv", maps.mixed, x)
        by_maps = torch.einsum("och,bchuv->bouv", kernel, seen) + conv.bias.view(-1, 1, 1)
        torch.testing.assert_close(by_maps, y)


# torch.compile


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # within opcheck
@pytest.mark.parametrize(
    "config",
    [
        tcnn.GPSAConfig(),
        tcnn.GPSAConfig(window=3, attn_drop=0.2),
        tcnn.GPSAConfig(positions="learned", content="cosine"),
        tcnn.GPSAConfig(key_stride=2),
    ],
    ids=str,
)
def test_the_operator_is_what_it_tells_the_compiler(config: tcnn.GPSAConfig) -> None:
    """By PyTorch's own check: schema, shapes and strides of its fakes, gradients."""
    torch.manual_seed(0)
    layer = with_open_gates(tcnn.GPSA2d(4, 6, 3, padding=1, config=config))
    calls: list[tuple[Any, ...]] = []

    def record(*args: Any) -> Any:
        calls.append(args)
        with torch.no_grad():
            return content_op._forward(*args)

    with (
        mock.patch.object(torch.compiler, "is_compiling", lambda: True),
        mock.patch.object(content_op, "_operator", record),
    ):
        layer(torch.randn(2, 4, 9, 10, requires_grad=True))
    ((*tensors, tiles),) = calls
    inputs = [
        value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
        for value in (*tensors, tiles)
    ]
    torch.library.opcheck(content_op._operator, tuple(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        tcnn.GPSAConfig(),
        tcnn.GPSAConfig(window=3),
        tcnn.GPSAConfig(positions="learned", content="cosine"),
        tcnn.GPSAConfig(key_stride=2),
    ],
    ids=str,
)
def test_compiles_whole_and_once_more_for_other_sizes(config: tcnn.GPSAConfig) -> None:
    torch.manual_seed(0)
    layer = with_open_gates(tcnn.GPSA2d(4, 6, 3, padding=1, config=config)).eval()
    compiles = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal compiles
        compiles += 1
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for side in (7, 14, 9, 20, 28):
        ours = torch.randn(2, 4, side, side + 1, requires_grad=True)
        theirs = ours.detach().clone().requires_grad_()
        found, expected = compiled(ours), layer(theirs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        found.square().sum().backward()
        mine = {n: p.grad.clone() for n, p in layer.named_parameters() if p.grad is not None}
        layer.zero_grad()
        expected.square().sum().backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-3, atol=1e-3)
        layer.zero_grad()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    assert compiles <= 2


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
