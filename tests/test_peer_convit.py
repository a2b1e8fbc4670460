"""ConViT's own GPSA (timm's copy) as a second witness of the layer's formulas.

With output matrices W_h = proj[:, head h] · V[head h, :] and the same queries, keys, gates and
positions the two compute the same thing, but for one choice: ConViT's positional softmax is over
the real pixels, ours over the zero-padded grid. Away from the border no positional attention falls
in the padding, so there the outputs agree.
"""

from __future__ import annotations

import pytest
import torch
from timm.models.convit import GPSA
from torch import Tensor, nn

import tcnn

DIM, HEADS, SIDE, MARGIN = 36, 9, 14, 3


def peer(seed: int) -> GPSA:
    """ConViT's layer with random everything and every head peaked somewhere near its query."""
    torch.manual_seed(seed)
    theirs = GPSA(DIM, HEADS)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        # -α ‖δ - c‖² with α in [2, 4] and c up to 1.2 pixels off: less than 1e-7 of a head's
        # attention is 4 pixels or more from an anchor.
        alpha = 2 + 2 * torch.rand(HEADS)
        centre = 2.4 * torch.rand(HEADS, 2) - 1.2
        theirs.pos_proj.weight.copy_(
            torch.stack([2 * alpha * centre[:, 1], 2 * alpha * centre[:, 0], -alpha], 1)
        )
    return theirs


def ours(theirs: GPSA) -> tcnn.GPSA2d:
    """Our layer with the peer's parameters; pos_proj's bias is lost in the softmax."""
    config = tcnn.GPSAConfig(gate="sigmoid", positions="learned", qk_dim=DIM // HEADS)
    layer = tcnn.GPSA2d(DIM, DIM, 3, padding=1, config=config)
    width = DIM // HEADS
    with torch.no_grad():
        for h in range(HEADS):
            part = slice(h * width, (h + 1) * width)
            matrix = theirs.proj.weight[:, part] @ theirs.v.weight[part]
            layer.weight[:, :, h // 3, h % 3] = matrix
        layer.bias.copy_(theirs.proj.bias)
        layer.qk.weight.copy_(theirs.qk.weight)
        layer.gating_param.copy_(theirs.gating_param)
        layer.v_pos.copy_(theirs.pos_proj.weight[:, [2, 1, 0]])
    return layer


def inside(theirs: GPSA, layer: tcnn.GPSA2d, x: Tensor) -> float:
    """Relative error at the queries away from the border."""
    tokens = theirs(x.flatten(2).mT)
    expected = tokens.mT.unflatten(2, (SIDE, SIDE))
    crop = (..., slice(MARGIN, SIDE - MARGIN), slice(MARGIN, SIDE - MARGIN))
    difference = (layer(x)[crop] - expected[crop]).abs().max()
    return (difference / expected[crop].abs().max()).item()


@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_agrees_with_convit(seed: int):
    theirs = peer(seed)
    x = torch.randn(2, DIM, SIDE, SIDE)
    assert inside(theirs, ours(theirs), x) <= 1e-5


@pytest.mark.parametrize("name", ["weight", "bias", "qk.weight", "gating_param", "v_pos"])
@torch.no_grad()
def test_a_small_change_of_any_parameter_is_seen(name: str):
    theirs = peer(0)
    layer = ours(theirs)
    parameter = layer.get_parameter(name)
    parameter.view(-1)[7] += 0.05
    x = torch.randn(2, DIM, SIDE, SIDE)
    assert inside(theirs, layer, x) > 1e-4


@torch.no_grad()
def test_rows_and_columns_in_the_wrong_order_are_seen():
    theirs = peer(0)
    layer = ours(theirs)
    layer.v_pos.copy_(layer.v_pos[:, [0, 2, 1]])
    x = torch.randn(2, DIM, SIDE, SIDE)
    assert inside(theirs, layer, x) > 1e-2


@torch.no_grad()
def test_the_border_is_where_they_differ():
    """The layer puts attention on the zero padding, as a convolution does; ConViT has none."""
    theirs = peer(0)
    layer = ours(theirs)
    x = torch.randn(2, DIM, SIDE, SIDE)
    expected = theirs(x.flatten(2).mT).mT.unflatten(2, (SIDE, SIDE))
    assert (layer(x) - expected)[..., 0, :].abs().max() > 1e-2
