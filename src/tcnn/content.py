"""Content attention: what it is asked for, which path computes it, and the dense path.

The others are `content_blocks` and `content_tiles`; all compute the same.

All take queries and keys of every pixel and return S_h X. Where fixed positions are merged in
(`Mix`) it is A_h X, of A_h = c_h S_h + g_h P_h: P_h has one entry a row, so adding it to S_h is
nearly free and saves the convolution that it would otherwise be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tcnn import functional

Path = Literal["dense", "blocks", "tiles"]
_DENSE_ELEMENTS = 2_000_000  # entries of S up to which its passes through memory cost little


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
    | "tiles"  | a window, and a tile sees a quarter of the image  | Nq·K·heads·C | Nq·K·heads    |
    | "dense"  | S is small, dropout, or PyTorch transforms us     | Nq·N·heads·C | B·heads·Nq·N  |
    | "blocks" | otherwise                                         | Nq·N·heads·C | Nq·heads·C    |

    Args:
        tile_keys: K, pixels that a tile's queries see; None without a window.
        drops: dropout acts on S, and a block computed again would draw other numbers.
    """
    if tile_keys is not None and tile_keys <= keys // 4:
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
