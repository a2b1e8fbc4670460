"""Content attention in blocks of queries: the matrix of all queries and keys is never in memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tcnn.content import Mix, Scene

_BLOCK_ELEMENTS = 400_000  # entries of S at once: two such arrays stay in a core's share of cache


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
