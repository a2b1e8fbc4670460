"""Content attention: what it is asked for, which path computes it, and the dense path.

The other paths, `content_blocks` and `content_tiles`, compute the same from the same `Scene` and
`Mix`, and never hold a matrix of all queries and keys.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from tcnn import functional

Path = Literal["dense", "blocks", "tiles"]
_DENSE_PAIRS = 2**16  # of a query and a key, up to which S is no larger than A_h X commonly is
_HALO = 2.0  # pairs of a query and a key that copying one pixel to a tile counts as
_TILE_SHARE = 4  # images of the size of a tile's patch from which on tiles pay
_TILE_SIDE = 8  # the most queries along a tile's side that are tried


@dataclass(frozen=True)
class Scene:
    """What a layer's queries may attend to.

    Attributes:
        size: grid of the keys, (H, W).
        grid: grid of the queries, (Hq, Wq).
        origin, stride: query (u, v) is anchored at key origin + stride · (u, v), or at the key
            nearest to that where it lies beyond the image.
        window: side of the neighbourhood of the anchor that keys come from; None is the whole grid.
        drop: dropout probability on the entries of S.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    origin: tuple[int, int]
    stride: tuple[int, int]
    window: int | None = None
    drop: float = 0.0

    def anchors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Key that each query is anchored at, along rows (Hq,) and columns (Wq,)."""
        rows, columns = (
            (torch.arange(n, device=device) * stride + first).clamp(0, size - 1)
            for n, stride, first, size in zip(
                self.grid, self.stride, self.origin, self.size, strict=True
            )
        )
        return rows, columns

    def outside(self, device: torch.device) -> Tensor | None:
        """Which keys are not in a query's window, (Nq, N); None where all are."""
        if self.window is None:
            return None
        rows, columns = self.anchors(device)
        return functional.window_mask(
            functional.axis_offsets(rows, 0, self.size[0]),
            functional.axis_offsets(columns, 0, self.size[1]),
            self.window,
        )

    def inside(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Which keys are in a query's window, (Hq, H) and (Wq, W); None where all are."""
        if self.window is None:
            return None
        rows, columns = (
            functional.in_window(functional.axis_offsets(anchors, 0, size), self.window)
            for anchors, size in zip(self.anchors(device), self.size, strict=True)
        )
        return rows, columns

    @property
    def tile(self) -> tuple[int, int] | None:
        """Sides of the tiles of queries that share their keys; None where tiles would not pay.

        Beyond a quarter of the image for a tile, blocks do as well; anchors beyond the image lie on
        no regular grid.
        """
        if self.window is None:
            return None
        for first, n, stride, size in zip(
            self.origin, self.grid, self.stride, self.size, strict=True
        ):
            if first < 0 or first + (n - 1) * stride > size - 1:
                return None
        best = _cheapest_tile(self)
        return best if _TILE_SHARE * math.prod(self.span(best)) <= math.prod(self.size) else None

    def span(self, sides: tuple[int, int]) -> tuple[int, int]:
        """Keys along rows and columns that hold the windows of a tile of queries."""
        assert self.window is not None
        rows, columns = (
            (side - 1) * stride + self.window
            for side, stride in zip(sides, self.stride, strict=True)
        )
        return rows, columns

    def sees(self, centre: tuple[int, int]) -> bool:
        """Whether the key at this offset from its anchor is in a query's window."""
        return self.window is None or all(
            -((self.window - 1) // 2) <= offset <= self.window // 2 for offset in centre
        )


@lru_cache(maxsize=1024)  # a search, and the same for each call on images of one size
def _cheapest_tile(scene: Scene) -> tuple[int, int]:
    """A pair of a query and a key costs scores, a softmax and heads · C multiplications, and the
    keys of a tile are copied."""

    def cost(sides: tuple[int, int]) -> float:
        tiles = math.prod(math.ceil(n / side) for n, side in zip(scene.grid, sides, strict=True))
        return tiles * math.prod(scene.span(sides)) * (math.prod(sides) + _HALO)

    choices = [
        (rows, columns)
        for rows in range(1, min(_TILE_SIDE, scene.grid[0]) + 1)
        for columns in range(1, min(_TILE_SIDE, scene.grid[1]) + 1)
    ]
    return min(choices, key=cost)


@dataclass(frozen=True)
class Mix:
    """The shares of A_h = c_h S_h + g_h P_h, whose P_h is all on the key at Δ_h from the anchor.

    Attributes:
        share, gate: c and g, (heads,).
        centres: Δ_h of each head; where it leads beyond the keys it meets zero padding.
    """

    share: Tensor
    gate: Tensor
    centres: tuple[tuple[int, int], ...]

    def taps(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Index of the key that P_h pays attention to, and g_h, or 0 for padding: (heads, Nq)."""
        device = self.share.device
        keys: list[Tensor] = []
        real: list[Tensor] = []
        for axis in (0, 1):
            centres = torch.tensor([centre[axis] for centre in self.centres], device=device)
            anchors = torch.arange(scene.grid[axis], device=device) * scene.stride[axis]
            key = anchors + scene.origin[axis] + centres[:, None]
            real.append((key >= 0) & (key < scene.size[axis]))
            keys.append(key.clamp(0, scene.size[axis] - 1))
        index = keys[0][:, :, None] * scene.size[1] + keys[1][:, None, :]
        on = real[0][:, :, None] & real[1][:, None, :]
        return index.flatten(1), on.flatten(1) * self.gate.view(-1, 1)


# Which path


def choose_path(*, pairs: int, tiles: bool) -> Path:
    """The path for one call.

    | path     | when                                               | operations   | memory      |
    |----------|----------------------------------------------------|--------------|-------------|
    | "tiles"  | a window, a tile sees up to a quarter of the image | Nq·K·heads·C | Nq·heads·C  |
    | "dense"  | grids up to 16×16                                  | Nq·N·heads·C | heads·Nq·N  |
    | "blocks" | otherwise                                          | Nq·N·heads·C | Nq·heads·C  |

    Where PyTorch exports or transforms (`transformed`) it is "dense" whatever the size; where it
    compiles, "tiles" or "blocks", decided when the sizes are known.

    Args:
        pairs: Nq · N.
        tiles: whether `Scene.tile` found tiles that pay; K are the keys of one.
    """
    if tiles:
        return "tiles"
    return "dense" if pairs <= _DENSE_PAIRS else "blocks"


def transformed(*tensors: Tensor) -> bool:
    """Whether PyTorch is exporting, tracing or transforming: only plain operations will do."""
    functorch: Any = torch._C._functorch  # untyped, as the next
    jit: Any = torch.jit
    return (
        torch.compiler.is_exporting()
        or any(t.is_meta for t in tensors)
        or (
            not torch.compiler.is_compiling()
            and (
                jit.is_tracing()
                or functorch.peek_interpreter_stack() is not None
                or forward_ad._current_level >= 0
            )
        )
    )


# Dense


def content_map(queries: Tensor, keys: Tensor, scene: Scene) -> Tensor:
    """S, (B, heads, Nq, N)."""
    # Of float16 networks queries and keys are float32, which autocast would undo.
    wide = queries.dtype == torch.float32 and not queries.is_meta
    with torch.autocast(queries.device.type, enabled=False) if wide else nullcontext():
        return functional.content_attention(queries, keys, scene.outside(queries.device))


def attend_dense(
    x: Tensor,
    queries: Tensor,
    keys: Tensor,
    kernel: Tensor,
    groups: int,
    scene: Scene,
    mix: Mix | None = None,
    position: Tensor | None = None,
) -> Tensor:
    """Σ_h W[:, :, h] (A_h X) with A_h as one matrix, by plain operations of PyTorch.

    Args:
        x: image, (B, C, H, W).
        queries: with the factor of the scores, (B, heads, Nq, d_k).
        keys: (B, heads, N, d_k).
        kernel: W, (out_channels, C / groups, heads).
        groups: channel groups of the convolution.
        mix: shares of S and P; None for S alone.
        position: g_h P_h, (heads, Nq, N), where it is not the one of `mix`.

    Returns:
        (B, out_channels, Hq, Wq).
    """
    attention = content_map(queries, keys, scene)
    attention = F.dropout(attention, scene.drop, scene.drop > 0)
    if mix is not None:
        attention = attention * mix.share.to(attention.dtype).view(-1, 1, 1)
        if position is not None:
            attention = attention + position.to(attention.dtype)
        else:
            index, weights = mix.taps(scene)
            rows = attention.shape[:-1]
            attention = attention.scatter_add_(
                -1,
                index.expand(rows)[..., None],
                weights.to(attention.dtype).expand(rows)[..., None],
            )
    attended = functional.content_attend(x, attention)
    return functional.output_matrix(
        attended.reshape(*attended.shape[:3], *scene.grid), kernel, groups
    )
