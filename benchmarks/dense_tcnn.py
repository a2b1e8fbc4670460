"""The T-CNN layer as its paper has it: a dense matrix of queries and keys for each head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import tcnn


class DenseTCNN(nn.Module):
    r"""Gated positional self-attention with nothing saved, on a grid of one size.

    .. math::
        P_h = \text{softmax}(v^h_{pos} · r_δ), \quad S_h = \text{softmax}(Q_h K_h^T / \sqrt{d}),
        \quad A_h = g_h P_h + (1 - g_h) S_h, \quad Y = \sum_h W_h (A_h X) + \text{bias}

    P_h is a softmax over the zero-padded grid; the padded keys' values are zero, so their columns
    are left out of the product. All heads meet the pixels in one product, which is the best that
    can be done with dense matrices.

    Args:
        layer: the layer to compute, of learned positions, linear gate, stride and dilation 1.
        grid: (H, W) of its input.

    Source: d'Ascoli et al. 2021 (arXiv 2106.05795); ConViT (arXiv 2103.10697) eq. 4-7.
    """

    offsets: Tensor

    def __init__(self, layer: tcnn.GPSA2d, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid, self.heads = grid, layer.heads
        self.pads = int(layer.padding[0]), int(layer.padding[1])
        kind: Any = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.qk = nn.Linear(layer.in_channels, len(layer.qk.weight), bias=False, **kind)
        self.qk.load_state_dict(layer.qk.state_dict())
        self.v_pos = nn.Parameter(layer.v_pos.detach().clone())
        self.share = nn.Parameter(layer.content_share.detach().clone())
        self.output = nn.Linear(self.heads * layer.in_channels, layer.out_channels, **kind)
        with torch.no_grad():
            self.output.weight.copy_(layer.weight.flatten(2).mT.flatten(1))
            self.output.bias.copy_(layer.bias)
        rows, columns = (
            torch.arange(-pad, side + pad)[None] - torch.arange(side)[:, None]
            for side, pad in zip(grid, self.pads, strict=True)
        )
        shape = (grid[0], grid[1], rows.shape[1], columns.shape[1])
        rows = rows[:, None, :, None].expand(shape)
        columns = columns[None, :, None, :].expand(shape)
        offsets = torch.stack([rows**2 + columns**2, rows, columns], dim=-1)
        self.register_buffer("offsets", offsets.flatten(0, 1).flatten(1, 2).to(layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Y, (B, out_channels, H, W), of (B, C, H, W)."""
        tokens = x.flatten(2).mT
        position = (self.offsets @ self.v_pos.T).permute(2, 0, 1).softmax(dim=-1)
        padded = self.grid[0] + 2 * self.pads[0], self.grid[1] + 2 * self.pads[1]
        real = [slice(pad, pad + side) for pad, side in zip(self.pads, self.grid, strict=True)]
        position = position.unflatten(2, padded)[:, :, real[0], real[1]].flatten(2)
        pairs = self.qk(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        content = (pairs[0] * pairs.shape[-1] ** -0.5 @ pairs[1].mT).softmax(dim=-1)
        share = self.share.view(-1, 1, 1)
        attention = (1 - share) * position + share * content
        attended = (attention.flatten(1, 2) @ tokens).unflatten(1, (self.heads, -1))
        return self.output(attended.transpose(1, 2).flatten(2)).mT.unflatten(2, self.grid)
