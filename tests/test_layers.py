"""The GPSA layer, one promise a test: gates, cost, content and attention maps."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tcnn
from reference import (
    axis_of,
    content_attention,
    fold,
    positional_attention,
    reference_of,
    relative_error,
    with_open_gates,
)

DOUBLE = torch.float64


def flops(layer: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        layer(x)
    return counter.get_total_flops()


# Gates


@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize("window", [None, 3])
def test_a_shut_linear_gate_has_the_gradient_of_the_formula(positions: str, window: int | None):
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(positions=positions, window=window, locality_strength=2.0)
    layer = tcnn.GPSA2d(3, 4, (3, 2), (2, 1), (1, 1), dtype=DOUBLE, config=config)
    assert torch.equal(layer.gating_param, torch.zeros(6, dtype=DOUBLE))
    assert torch.equal(layer.gate, torch.ones(6, dtype=DOUBLE))
    x = torch.randn(2, 3, 7, 5, dtype=DOUBLE)
    y = layer(x)
    direction = torch.randn_like(y)
    (found,) = torch.autograd.grad((y * direction).sum(), layer.gating_param)

    rows, cols = axis_of(7, 3, 2, 1, 1), axis_of(5, 2, 1, 1, 1)
    v_pos = layer.v_pos.detach() if positions == "learned" else None
    position = positional_attention(rows, cols, v_pos)
    qk_dim = layer.qk.weight.shape[0] // 12
    content = content_attention(x, rows, cols, layer.qk.weight.detach(), qk_dim, window)
    onto_real = fold(rows, cols, "zeros")
    expected = []
    for h in range(6):
        head = layer.weight.detach()[:, :, h // 2, h % 2]
        # ∂L/∂A_h [batch, queries, keys] = (W_hᵀ ∂L/∂Y)ᵀ X, and ∂A_h/∂c_h = S_h - P_h
        by_attention = (head.T @ direction.flatten(2)).transpose(1, 2) @ x.flatten(2)
        expected.append((by_attention * (content[h] - position[h] @ onto_real)).sum())
    assert relative_error(found, torch.stack(expected)) < 1e-12
    assert found.abs().min() > 1e-3


def test_adam_moves_a_shut_linear_gate_at_the_first_step():
    torch.manual_seed(0)
    layer = tcnn.GPSA2d(4, 4, 3, padding=1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    layer(torch.randn(2, 4, 6, 6)).square().mean().backward()
    optimizer.step()
    moved = layer.gating_param.detach().abs()
    assert moved.min() > 0.9e-3 and (layer.gate != 1).all()


@pytest.mark.parametrize("logit", [-30.0, -2.0, 0.0, 1.0, 5.0, 14.0, 40.0])
def test_sigmoid_gates_at_any_logit(logit: float):
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(gate="sigmoid")
    layer = tcnn.GPSA2d(3, 5, 3, 1, 1, dtype=DOUBLE, config=config)
    nn.init.constant_(layer.gating_param, logit)
    nn.init.normal_(layer.qk.weight)
    x = torch.randn(2, 3, 5, 6, dtype=DOUBLE)
    y = layer(x)
    assert relative_error(y, reference_of(layer, x)) < 1e-12
    (found,) = torch.autograd.grad(y.square().sum(), layer.gating_param)
    (expected,) = torch.autograd.grad(reference_of(layer, x).square().sum(), layer.gating_param)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max() + 1e-12


@pytest.mark.parametrize("gate", ["linear", "sigmoid"])
@pytest.mark.parametrize("value", [0.0, 0.25, 0.7, 1.0])
def test_gate_init_is_the_gate_itself(gate: str, value: float):
    layer = tcnn.GPSA2d(3, 4, 3, config=tcnn.GPSAConfig(gate=gate, gate_init=value))
    torch.testing.assert_close(layer.gate, torch.full((9,), value), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(layer.content_share, 1 - layer.gate, atol=1e-7, rtol=0)
    if value == 1:
        assert (layer.gate == 1).all()
        assert (layer.gating_param == (0 if gate == "linear" else 40)).all()


def test_content_shares_have_no_floor_and_no_ceiling():
    torch.manual_seed(0)
    layer = tcnn.GPSA2d(3, 4, 3, padding=1, dtype=DOUBLE)
    x = torch.randn(1, 3, 6, 6, dtype=DOUBLE)
    for share in (-1.0, -1e-3, 1.5):
        nn.init.constant_(layer.gating_param, share)
        assert torch.equal(layer.content_share, torch.full((9,), share, dtype=DOUBLE))
        assert relative_error(layer(x), reference_of(layer, x)) < 1e-12
        (slope,) = torch.autograd.grad(layer(x).square().sum(), layer.gating_param)
        assert slope.abs().min() > 0


# Cost


def test_inference_with_shut_gates_costs_the_convolution_alone():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    layer = tcnn.GPSA2d.from_conv2d(conv)
    x = torch.randn(1, 8, 12, 12)
    plain = flops(conv, x)
    with torch.no_grad():
        assert flops(layer, x) == plain
        nn.init.ones_(layer.gating_param)
        full = flops(layer, x)
        nn.init.zeros_(layer.gating_param)
        layer.gating_param[4] = 0.3
        one = flops(layer, x)
    # The content of one head in nine beside the convolution.
    assert plain < one <= plain + full / 9 * 1.01
    assert relative_error(layer(x), reference_of(layer, x)) < 1e-5


def test_frozen_shut_gates_cost_the_convolution_alone_in_training():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    layer = tcnn.GPSA2d.from_conv2d(conv).train()
    x = torch.randn(1, 8, 10, 10)
    assert flops(layer, x) > 2 * flops(conv, x)
    layer.gating_param.requires_grad_(False)
    assert flops(layer, x) == flops(conv, x)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


# Content attention


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_content_keys_are_never_in_the_padding(mode: str):
    config = tcnn.GPSAConfig(gate_init=0.0, window=5)
    layer = tcnn.GPSA2d(2, 3, 3, padding=2, padding_mode=mode, dtype=DOUBLE, config=config)
    y = layer(torch.ones(1, 2, 6, 5, dtype=DOUBLE))
    # Averages of a constant image are constant, up to the border: no weight fell on a padded zero.
    expected = (layer.weight.sum((1, 2, 3)) + layer.bias).view(1, 3, 1, 1).expand_as(y)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-12)


def test_content_of_a_moved_image_comes_from_anywhere():
    """One bright pixel in the far corner reaches every query, but none through a window."""
    torch.manual_seed(0)
    for window, reaches in ((None, True), (3, False)):
        config = tcnn.GPSAConfig(gate_init=0.0, window=window)
        layer = tcnn.GPSA2d(1, 1, 3, padding=1, bias=False, dtype=DOUBLE, config=config)
        x = torch.zeros(1, 1, 9, 9, dtype=DOUBLE)
        x[..., 8, 8] = 1
        assert (layer(x)[0, 0, :7, :7] != 0).all().item() is reaches
        assert layer(x)[0, 0, 8, 8] != 0


def test_dropout_is_on_the_content_alone_and_in_training_alone():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    conv = nn.Conv2d(3, 4, 3, padding=1, dtype=DOUBLE)
    layer = tcnn.GPSA2d.from_conv2d(conv, tcnn.GPSAConfig(attn_drop=0.5))
    assert torch.equal(layer.train()(x), conv(x))
    with_open_gates(layer)
    expected = reference_of(layer, x)
    assert relative_error(layer.eval()(x), expected) < 1e-12
    layer.train()
    draws = torch.stack([layer(x).detach() for _ in range(2000)])
    assert (draws[0] != draws[1]).any()
    assert relative_error(draws.mean(0), expected) < 0.1  # dropout keeps the mean
    with torch.no_grad():
        nn.init.ones_(layer.gating_param)
    nearly_all = copy.deepcopy(layer)
    nearly_all.config = dataclasses.replace(layer.config, attn_drop=1 - 1e-9)
    bias = conv.bias.view(1, -1, 1, 1).expand(2, 4, 6, 6)
    torch.testing.assert_close(nearly_all(x), bias, atol=1e-12, rtol=0)


# Attention maps

MAPS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": (2, 3), "padding": "same", "padding_mode": "circular"},
    {"kernel_size": (3, 2), "padding": 2, "stride": (2, 3), "padding_mode": "replicate"},
    {"kernel_size": 2, "stride": 2, "dilation": 2, "groups": 2},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("options", MAPS, ids=str)
@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize("window", [None, 2])
def test_attention_maps_are_the_formulas(options: dict[str, Any], positions: str, window: Any):
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(positions=positions, window=window, locality_strength=1.0)
    layer = with_open_gates(tcnn.GPSA2d(4, 6, **options, dtype=DOUBLE, config=config))
    x = torch.randn(2, 4, 6, 7, dtype=DOUBLE)
    maps, y = layer.attention(x), layer(x)
    heads, (out_h, out_w) = layer.heads, y.shape[2:]
    assert maps.position.shape == (heads, out_h, out_w, 6, 7)
    assert maps.content.shape == (2, heads, out_h, out_w, 6, 7)
    assert torch.equal(maps.gate, layer.gate)
    assert maps.position.dtype == maps.content.dtype == DOUBLE
    # Content rows always sum to 1; positional ones but for what falls in the zero padding.
    assert (maps.content >= 0).all() and (maps.position >= 0).all()
    assert (maps.content.sum((-2, -1)) - 1).abs().max() < 1e-12
    total = maps.position.sum((-2, -1))
    assert total.max() < 1 + 1e-12
    if layer.padding_mode == "zeros" and layer.padding != (0, 0):
        assert total.min() < 0.9
    else:
        assert total.min() > 1 - 1e-12
    # The reference's own maps, and the output built from the layer's.
    rows, cols = (
        axis_of(
            (6, 7)[i],
            layer.kernel_size[i],
            layer.stride[i],
            layer.padding if isinstance(layer.padding, str) else layer.padding[i],
            layer.dilation[i],
        )
        for i in (0, 1)
    )
    v_pos = layer.v_pos.detach() if positions == "learned" else None
    onto_real = fold(rows, cols, layer.padding_mode)
    position = torch.stack([p @ onto_real for p in positional_attention(rows, cols, v_pos)])
    qk_dim = layer.qk.weight.shape[0] // (2 * heads)
    content = content_attention(x, rows, cols, layer.qk.weight.detach(), qk_dim, window)
    assert relative_error(maps.position.flatten(3).flatten(1, 2), position) < 1e-12
    assert relative_error(maps.content.flatten(4).flatten(2, 3), torch.stack(content, 1)) < 1e-12
    gate = layer.gate.detach().view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(maps.mixed, gate * maps.position + (1 - gate) * maps.content)
    weight = layer.weight.detach().flatten(2).unflatten(0, (layer.groups, -1))
    seen = torch.einsum("bhuvyx,bcyx->bhcuv", maps.mixed, x).unflatten(2, (layer.groups, -1))
    rebuilt = torch.einsum("goih,bhgiuv->bgouv", weight, seen).flatten(1, 2)
    assert relative_error(rebuilt + layer.bias.detach().view(-1, 1, 1), y.detach()) < 1e-12


def test_fixed_positions_are_one_hot():
    maps = tcnn.GPSA2d(2, 2, 3, padding=1).attention(torch.randn(1, 2, 4, 5))
    assert set(maps.position.unique().tolist()) == {0.0, 1.0}
    assert maps.position[4].flatten(2).argmax(-1).flatten().tolist() == list(range(20))
    assert maps.position[0, 0].sum() == 0  # the first tap reads padding along the first row
    assert maps.position[0, 2, 3, 1, 2] == 1


@pytest.mark.parametrize("alpha", [5.0, 20.0, 46.0])
def test_no_positional_attention_is_subnormal(alpha: float):
    config = tcnn.GPSAConfig(positions="learned", locality_strength=alpha)
    layer = tcnn.GPSA2d(2, 2, 3, padding=1, config=config)
    x = torch.randn(1, 2, 24, 24)
    tiny = torch.finfo(torch.float32).tiny
    maps = layer.attention(x)
    for values in (maps.position, layer(x)):
        assert not ((values != 0) & (values.abs() < tiny)).any()
    centre = maps.position[4, 12, 12]
    assert centre[12, 12] == pytest.approx(1 / (1 + 4 * 2.718281828459045**-alpha), rel=0.01)


def test_cosine_content_starts_as_likeness() -> None:
    """Of two kinds of pixels each attends to its own kind, as softmax(5 cos) says; and a constant
    image, whose pixels less their mean are nothing, has a finite gradient."""
    layer = tcnn.GPSA2d(4, 4, 3, padding=1, config=tcnn.GPSAConfig(content="cosine", qk_dim=4))
    one = torch.tensor([1.0, 2.0, -1.0, 0.5])
    x = torch.stack([one, -one] * 8, dim=1).view(1, 4, 4, 4)
    found = layer.attention(x).content[0].flatten(1, 2).flatten(2)
    kinds = torch.arange(16) % 2
    alike = (kinds[:, None] == kinds[None, :]).float()
    expected = (5 * (2 * alike - 1)).softmax(-1)
    torch.testing.assert_close(found, expected.expand(9, 16, 16), rtol=1e-4, atol=1e-6)
    flat = torch.ones(1, 4, 4, 4, requires_grad=True)
    with torch.no_grad():
        layer.gating_param.fill_(0.5)
    layer(flat).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all() and flat.grad.abs().max() < 1e3
