"""Content attention by three paths that compute the same thing: dense, in blocks and in tiles.

All take queries and keys of every pixel and return S_h X. Where fixed positions are merged in
(`Mix`) it is A_h X, of A_h = c_h S_h + g_h P_h: P_h has one entry a row, so adding it to S_h is
nearly free and saves the convolution that it would otherwise be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from tcnn import functional

Path = Literal["dense", "blocks", "tiles"]
_DENSE_ELEMENTS = 2_000_000  # entries of S up to which its passes through memory cost little
_BLOCK_ELEMENTS = 400_000  # entries of S at once: two such arrays stay in a core's share of cache


@dataclass(frozen=True)
class Scene:
    """The image that a layer attends to, and what limits the attention.

    Attributes:
        rows, columns: pixel that each query is anchored at, within the image, (Hq,) and (Wq,).
        size: (H, W).
        stride: of the anchors.
        window: side of the neighbourhood that keys come from; None is the whole image.
    """

    rows: Tensor
    columns: Tensor
    size: tuple[int, int]
    stride: tuple[int, int]
    window: int | None

    @property
    def grid(self) -> tuple[int, int]:
        """(Hq, Wq)."""
        return len(self.rows), len(self.columns)

    def inside(self) -> tuple[Tensor, Tensor] | None:
        """Which keys are in a query's window, (Hq, H) and (Wq, W); None where all are."""
        if self.window is None:
            return None
        rows = functional.axis_offsets(self.rows, 0, self.size[0])
        columns = functional.axis_offsets(self.columns, 0, self.size[1])
        return functional.in_window(rows, self.window), functional.in_window(columns, self.window)


@dataclass(frozen=True)
class Mix:
    """The shares of an attention c_h S_h + g_h P_h whose P_h has at most one entry a row.

    Attributes:
        share, gate: c and g, (heads,).
        rows, columns: pixel that a head's query attends to along an axis, (heads, Hq), (heads, Wq).
        on_rows, on_columns: 1 there, or 0 where it lies on zero padding.
    """

    share: Tensor
    gate: Tensor
    rows: Tensor
    columns: Tensor
    on_rows: Tensor
    on_columns: Tensor

    @classmethod
    def of_factors(cls, share: Tensor, gate: Tensor, rows: Tensor, columns: Tensor) -> Mix:
        """From one-hot factors R_h (heads, Hq, H) and C_h (heads, Wq, W) over the real pixels."""
        on_rows, row = rows.max(dim=-1)
        on_columns, column = columns.max(dim=-1)
        return cls(share, gate, row, column, on_rows, on_columns)

    def keys(self, width: int) -> Tensor:
        """The pixel's index in the image, (heads, Hq·Wq)."""
        return (self.rows[:, :, None] * width + self.columns[:, None, :]).flatten(1)

    def real(self) -> Tensor:
        """1 where the pixel is real, 0 where it is a padded zero, (heads, Hq·Wq)."""
        return (self.on_rows[:, :, None] * self.on_columns[:, None, :]).flatten(1)


# Which path


def choose_path(
    *,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    tile_keys: int | None,
    drops: bool,
) -> Path:
    """The path for one call.

    | path     | when                                              | operations   | memory        |
    |----------|---------------------------------------------------|--------------|---------------|
    | "tiles"  | a window, and a tile's keys are half the image    | Nq·K·heads·C | Nq·K·heads    |
    | "dense"  | S is small, dropout, or PyTorch transforms us     | Nq·N·heads·C | B·heads·Nq·N  |
    | "blocks" | otherwise                                         | Nq·N·heads·C | Nq·heads·C    |

    Args:
        tile_keys: K, pixels that a tile's queries see; None without a window.
        drops: dropout acts on S, and a block computed again would draw other numbers.
    """
    if tile_keys is not None and tile_keys <= keys // 2:
        return "tiles"
    small = batch * heads * queries * keys <= _DENSE_ELEMENTS
    return "dense" if small or drops else "blocks"


def transformed(*tensors: Tensor) -> bool:
    """Whether PyTorch is tracing, compiling or transforming: only plain operations will do."""
    functorch: Any = torch._C._functorch  # untyped, as the next
    jit: Any = torch.jit
    return (
        torch.compiler.is_compiling()
        or jit.is_tracing()
        or any(t.is_meta for t in tensors)
        or functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


# Dense


def attend_dense(
    x: Tensor,
    content: Tensor,
    mix: Mix | None = None,
    position: Tensor | None = None,
) -> Tensor:
    """A_h X with A_h as one matrix.

    Args:
        x: image, (B, C, H, W).
        content: S, (B, heads, Nq, N).
        mix: shares of S and P; None for S alone.
        position: g_h P_h, (heads, Nq, N), where it is not the one-hot of `mix`.

    Returns:
        (B, C, heads, Nq).
    """
    if mix is not None:
        content = content * mix.share.to(content.dtype).view(-1, 1, 1)
        if position is not None:
            content = content + position.to(content.dtype)
        else:
            weights = (mix.gate.view(-1, 1) * mix.real()).to(content.dtype)
            rows = content.shape[:-1]
            content = content.scatter_add_(
                -1, mix.keys(x.shape[-1]).expand(rows)[..., None], weights.expand(rows)[..., None]
            )
    return functional.content_attend(x, content)


# In blocks of queries


def attend_blocks(
    x: Tensor, queries: Tensor, keys: Tensor, scene: Scene, mix: Mix | None = None
) -> Tensor:
    """A_h X over blocks of queries: no more than a block of A is ever in memory.

    The backward pass computes each block again from queries and keys (as Dao et al. 2022,
    FlashAttention, arXiv 2205.14135). It cannot be differentiated again.

    Args:
        x: image, (B, C, H, W).
        queries: with the factor of the scores, (B, heads, Nq, d_k).
        keys: (B, heads, N, d_k).

    Returns:
        (B, C, heads, Nq).
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    hot = real = share = gate = None
    if mix is not None:
        hot, real, share, gate = mix.keys(x.shape[-1]), mix.real(), mix.share, mix.gate
    with torch.autocast(device, enabled=False):
        attended: Tensor = _Blocks.apply(
            x.flatten(2), queries, keys, share, gate, hot, real, scene.inside()
        )
    return attended


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        queries: Tensor,
        keys: Tensor,
        share: Tensor | None,
        gate: Tensor | None,
        hot: Tensor | None,
        real: Tensor | None,
        inside: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        ctx.save_for_backward(x, queries, keys, share, gate, hot, real)
        ctx.inside = inside
        batch, heads, n_queries = queries.shape[:3]
        attended = x.new_empty(batch, x.shape[1], heads, n_queries)
        block = _Block(queries, keys, share, gate, hot, real, inside)
        for b, part in block.parts():
            _, attention = block.attention(b, part)
            seen = x[b] @ attention.to(x.dtype).flatten(0, 1).T
            attended[b, :, :, part] = seen.view(x.shape[1], heads, -1)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, queries, keys, share, gate, hot, real = ctx.saved_tensors
        heads = queries.shape[1]
        block = _Block(queries, keys, share, gate, hot, real, ctx.inside)
        dx = torch.zeros_like(x, dtype=block.dtype, memory_format=torch.contiguous_format)
        dq, dk = torch.empty_like(queries), torch.zeros_like(keys, dtype=block.dtype)
        dshare = torch.zeros(heads, dtype=block.dtype, device=x.device)
        dgate = torch.zeros_like(dshare)
        with torch.autocast(x.device.type, enabled=False):
            for b, part in block.parts():
                content, attention = block.attention(b, part)
                given = grad[b, :, :, part].flatten(1).to(x.dtype)
                dx[b] += given @ attention.to(x.dtype).flatten(0, 1)
                by_attention = (given.T @ x[b]).view_as(content).to(block.dtype)
                if hot is not None:
                    at_taps = by_attention.gather(-1, hot[:, part, None]).squeeze(-1)
                    dgate += (at_taps * real[:, part]).sum(1)
                # ∂L/∂scores = c S (∂L/∂A - ⟨∂L/∂A, S⟩), and ∂L/∂c = ⟨∂L/∂A, S⟩.
                product = by_attention.mul_(content)
                total = product.sum(-1, keepdim=True)
                dshare += total.sum((1, 2))
                by_scores = product.addcmul_(content, total, value=-1)
                if share is not None:
                    by_scores *= share.to(block.dtype).view(-1, 1, 1)
                by_scores = by_scores.to(queries.dtype)
                dq[b, :, part] = by_scores @ keys[b]
                # Transposed: a narrow product is fast only with its long side last.
                dk[b] += (queries[b, :, part].mT @ by_scores).mT
        mixed = (None, None) if share is None else (dshare.to(share), dgate.to(gate))
        return dx.to(x.dtype), dq, dk.to(keys.dtype), *mixed, None, None, None


class _Block:
    """The attention of one image and one range of queries, as often as it is asked for."""

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        share: Tensor | None,
        gate: Tensor | None,
        hot: Tensor | None,
        real: Tensor | None,
        inside: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.queries, self.keys, self.inside = queries, keys, inside
        self.share, self.gate, self.hot, self.real = share, gate, hot, real
        self.dtype = torch.promote_types(queries.dtype, torch.float32)

    def parts(self) -> list[tuple[int, slice]]:
        batch, heads, n_queries = self.queries.shape[:3]
        step = max(1, _BLOCK_ELEMENTS // (heads * self.keys.shape[2]))
        step = math.ceil(n_queries / math.ceil(n_queries / step))  # blocks of like size
        starts = range(0, n_queries, step)
        return [
            (b, slice(start, min(start + step, n_queries)))
            for b in range(batch)
            for start in starts
        ]

    def attention(self, b: int, part: slice) -> tuple[Tensor, Tensor]:
        """S and A of image b and the queries in `part`, each (heads, queries, N)."""
        scores = (self.queries[b, :, part] @ self.keys[b].mT).to(self.dtype)
        if self.inside is not None:
            rows, columns = self.inside
            query = torch.arange(part.start, part.stop, device=scores.device)
            row, column = query // len(columns), query % len(columns)
            near = rows[row][:, :, None] & columns[column][:, None, :]
            scores.masked_fill_(~near.flatten(1), -torch.inf)
        content = torch.softmax(scores, dim=-1)
        if self.share is None or self.gate is None or self.hot is None or self.real is None:
            return content, content
        mixed = torch.mul(content, self.share.to(self.dtype).view(-1, 1, 1), out=scores)
        weights = (self.gate.view(-1, 1) * self.real[:, part]).to(self.dtype)
        return content, mixed.scatter_add_(-1, self.hot[:, part, None], weights[..., None])


# In tiles of queries, each with the keys that its windows cover


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


_HALO = 2.0


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
    scores.view(batch, -1, *scores.shape[1:]).add_(outside[:, None])
    content = F.dropout(torch.softmax(scores, dim=-1), drop, drop > 0)
    flat = x.flatten(2)
    if flat.requires_grad:
        # Its gradient arrives transposed; see `functional.content_attend` for the harm in that.
        hook: Any = flat.register_hook  # untyped
        hook(torch.Tensor.contiguous)
    values = _take(flat.mT, rows.keys, columns.keys, scene.size[1])
    attended = torch.bmm(content.flatten(1, 2).to(x.dtype), values)
    # The output matrix before the tiles are put together: the result is smaller, head for head.
    pixels = attended.view(len(attended), heads, -1, groups, channels // groups).transpose(1, 2)
    by_group = kernel.view(groups, -1, *kernel.shape[1:])
    y = torch.einsum("nqhgi,goih->nqgo", pixels, by_group)
    y = y.reshape(batch, *tiles, *sides, -1).permute(0, 5, 1, 3, 2, 4)
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
