"""A capture shows the attention that a layer computed with, and changes no output by one bit."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paths import forced
from tcnn import GPSAConfig, recast
from tcnn.analysis.capture import capture

CONFIGS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "window": {"window": 3},
    "learned": {"positions": "learned", "locality_strength": 1.5},
    "cosine": {"content": "cosine"},
    "sigmoid": {"gate": "sigmoid"},
    "all": {"positions": "learned", "locality_strength": 1.5, "content": "cosine", "window": 4},
}


def hybrid(options: dict[str, Any], gate: float, **conv: Any) -> nn.Module:
    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, **{"padding": 1, **conv}), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=2),
    )  # fmt: skip
    config = GPSAConfig(gate_init=gate, **options)
    model = recast(cnn, ["0", "3", "5"], config, input_size=(3, 17, 13)).eval()
    with torch.no_grad():
        for name in ("0", "3", "5"):
            model.get_submodule(name).qk.weight.mul_(20)  # attention that is far from even
    return model


@pytest.mark.parametrize("autocast", [False, True], ids=["eager", "bf16"])
@pytest.mark.parametrize("gate", [1.0, 0.6])
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_equal_to_the_bit(name: str, gate: float, autocast: bool) -> None:
    model = hybrid(CONFIGS[name], gate)
    arithmetic = torch.autocast("cpu", torch.bfloat16, autocast)
    for size in ((17, 13), (8, 9), (5, 30)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad(), arithmetic:
            expected = model(x)
            with capture(model) as seen:
                got = model(x)
            assert torch.equal(got, expected) and torch.equal(model(x), expected)
        assert set(seen.inputs) == {"0", "3", "5"}
        model.zero_grad()
        with arithmetic:
            model(x).float().sum().backward()
            gradient = model.get_submodule("3").gating_param.grad.clone()
            model.zero_grad()
            with capture(model):
                model(x).float().sum().backward()
        assert torch.equal(model.get_submodule("3").gating_param.grad, gradient)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (name, path)
        for name, options in CONFIGS.items()
        for path in ("dense", "blocks", *(["tiles"] if "window" in options else []))
    ],
)
@pytest.mark.parametrize("autocast", [False, True], ids=["eager", "bf16"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_maps_are_what_every_path_computed_with(
    name: str, autocast: bool, path: str, mode: str
) -> None:
    model = hybrid(CONFIGS[name], 0.6, padding_mode=mode)
    x = torch.randn(2, 3, 17, 13)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, autocast):
        with forced(path), capture(model) as seen:
            model(x)
        with forced(path):
            outputs = {name: seen.layers[name](seen.inputs[name]) for name in seen.inputs}
    # Outside of autocast, whatever the call was in.
    for layer_name, x in seen.inputs.items():
        layer, maps = seen.layers[layer_name], seen.attention(layer_name)
        expected = outputs[layer_name].float()
        error = (by_hand(layer, maps.mixed.float(), x.float()) - expected).abs().max()
        assert error <= (5e-2 if autocast else 1e-5) * expected.abs().max()


def by_hand(layer: Any, mixed: Tensor, x: Tensor) -> Tensor:
    """Σ_h W_h (A_h X) + bias, group by group."""
    attended = torch.einsum("bhuvyx,bcyx->bchuv", mixed, x).flatten(1, 2)
    weight = layer.weight.flatten(1)[..., None, None]
    return F.conv2d(attended, weight, layer.bias, groups=layer.groups).detach()


def test_maps_of_some_images() -> None:
    model = hybrid({}, 0.6)
    with capture(model) as seen, torch.no_grad():
        model(torch.randn(3, 3, 9, 9))
    whole, part = seen.attention("3"), seen.attention("3", slice(1, 2))
    assert part.content.shape[0] == 1
    torch.testing.assert_close(part.content, whole.content[1:2])


@pytest.mark.parametrize("fails", ["model", "after"])
def test_hooks_are_gone_whatever_happens(fails: str) -> None:
    model = hybrid({}, 0.6)
    with contextlib.suppress(RuntimeError, ZeroDivisionError), capture(model):
        model(torch.randn(1, 2, 9, 9) if fails == "model" else torch.randn(1, 3, 9, 9))
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks for m in model.modules())
