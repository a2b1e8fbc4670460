"""The GPSA layer as a module beside nn.Conv2d: attributes, number formats, state, options."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import tcnn
from reference import reference_of, relative_error, with_open_gates

DOUBLE = torch.float64
ATTRIBUTES = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
    "padding_mode",
)

# The convolution's manners


def test_attributes_are_the_convolutions():
    conv = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), 2, 2, False, "reflect")
    layer = tcnn.GPSA2d(4, 6, (3, 2), (2, 1), (1, 0), 2, 2, False, "reflect")
    for other in (layer, tcnn.GPSA2d.from_conv2d(conv)):
        for name in ATTRIBUTES:
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
    layer = with_open_gates(tcnn.GPSA2d.from_conv2d(conv))
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
    layer = with_open_gates(tcnn.GPSA2d(3, 4, 3, 2, 1, config=config))
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
    assert relative_error(found, expected) < 2e-2
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
    assert (layer.gating_param.grad != 0).all()

    with torch.no_grad():
        nn.init.constant_(layer.gating_param, 0.4)
    expected = reference_of(layer, x)
    with torch.autocast("cpu", dtype):
        found = layer(x)
    assert found.dtype == dtype and relative_error(found, expected) < 3e-2
    found = layer.to(dtype)(x.to(dtype))
    assert found.dtype == dtype and relative_error(found, expected) < 3e-2


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
        assert relative_error(y, reference_of(layer, x)) < 1e-5
        with_open_gates(layer)


# State


@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_deepcopy_pickle_and_state_dict(positions: str):
    config = tcnn.GPSAConfig(positions=positions, window=4, qk_dim=3)
    layer = with_open_gates(tcnn.GPSA2d(3, 4, (2, 3), padding=1, config=config))
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
    assert relative_error(layer(x), conv(x)) <= (0 if positions == "fixed" else 1e-5)


def test_default_qk_width_and_learned_start():
    assert tcnn.GPSA2d(90, 4, 3).qk.weight.shape == (2 * 9 * 10, 90)
    assert tcnn.GPSA2d(16, 4, 3).qk.weight.shape == (2 * 9 * 8, 16)
    config = tcnn.GPSAConfig(positions="learned", locality_strength=3.0)
    layer = tcnn.GPSA2d(2, 2, (3, 2), padding=(1, 0), dilation=2, config=config)
    centres = [(2 * a - 1, 2 * b) for a in range(3) for b in range(2)]
    expected = [[-3.0, 6.0 * row, 6.0 * col] for row, col in centres]
    torch.testing.assert_close(layer.v_pos, torch.tensor(expected))
    assert layer.v_pos.requires_grad


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
