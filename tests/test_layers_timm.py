"""timm's convolutions that compute something else than nn.Conv2d, against the dense reference.

Padding by TensorFlow's SAME rule, which depends on the image's size, and weights that are
standardised at run time. The effective kernel is read off timm's own layer by probing it.
"""

from __future__ import annotations

import copy

import pytest
import torch
from timm import layers as timm_layers
from torch import Tensor, nn

import tcnn
from reference import Axis, reference_of, relative_error, with_open_gates

DOUBLE = torch.float64
KINDS = [
    "Conv2dSame",
    "StdConv2d",
    "StdConv2dSame",
    "ScaledStdConv2d",
    "ScaledStdConv2dSame",
]


def effective_kernel(conv: nn.Conv2d) -> Tensor:
    """What a dense convolution multiplies by: its answers to the impulses under its kernel."""
    probe = copy.copy(conv)
    probe._parameters = dict(conv._parameters) | {"bias": None}
    probe.stride, probe.padding, probe.dilation, probe.same_pad = (1, 1), (0, 0), (1, 1), False
    if type(conv) is timm_layers.Conv2dSame:  # its weight is the kernel itself
        return conv.weight
    channels, (height, width) = conv.in_channels, conv.kernel_size
    impulses = torch.eye(channels * height * width, dtype=DOUBLE)
    answers = probe(impulses.view(-1, channels, height, width))
    return answers.reshape(-1, conv.out_channels).T.reshape(-1, channels, height, width)


def same_axis(size: int, kernel: int, stride: int, dilation: int) -> Axis:
    """TensorFlow's rule: just enough padding for ceil(size / stride) outputs, less of it before.

    Centres are those of stride 1, whatever the size; the anchors make up the difference.
    """
    queries = -(-size // stride)
    total = max((queries - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    middle = dilation * (kernel - 1) // 2
    return Axis(
        size=size,
        before=total // 2,
        after=total - total // 2,
        anchors=[u * stride + middle - total // 2 for u in range(queries)],
        centres=[a * dilation - middle for a in range(kernel)],
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 2, 1), (2, 3, 1), (3, 2, 2)]
)
def test_open_gates(kind: str, positions: str, kernel: int, stride: int, dilation: int):
    torch.manual_seed(0)
    padding = {"Conv2dSame": 0, "StdConv2d": kernel // 2, "ScaledStdConv2d": kernel // 2}.get(
        kind, "SAME"
    )
    conv = getattr(timm_layers, kind)(3, 4, kernel, stride, padding, dilation, bias=True).double()
    if hasattr(conv, "gain"):
        nn.init.uniform_(conv.gain, 0.5, 1.5)
    config = tcnn.GPSAConfig(positions=positions, locality_strength=2.0, window=5)
    layer = with_open_gates(tcnn.GPSA2d.from_conv2d(conv, config))
    names = [name for name, _ in conv.named_parameters()]
    assert names == [n for n in names if n in dict(layer.named_parameters())]
    for size in ((7, 8), (8, 6), (9, 7)):
        x = torch.randn(2, 3, *size, dtype=DOUBLE, requires_grad=True)
        axes = tuple(same_axis(n, kernel, stride, dilation) for n in size)
        expected = reference_of(
            layer,
            x,
            weight=effective_kernel(conv),
            bias=conv.bias,
            axes=axes if kind.endswith("Same") else None,
        )
        found = layer(x)
        assert relative_error(found, expected) < 1e-10
        direction = torch.randn_like(found)
        ours = [x, *(layer.get_parameter(name) for name in names)]
        theirs = [x, *(conv.get_parameter(name) for name in names)]
        after = torch.autograd.grad((found * direction).sum(), ours)
        before = torch.autograd.grad((expected * direction).sum(), theirs)
        for name, mine, truth in zip(["input", *names], after, before, strict=True):
            assert relative_error(mine, truth) < 1e-9, name


@pytest.mark.parametrize("kind", KINDS)
def test_shut_gates_and_back(kind: str):
    torch.manual_seed(0)
    conv = getattr(timm_layers, kind)(8, 6, 3, 2, bias=False)
    layer = tcnn.GPSA2d.from_conv2d(conv)
    back = layer.to_conv2d()
    assert type(back) is type(conv)
    for size in ((9, 9), (8, 11)):
        x = torch.randn(2, 8, *size)
        assert torch.equal(layer(x), conv(x)) and torch.equal(back(x), conv(x))
