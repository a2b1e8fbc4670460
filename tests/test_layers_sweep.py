"""The GPSA layer over all options of nn.Conv2d, against the convolution and the dense reference."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tcnn
from paths import forced
from reference import reference_of

# torch itself says so of nn.Conv2d(padding="same") with an even kernel.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

SWEEP = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of nn.Conv2d, over its whole range."""
    groups, per_in, per_out = draw(
        st.one_of(
            st.tuples(st.just(1), st.integers(1, 5), st.integers(1, 5)),
            st.tuples(st.integers(2, 3), st.integers(1, 3), st.integers(1, 3)),
            st.tuples(st.integers(2, 5), st.just(1), st.integers(1, 2)),  # depthwise
        )
    )
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    kernel = draw(
        st.sampled_from([(3, 3), (1, 1), (2, 2), (1, 5), (5, 1), (4, 3), (2, 3)]) | pair(1, 4)
    )
    padding = draw(st.sampled_from(["same", "valid", 0, 1]) | pair(0, 4))
    stride = (1, 1) if padding == "same" else draw(pair(1, 2) | pair(1, 5))
    return {
        "in_channels": groups * per_in,
        "out_channels": groups * per_out,
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": draw(st.just((1, 1)) | pair(1, 3)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(
            st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])
        ),
    }


@st.composite
def sizes_for(draw: st.DrawFn, options: dict[str, Any]) -> tuple[int, int]:
    """An image size that the convolution takes."""
    size = []
    for axis in (0, 1):
        extent = options["dilation"][axis] * (options["kernel_size"][axis] - 1) + 1
        padding = options["padding"]
        if padding == "same":
            most, total = extent // 2, extent - 1
        elif padding == "valid":
            most = total = 0
        else:
            most = padding if isinstance(padding, int) else padding[axis]
            total = 2 * most
        least = max(1, extent - total)
        if options["padding_mode"] == "reflect":
            least = max(least, most + 1)
        elif options["padding_mode"] == "circular":
            least = max(least, most)
        size.append(draw(st.integers(least, least + 6)))
    return size[0], size[1]


def gradients(y: Tensor, wanted: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Gradients of Σ y · r with a fixed random r, so that no output element is left out."""
    r = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = torch.autograd.grad((y * r.to(y.dtype)).sum(), list(wanted.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if grad is None else grad
        for (name, value), grad in zip(wanted.items(), found, strict=True)
    }


def worst(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| / max |expected|."""
    assert found.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    difference = (found.double() - expected.double()).abs().max().item()
    return difference / max(expected.double().abs().max().item(), 1e-300) if difference else 0.0


@SWEEP
@given(data=st.data(), options=convolutions(), seed=st.integers(0, 2**16))
def test_shut_gates_are_the_convolution(data: st.DataObject, options: dict[str, Any], seed: int):
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), label="dtype")
    positions = data.draw(st.sampled_from(["fixed", "fixed", "learned"]), label="positions")
    config = tcnn.GPSAConfig(
        gate=data.draw(st.sampled_from(["linear", "sigmoid"]), label="gate"),
        positions=positions,
        window=data.draw(st.none() | st.integers(1, 4), label="window"),
        attn_drop=data.draw(st.sampled_from([0.0, 0.4]), label="attn_drop"),
    )
    torch.manual_seed(seed)
    conv = nn.Conv2d(**options, dtype=dtype)
    layer = tcnn.GPSA2d.from_conv2d(conv, config)
    layer.train(data.draw(st.booleans(), label="training"))
    for call in range(2):  # the second image usually has another size
        batch = data.draw(st.integers(1, 3), label="batch")
        height, width = data.draw(sizes_for(options), label="size")
        x = torch.randn(batch, options["in_channels"], height, width, dtype=dtype)
        theirs = {"input": x.clone().requires_grad_(), **dict(conv.named_parameters())}
        ours = {"input": x.clone().requires_grad_(), "weight": layer.weight}
        if layer.bias is not None:
            ours["bias"] = layer.bias
        expected, found = conv(theirs["input"]), layer(ours["input"])
        pairs = {"output": (found, expected)}
        after, before = gradients(found, ours, seed), gradients(expected, theirs, seed)
        assert after.keys() == before.keys()
        pairs |= {name: (after[name], before[name]) for name in before}
        with torch.no_grad():
            pairs["inference"] = (layer(x), expected)
        for name, (mine, truth) in pairs.items():
            assert mine.dtype == truth.dtype and mine.shape == truth.shape, (name, call)
            if positions == "fixed":
                assert torch.equal(mine, truth), (name, call, worst(mine, truth))
            elif truth.any():  # all taps in the padding: nothing to be relative to
                assert worst(mine, truth) <= 1e-5, (name, call)
            else:
                assert not mine.numel() or mine.abs().max() <= 1e-7, (name, call)


@SWEEP
@given(data=st.data(), options=convolutions(), seed=st.integers(0, 2**16))
def test_open_gates_are_the_dense_reference(
    data: st.DataObject, options: dict[str, Any], seed: int
):
    config = tcnn.GPSAConfig(
        gate=data.draw(st.sampled_from(["linear", "sigmoid"]), label="gate"),
        positions=data.draw(st.sampled_from(["fixed", "learned"]), label="positions"),
        locality_strength=data.draw(st.sampled_from([0.1, 1.0, 5.0]), label="alpha"),
        content=data.draw(st.sampled_from(["dot", "cosine"]), label="content"),
        qk_dim=data.draw(st.none() | st.integers(1, 6), label="qk_dim"),
        window=data.draw(st.none() | st.integers(1, 5), label="window"),
    )
    torch.manual_seed(seed)
    layer = tcnn.GPSA2d(**options, dtype=torch.float64, config=config)
    with torch.no_grad():
        # Shares on both sides of 0 and beyond 1, some exactly 0; any positions; sharp content.
        layer.gating_param.copy_(torch.randn(layer.heads))
        if config.gate == "linear":
            layer.gating_param[torch.rand(layer.heads) < 0.3] = 0.0
        layer.qk.weight.copy_(torch.randn_like(layer.qk.weight))
        if config.content == "cosine":
            layer.logit_scale.copy_(torch.randn(layer.heads))
        if config.positions == "learned":
            layer.v_pos.add_(torch.randn_like(layer.v_pos))
    # Each path at every size, whichever the layer would choose.
    paths = ["dense", "blocks"] if config.window is None else ["dense", "blocks", "tiles"]
    path = data.draw(st.sampled_from(paths), label="path")
    frozen = data.draw(st.booleans(), label="frozen gates")
    layer.gating_param.requires_grad_(not frozen)
    twin = copy.deepcopy(layer)
    for call in range(2):
        height, width = data.draw(sizes_for(options), label="size")
        assume(height * width <= 150)
        x = torch.randn(2, options["in_channels"], height, width, dtype=torch.float64)
        ours = {"input": x.clone().requires_grad_()}
        ours |= {n: p for n, p in layer.named_parameters() if p.requires_grad}
        theirs = {"input": x.clone().requires_grad_()}
        theirs |= {n: p for n, p in twin.named_parameters() if p.requires_grad}
        expected = reference_of(twin, theirs["input"])
        before = gradients(expected, theirs, seed)
        with forced(path, block=500):
            found = layer(ours["input"])
            after = gradients(found, ours, seed)
        assert worst(found, expected) <= 1e-10, call
        for name, truth in before.items():
            # 1e-12: a gradient that is zero but for rounding (one key alone, a shut head).
            error = (after[name] - truth).abs().max().item()
            assert error <= 1e-10 * truth.abs().max().item() + 1e-12, (name, call, error)
        with torch.no_grad(), forced(path):
            assert worst(layer(x), expected) <= 1e-10, call
    event(
        f"{path}, {config.positions}, {config.gate}, {config.content}, "
        f"window {config.window is not None}"
    )
