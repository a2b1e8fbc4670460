"""Content attention in blocks of queries: the matrix of all queries and keys is never in memory.

The backward pass computes each block again from queries and keys (as Dao et al. 2022,
FlashAttention, arXiv 2205.14135). The kernel is applied block by block too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tcnn.content import Mix
from tcnn.content_task import Gradients, Task, dropout_mask, dtype_of_scores

# Entries of S at once. Two such arrays stay in a core's share of cache; on other devices it is the
# number of launches that counts.
_BLOCK_ELEMENTS = 400_000
_BLOCK_ELEMENTS_ELSEWHERE = 64 * 2**20


def forward(task: Task, keep: bool) -> tuple[Tensor, Tensor]:
    """Y (B, out_channels, Nq), and with `keep` A_h X (B, C, heads, Nq), else nothing."""
    x, heads = task.x.flatten(2), task.queries.shape[1]
    batch, channels = x.shape[:2]
    n_queries = math.prod(task.scene.grid)
    y = x.new_empty(batch, len(task.kernel), n_queries)
    attended = x.new_empty((batch, channels, heads, n_queries) if keep else 0)
    matrix = task.matrix()
    blocks = _Blocks(task)
    for number, (images, part) in enumerate(blocks.parts()):
        _, attention, _ = blocks.attention(number, images, part)
        part_of = attention.to(x.dtype).flatten(1, 2).mT
        seen = blocks.room("seen", (len(part_of), channels, part_of.shape[2]), x.dtype)
        torch.bmm(x[images], part_of, out=seen)
        seen = seen.view(len(seen), channels, heads, -1)
        if keep:
            attended[images, :, :, part] = seen
        by_group = seen.view(len(seen), task.groups, -1, seen.shape[-1])
        y[images, :, part] = (matrix @ by_group).flatten(1, 2)
    return y, attended


def backward(task: Task, grad: Tensor, attended: Tensor | None) -> Gradients:
    """Gradients by what `forward` took, of its output's gradient (B, out_channels, Nq)."""
    x, queries, keys = task.x.flatten(2), task.queries, task.keys
    batch, channels = x.shape[:2]
    heads, n_queries = queries.shape[1:3]
    blocks = _Blocks(task)
    matrix = task.matrix()
    grad = grad.view(batch, task.groups, len(task.kernel) // task.groups, n_queries)
    dx = torch.zeros_like(x, dtype=blocks.dtype, memory_format=torch.contiguous_format)
    dq, dk = torch.empty_like(queries), torch.zeros_like(keys, dtype=blocks.dtype)
    dshare = torch.zeros(heads, dtype=blocks.dtype, device=x.device)
    dgate = torch.zeros_like(dshare)
    share = None if task.mix is None else task.mix.share.to(blocks.dtype).view(-1, 1, 1)
    for number, (images, part) in enumerate(blocks.parts()):
        content, attention, dropped = blocks.attention(number, images, part)
        given = (matrix.mT @ grad[images, ..., part]).reshape(len(content), channels, -1)
        dx[images] += torch.bmm(given, attention.to(x.dtype).flatten(1, 2))
        room = blocks.room("gradient", content.shape, x.dtype)
        torch.bmm(given.mT, x[images], out=room.flatten(1, 2))
        by_attention = room.to(blocks.dtype)
        if blocks.taps is not None:
            index, on = blocks.taps[0][:, part], blocks.taps[1][:, part]
            at_taps = by_attention.gather(-1, index.expand(content.shape[:-1])[..., None])
            dgate += (at_taps.squeeze(-1) * on).sum((0, 2))
        if dropped is not None:
            by_attention *= dropped
        # ∂L/∂scores = c S (∂L/∂A - ⟨∂L/∂A, S⟩), and ∂L/∂c = ⟨∂L/∂A, S⟩.
        product = by_attention.mul_(content)
        total = product.sum(-1, keepdim=True)
        dshare += total.sum((0, 2, 3))
        by_scores = product.addcmul_(content, total, value=-1).to(queries.dtype)
        query = queries[images, :, part]
        if share is not None:
            dq[images, :, part] = (by_scores @ keys[images]) * share
            query = query * share.to(query.dtype)
        else:
            dq[images, :, part] = by_scores @ keys[images]
        # Transposed: a narrow product is fast only with its long side last.
        dk[images] += (query.mT @ by_scores).mT
    dkernel = torch.zeros_like(task.kernel)
    if attended is not None:
        by_group = attended.reshape(batch, *matrix.shape[::2], n_queries)
        dkernel = (grad @ by_group.mT).sum(0).view(task.kernel.shape)
    return Gradients(dx.view(task.x.shape), dq, dk, dkernel, dshare, dgate)


class _Blocks:
    """The attention of some images and queries, as often as it is asked for."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.dtype = dtype_of_scores(task.queries)
        self._rooms: dict[str, Tensor] = {}
        self.inside = task.scene.inside(task.x.device)
        self.taps: tuple[Tensor, Tensor] | None = None
        if task.mix is not None:
            ones = Mix(task.mix.share, torch.ones_like(task.mix.gate), task.mix.centres)
            index, on = ones.taps(task.scene)
            self.taps = index, on.to(self.dtype)
            self.weights = self.taps[1] * task.mix.gate.to(self.dtype).view(-1, 1)

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """Images and queries of each block: all queries of some images, or some of one's."""
        batch, heads, n_queries = self.task.queries.shape[:3]
        row = heads * math.prod(self.task.scene.size)
        on_cpu = self.task.x.device.type == "cpu"
        room = _BLOCK_ELEMENTS if on_cpu else _BLOCK_ELEMENTS_ELSEWHERE
        images = max(1, room // (row * n_queries))
        step = min(n_queries, max(1, room // row))
        step = math.ceil(n_queries / math.ceil(n_queries / step))  # blocks of like size
        for b in range(0, batch, images):
            for start in range(0, n_queries, step):
                yield slice(b, b + images), slice(start, min(start + step, n_queries))

    def room(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory that the blocks use in turn: to ask for it anew each time costs a CPU more than
        what is done in it."""
        size = math.prod(shape)
        if name not in self._rooms or self._rooms[name].numel() < size:
            self._rooms[name] = torch.empty(size, dtype=dtype, device=self.task.x.device)
        return self._rooms[name][:size].view(*shape)

    def attention(
        self, number: int, images: slice, part: slice
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """S, A and the dropout's mask of one block, each (images, heads, queries, N)."""
        task = self.task
        queries, keys = task.queries[images, :, part], task.keys[images]
        shape = (*queries.shape[:3], keys.shape[2])
        scores = self.room("scores", shape, queries.dtype)
        torch.bmm(queries.flatten(0, 1), keys.flatten(0, 1).mT, out=scores.flatten(0, 1))
        scores = scores.to(self.dtype)
        if self.inside is not None:
            rows, columns = self.inside
            query = torch.arange(part.start, part.stop, device=scores.device)
            row, column = query // len(columns), query % len(columns)
            near = rows[row][:, :, None] & columns[column][:, None, :]
            scores.masked_fill_(~near.flatten(1), -torch.inf)
        content = torch.softmax(scores, dim=-1, out=self.room("content", shape, self.dtype))
        dropped = dropout_mask(content, task, number)
        if task.mix is None or self.taps is None:
            return content, content if dropped is None else content * dropped, dropped
        share = task.mix.share.to(self.dtype).view(-1, 1, 1)
        mixed = torch.mul(content, share, out=scores)
        if dropped is not None:
            mixed *= dropped
        rows_of = mixed.shape[:-1]
        mixed.scatter_add_(
            -1,
            self.taps[0][:, part].expand(rows_of)[..., None],
            self.weights[:, part].expand(rows_of)[..., None],
        )
        return content, mixed, dropped
