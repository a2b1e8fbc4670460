"""The GPSA layer, one promise a test: gates, cost, number formats, state, attention maps, options."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from reference import (
    axis_of,
    content_attention,
    fold,
    positional_attention,
    reference_of,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tcnn

DOUBLE = torch.float64


def opened(layer: tcnn.GPSA2d, seed: int = 0) -> tcnn.GPSA2d:
    """The layer with every gate open by a different amount, of both signs, and sharp content."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.gating_param.copy_(torch.randn(layer.heads, generator=generator))
        layer.qk.weight.copy_(torch.randn(layer.qk.weight.shape, generator=generator))
    return layer


def flops(layer: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        layer(x)
    return counter.get_total_flops()


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).abs().max()
    return (difference / expected.double().abs().max()).item()


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
    assert error(found, torch.stack(expected)) < 1e-12
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
    assert error(y, reference_of(layer, x)) < 1e-12
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
        assert error(layer(x), reference_of(layer, x)) < 1e-12
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
    # The content of one head in nine, and no more than one more convolution beside it.
    assert plain < one <= plain + (full - plain) / 9 * 1.01
    assert error(layer(x), reference_of(layer, x)) < 1e-5


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
    opened(layer)
    expected = reference_of(layer, x)
    assert error(layer.eval()(x), expected) < 1e-12
    layer.train()
    draws = torch.stack([layer(x).detach() for _ in range(2000)])
    assert (draws[0] != draws[1]).any()
    assert error(draws.mean(0), expected) < 0.1  # dropout keeps the mean
    with torch.no_grad():
        nn.init.ones_(layer.gating_param)
    nearly_all = copy.deepcopy(layer)
    nearly_all.config = dataclasses.replace(layer.config, attn_drop=1 - 1e-9)
    bias = conv.bias.view(1, -1, 1, 1).expand(2, 4, 6, 6)
    torch.testing.assert_close(nearly_all(x), bias, atol=1e-12, rtol=0)


# The convolution's manners


def test_attributes_are_the_convolutions():
    conv = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), 2, 2, False, "reflect")
    layer = tcnn.GPSA2d(4, 6, (3, 2), (2, 1), (1, 0), 2, 2, False, "reflect")
    for other in (layer, tcnn.GPSA2d.from_conv2d(conv)):
        for name in (
            "in_channels out_channels kernel_size stride padding dilation transposed "
            "output_padding groups padding_mode"
        ).split():
            assert getattr(other, name) == getattr(conv, name), name
        assert other.bias is None and other.weight.shape == conv.weight.shape
        assert other.heads == 6
    assert not isinstance(layer, nn.Conv2d)
    assert tcnn.GPSA2d(1, 1, 3, padding="same").padding == "same"


def test_a_fresh_layer_starts_as_a_fresh_convolution():
    torch.manual_seed(3)
    conv = nn.Conv2d(3, 8, 3)
    torch.manual_seed(3)
    layer = tcnn.GPSA2d(3, 8, 3)
    assert torch.equal(layer.weight, conv.weight) and torch.equal(layer.bias, conv.bias)


def test_constructor_refuses_what_a_convolution_refuses():
    for arguments in ({"groups": 3}, {"padding_mode": "mirror"}, {"padding": "full"}):
        with pytest.raises(ValueError):
            nn.Conv2d(4, 4, 3, **arguments)
        with pytest.raises(ValueError):
            tcnn.GPSA2d(4, 4, 3, **arguments)
    with pytest.raises(ValueError, match="same"):
        tcnn.GPSA2d(4, 4, 3, stride=2, padding="same")


@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (1, 4, 6, 6), (6, 6), (1, 1, 3, 6, 6)])
def test_wrong_inputs_are_errors_as_for_the_convolution(shape: tuple[int, ...]):
    conv = nn.Conv2d(3, 4, 3)
    layer = opened(tcnn.GPSA2d.from_conv2d(conv))
    x = torch.randn(shape)
    with pytest.raises(RuntimeError):
        conv(x)
    with pytest.raises((RuntimeError, ValueError)):
        layer(x)


def test_from_conv2d_is_a_complete_copy():
    conv = nn.Conv2d(3, 4, 3, dtype=DOUBLE).eval()
    conv.weight.requires_grad_(False)
    layer = tcnn.GPSA2d.from_conv2d(conv)
    assert not layer.training and not layer.weight.requires_grad and layer.bias.requires_grad
    assert {p.dtype for p in layer.parameters()} == {DOUBLE}
    conv.weight.add_(1)
    assert not torch.equal(conv.weight, layer.weight)
    with pytest.raises(ValueError, match="Linear"):
        tcnn.GPSA2d.from_conv2d(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="ConvTranspose2d"):
        tcnn.GPSA2d.from_conv2d(nn.ConvTranspose2d(3, 3, 3))


def test_to_conv2d_is_exact_or_refused():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, 2, 1, groups=2, padding_mode="circular")
    layer = tcnn.GPSA2d.from_conv2d(conv).train(False)
    layer.weight.requires_grad_(False)
    back = layer.to_conv2d()
    x = torch.randn(2, 4, 9, 9)
    assert type(back) is nn.Conv2d and torch.equal(back(x), conv(x))
    assert not back.training and not back.weight.requires_grad
    assert list(back.state_dict()) == list(conv.state_dict())
    with torch.no_grad():
        layer.gating_param[3] = 1e-9
    with pytest.raises(ValueError, match="content"):
        layer.to_conv2d()
    soft = tcnn.GPSAConfig(positions="learned", locality_strength=2.0)
    with pytest.raises(ValueError, match="position"):
        tcnn.GPSA2d.from_conv2d(conv, soft).to_conv2d()


@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_unbatched_and_empty_batches(positions: str):
    config = tcnn.GPSAConfig(positions=positions)
    layer = opened(tcnn.GPSA2d(3, 4, 3, 2, 1, config=config))
    x = torch.randn(3, 7, 8)
    torch.testing.assert_close(layer(x), layer(x[None])[0])
    for shut in (False, True):
        if shut:
            nn.init.zeros_(layer.gating_param)
        empty = layer(torch.empty(0, 3, 7, 8, requires_grad=True))
        assert empty.shape == (0, 4, 4, 4)
        empty.sum().backward()
        assert (layer.weight.grad == 0).all()


# Number formats


@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_layers(positions: str, dtype: torch.dtype):
    torch.manual_seed(0)
    config = tcnn.GPSAConfig(positions=positions)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    layer = tcnn.GPSA2d.from_conv2d(conv, config)
    x = torch.randn(2, 8, 8, 8)
    with torch.autocast("cpu", dtype):
        found, expected = layer(x), conv(x)
        assert found.dtype == expected.dtype == dtype
        if positions == "fixed":
            assert torch.equal(found, expected)
        found.float().square().mean().backward()
    assert error(found, expected) < 2e-2
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
    assert (layer.gating_param.grad != 0).all()

    with torch.no_grad():
        nn.init.constant_(layer.gating_param, 0.4)
    expected = reference_of(layer, x)
    with torch.autocast("cpu", dtype):
        found = layer(x)
    assert found.dtype == dtype and error(found, expected) < 3e-2
    found = layer.to(dtype)(x.to(dtype))
    assert found.dtype == dtype and error(found, expected) < 3e-2


def test_a_bfloat16_layer_with_shut_gates_is_the_bfloat16_convolution():
    conv = nn.Conv2d(8, 8, 3, padding=1, dtype=torch.bfloat16)
    layer = tcnn.GPSA2d.from_conv2d(conv)
    x = torch.randn(2, 8, 8, 8, dtype=torch.bfloat16)
    assert torch.equal(layer(x), conv(x))


@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last(positions: str, batch: int):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last)
    layer = tcnn.GPSA2d.from_conv2d(conv, tcnn.GPSAConfig(positions=positions))
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(batch, 4, 7, 8).to(memory_format=torch.channels_last)
    for _ in range(2):
        y = layer(x)
        assert conv(x).is_contiguous(memory_format=torch.channels_last)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert error(y, reference_of(layer, x)) < 1e-5
        opened(layer)


# State


@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_deepcopy_pickle_and_state_dict(positions: str):
    config = tcnn.GPSAConfig(positions=positions, window=4, qk_dim=3)
    layer = opened(tcnn.GPSA2d(3, 4, (2, 3), padding=1, config=config))
    x = torch.randn(2, 3, 6, 7)
    expected = layer(x)  # whatever the layer caches is there when it is copied
    loaded = tcnn.GPSA2d(3, 4, (2, 3), padding=1, config=config)
    loaded.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other(x), expected) and other.config == config
    names = {"weight", "bias", "qk.weight", "gating_param"}
    assert set(layer.state_dict()) == names | ({"v_pos"} if positions == "learned" else set())
    assert layer.qk.weight.shape == (2 * 6 * 3, 3) and layer.gating_param.shape == (6,)


@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_a_convolutions_checkpoint_loads(positions: str):
    conv = nn.Conv2d(3, 4, 3)
    layer = tcnn.GPSA2d(3, 4, 3, config=tcnn.GPSAConfig(positions=positions))
    outcome = layer.load_state_dict(conv.state_dict(), strict=False)
    added = {"qk.weight", "gating_param"} | ({"v_pos"} if positions == "learned" else set())
    assert set(outcome.missing_keys) == added and not outcome.unexpected_keys
    x = torch.randn(1, 3, 6, 6)
    assert error(layer(x), conv(x)) <= (0 if positions == "fixed" else 1e-5)


def test_default_qk_width_and_learned_start():
    assert tcnn.GPSA2d(90, 4, 3).qk.weight.shape == (2 * 9 * 10, 90)
    assert tcnn.GPSA2d(16, 4, 3).qk.weight.shape == (2 * 9 * 8, 16)
    config = tcnn.GPSAConfig(positions="learned", locality_strength=3.0)
    layer = tcnn.GPSA2d(2, 2, (3, 2), padding=(1, 0), dilation=2, config=config)
    centres = [(2 * a - 1, 2 * b) for a in range(3) for b in range(2)]
    expected = [[-3.0, 6.0 * row, 6.0 * col] for row, col in centres]
    torch.testing.assert_close(layer.v_pos, torch.tensor(expected))
    assert layer.v_pos.requires_grad


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
    layer = opened(tcnn.GPSA2d(4, 6, **options, dtype=DOUBLE, config=config))
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
    assert error(maps.position.flatten(3).flatten(1, 2), position) < 1e-12
    assert error(maps.content.flatten(4).flatten(2, 3), torch.stack(content, 1)) < 1e-12
    gate = layer.gate.detach().view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(maps.mixed, gate * maps.position + (1 - gate) * maps.content)
    weight = layer.weight.detach().flatten(2).unflatten(0, (layer.groups, -1))
    seen = torch.einsum("bhuvyx,bcyx->bhcuv", maps.mixed, x).unflatten(2, (layer.groups, -1))
    rebuilt = torch.einsum("goih,bhgiuv->bgouv", weight, seen).flatten(1, 2)
    assert error(rebuilt + layer.bias.detach().view(-1, 1, 1), y.detach()) < 1e-12


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


# Options


BAD: list[tuple[str, Any]] = [
    ("gate", "tanh"),
    ("positions", "free"),
    ("gate_init", 1.5),
    ("gate_init", -0.1),
    ("gate_init", float("nan")),
    ("locality_strength", 0.0),
    ("locality_strength", -1.0),
    ("locality_strength", float("nan")),
    ("locality_strength", float("inf")),
    ("qk_dim", 0),
    ("qk_dim", 2.5),
    ("qk_dim", True),
    ("window", 0),
    ("window", -3),
    ("window", 3.0),
    ("attn_drop", 1.0),
    ("attn_drop", -0.1),
    ("attn_drop", float("nan")),
]


@pytest.mark.parametrize(("option", "value"), BAD, ids=str)
def test_options_out_of_range_are_named(option: str, value: Any):
    with pytest.raises(ValueError) as caught:
        tcnn.GPSAConfig(**{option: value})
    message = str(caught.value)
    assert f"`{option}`" in message and repr(value) in message
    assert message.startswith("Expected") and message.endswith(".")


def test_options_are_frozen_and_named():
    config = tcnn.GPSAConfig()
    assert (config.gate, config.gate_init, config.positions) == ("linear", 1.0, "fixed")
    assert (config.qk_dim, config.window, config.attn_drop) == (None, None, 0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gate = "sigmoid"
    with pytest.raises(TypeError):
        tcnn.GPSAConfig("linear")
    assert config == tcnn.GPSAConfig() and hash(config) == hash(tcnn.GPSAConfig())
