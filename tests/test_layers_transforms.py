"""The GPSA layer among other things: after other layers, and under PyTorch's transformations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import tcnn
from paths import forced
from reference import reference_of, relative_error, with_open_gates

DOUBLE = torch.float64


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize(
    ("window", "path"),
    [(None, "dense"), (None, "blocks"), (3, "dense"), (3, "blocks"), (3, "tiles")],
)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_reach_through_a_norm(
    batch: int,
    positions: str,
    window: Any,
    path: str,
    norm: Any,
    training: bool,
):
    """PyTorch's batch norm misreads some strides of the gradient that it is given, silently."""
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(positions=positions, window=window, locality_strength=2.0)
    layer = with_open_gates(tcnn.GPSA2d(4, 3, 3, padding=1, dtype=DOUBLE, config=config))
    before = norm(4, affine=True, dtype=DOUBLE).train(training)
    image = torch.randn(batch, 4, 6, 5, dtype=DOUBLE)
    direction = torch.linspace(-1, 1, batch * 90, dtype=DOUBLE).view(batch, 3, 6, 5)

    def gradient(after: Any) -> Tensor:
        x = image.clone().requires_grad_()
        (found,) = torch.autograd.grad((after(before(x)) * direction).sum(), x)
        return found

    expected = gradient(lambda y: reference_of(layer, y))
    with forced(path):
        assert relative_error(gradient(layer), expected) < 1e-10


@pytest.mark.parametrize("half", [False, True])
def test_float16_scores_do_not_overflow(half: bool):
    torch.manual_seed(0)
    conv = nn.Conv2d(512, 8, 3, padding=1)
    layer = tcnn.GPSA2d.from_conv2d(conv)
    x = 300 * torch.randn(1, 512, 7, 7)
    if half:
        conv, layer, x = conv.half(), layer.half(), x.half()
    with torch.autocast("cpu", torch.float16, enabled=not half):
        found, expected = layer(x), conv(x)
    assert expected.isfinite().all()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_draws_the_same_numbers(reentrant: bool):
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(attn_drop=0.3)
    net = nn.Sequential(tcnn.GPSA2d(3, 4, 3, config=config), nn.Dropout(0.5))
    gradients = []
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=reentrant)):
        x = torch.ones(2, 3, 8, 8, requires_grad=True)
        torch.manual_seed(1)
        loss = run(x).square().sum()
        gradients.append(torch.autograd.grad(loss, x)[0] if run is net else _backward(loss, x))
    assert torch.equal(*gradients)


def _backward(loss: Tensor, x: Tensor) -> Tensor:
    loss.backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own doing
@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_forward_mode_sees_a_shut_gate(positions: str):
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(positions=positions)
    layer = tcnn.GPSA2d(3, 4, 3, padding=1, dtype=DOUBLE, config=config)
    x = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    state = {n: p.detach() for n, p in layer.named_parameters()}

    def total(gate: Tensor) -> Tensor:
        return functional_call(layer, {**state, "gating_param": gate}, (x,)).sum()

    direction = torch.randn(9, dtype=DOUBLE)
    _, forward = jvp(total, (torch.zeros(9, dtype=DOUBLE),), (direction,))
    gate = torch.zeros(9, dtype=DOUBLE, requires_grad=True)
    (backward,) = torch.autograd.grad(total(gate), gate)
    assert forward.item() == pytest.approx((backward @ direction).item(), rel=1e-10)
    assert abs(forward.item()) > 1e-3


def test_an_ensemble_under_vmap():
    layers = [with_open_gates(tcnn.GPSA2d(3, 4, 3, padding=1), seed) for seed in range(3)]
    nn.init.zeros_(layers[0].gating_param)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        parameters, buffers = stack_module_state(layers)
        together = vmap(lambda p, b: functional_call(layers[1], (p, b), (x,)))(parameters, buffers)
        for layer, found in zip(layers, together, strict=True):
            torch.testing.assert_close(found, layer(x))


@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("kernel_last", [False, True])
@pytest.mark.parametrize("image_last", [False, True])
def test_memory_format_is_the_convolutions(
    positions: str, channels: int, kernel_last: bool, image_last: bool
):
    conv = nn.Conv2d(channels, 6, 3, padding=1)
    x = torch.randn(2, channels, 7, 8)
    if kernel_last:
        conv = conv.to(memory_format=torch.channels_last)
    if image_last:
        x = x.contiguous(memory_format=torch.channels_last)
    layer = tcnn.GPSA2d.from_conv2d(conv, tcnn.GPSAConfig(positions=positions))
    for layout in (torch.contiguous_format, torch.channels_last):
        expected = conv(x).is_contiguous(memory_format=layout)
        assert layer(x).is_contiguous(memory_format=layout) == expected


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_compiled_without_a_break_for_every_size(positions: str):
    config = tcnn.GPSAConfig(positions=positions, window=5, locality_strength=2.0)
    layer = with_open_gates(tcnn.GPSA2d(3, 4, 3, 2, 1, config=config)).eval()
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    for size in ((2, 3, 8, 8), (3, 3, 9, 7), (2, 3, 12, 10)):
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_exported_with_a_dynamic_batch(positions: str):
    layer = with_open_gates(tcnn.GPSA2d(3, 4, 3, 2, 1, config=tcnn.GPSAConfig(positions=positions)))
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(
            layer.eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},)
        )
        for size in (2, 5):
            x = torch.randn(size, 3, 8, 8)
            torch.testing.assert_close(program.module()(x), layer(x))


def test_positions_that_are_not_numbers_are_not_a_convolution():
    layer = tcnn.GPSA2d(2, 2, 3, config=tcnn.GPSAConfig(positions="learned"))
    with torch.no_grad():
        layer.v_pos[0] = torch.nan
    with pytest.raises(ValueError, match="positions"):
        layer.to_conv2d()
