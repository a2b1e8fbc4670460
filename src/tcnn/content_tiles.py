"""Content attention within windows, by tiles of queries that share the keys of their windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tcnn import functional
from tcnn.content import Scene

_HALO = 2.0  # pairs of a query and a key that copying one pixel of a halo counts as


@dataclass(frozen=True)
class AxisTiles:
    """Queries of one axis in tiles, and the keys that each tile sees.

    Attributes:
        queries: index of each tile's queries, (tiles, side); the last one again where they run out.
        keys: pixels that a tile sees, (tiles, span): all that its queries' windows hold.
        offsets: δ = key - anchor, (tiles, side, span).
    """

    queries: Tensor
    keys: Tensor
    offsets: Tensor


def axis_tiles(anchors: Tensor, size: int, stride: int, window: int, side: int) -> AxisTiles:
    """Tiles of `side` queries along an axis of `size` pixels, anchored at `anchors` (queries,)."""
    n_queries = len(anchors)
    anchors = anchors.long()
    queries = torch.arange(math.ceil(n_queries / side) * side, device=anchors.device)
    queries = queries.clamp(max=n_queries - 1).view(-1, side)
    span = tile_span(size, stride, window, side)
    first = (anchors[queries[:, 0]] - (window - 1) // 2).clamp(0, size - span)
    keys = first[:, None] + torch.arange(span, device=anchors.device)
    return AxisTiles(queries, keys, keys[:, None, :] - anchors[queries][:, :, None])


def tile_span(size: int, stride: int, window: int, side: int) -> int:
    """Pixels along an axis that hold the windows of `side` successive queries."""
    return min(size, (side - 1) * stride + window)


def tile_sides(scene: Scene) -> tuple[int, int]:
    """Side of a tile along rows and columns, for the fewest pairs of queries and keys.

    A pair costs scores, a softmax and heads·C multiplications. Small tiles pay for their halo once
    more when it is copied, which counts as `_HALO` pairs for a pixel.
    """
    window = scene.window or max(scene.size)

    def cost(side: int, axis: int) -> float:
        queries = scene.grid[axis]
        tiles = math.ceil(queries / side)
        span = tile_span(scene.size[axis], scene.stride[axis], window, side)
        return tiles * span * (side + _HALO) / queries

    best = [
        min(range(1, min(8, scene.grid[axis]) + 1), key=lambda side: cost(side, axis))
        for axis in (0, 1)
    ]
    return best[0], best[1]


def attend_tiles(
    x: Tensor,
    queries: Tensor,
    keys: Tensor,
    kernel: Tensor,
    groups: int,
    scene: Scene,
    drop: float = 0.0,
) -> Tensor:
    """Σ_h W[:, :, h] (S_h X) within windows, by tiles, at a cost that grows as the pixels do.

    Args:
        x: image, (B, C, H, W).
        queries: with the factor of the scores, (B, heads, Hq·Wq, d_k).
        keys: (B, heads, H·W, d_k).
        kernel: W, (out_channels, C / groups, heads).
        groups: channel groups of the convolution.
        drop: dropout probability on the entries of S.

    Returns:
        (B, out_channels, Hq, Wq).
    """
    assert scene.window is not None
    batch, channels = x.shape[:2]
    heads, width = queries.shape[1], queries.shape[3]
    sides = tile_sides(scene)
    rows, columns = (
        axis_tiles(anchors, size, stride, scene.window, side)
        for anchors, size, stride, side in zip(
            (scene.rows, scene.columns), scene.size, scene.stride, sides, strict=True
        )
    )
    q = _take(queries.transpose(1, 2).flatten(2), rows.queries, columns.queries, scene.grid[1])
    k = _take(keys.transpose(1, 2).flatten(2), rows.keys, columns.keys, scene.size[1])
    q, k = (part.view(*part.shape[:2], heads, width).transpose(1, 2) for part in (q, k))
    scores = q @ k.mT  # (B·tiles, heads, queries, keys)
    near = [functional.in_window(axis.offsets, scene.window) for axis in (rows, columns)]
    both = near[0][:, None, :, None, :, None] & near[1][None, :, None, :, None, :]
    tiles = both.shape[:2]
    # Added in place: unlike a masked fill it leaves the backward pass nothing to do.
    outside = torch.zeros(both.shape, dtype=scores.dtype, device=x.device)
    outside = outside.masked_fill_(~both, -torch.inf).flatten(4).flatten(2, 3).flatten(0, 1)
    scores.view(batch, len(outside), *scores.shape[1:]).add_(outside[:, None])
    content = F.dropout(torch.softmax(scores, dim=-1), drop, drop > 0)
    flat = x.flatten(2)
    if flat.requires_grad:
        # Its gradient arrives transposed; see `functional.content_attend` for the harm in that.
        hook: Any = flat.register_hook  # untyped
        hook(torch.Tensor.contiguous)
    values = _take(flat.mT, rows.keys, columns.keys, scene.size[1])
    attended = torch.bmm(content.flatten(1, 2).to(x.dtype), values)
    # The output matrix before the tiles are put together: the result is smaller, head for head.
    shape = (len(attended), heads, math.prod(sides), groups, channels // groups)
    pixels = attended.view(shape).transpose(1, 2)
    by_group = kernel.view(groups, -1, *kernel.shape[1:])
    y = torch.einsum("nqhgi,goih->nqgo", pixels, by_group)
    y = y.reshape(batch, *tiles, *sides, len(kernel)).permute(0, 5, 1, 3, 2, 4)
    y = y.flatten(4).flatten(2, 3)
    return y[..., : scene.grid[0], : scene.grid[1]]


def _take(pixels: Tensor, rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Pixels (B, N, c) of an image of the given width at the rows and columns of each tile.

    Returns:
        (B·tiles, pixels of a tile, c).
    """
    index = rows[:, None, :, None] * width + columns[None, :, None, :]
    first = torch.arange(len(pixels), device=index.device) * pixels.shape[1]
    index = first[:, None, None] + index.flatten(2).flatten(0, 1)
    # An embedding, because its gradient adds whole rows where that of indexing adds numbers.
    return F.embedding(index.flatten(0, 1), pixels.flatten(0, 1))
