"""Content attention within windows, by tiles of queries that share the keys of their windows.

A tile of queries sees one patch of the image that holds all their windows. Patches are cut out of
an image padded by zeros, so that every tile is alike: the same keys are near the same queries, and
a head's kernel tap is the same pixel of the patch. Some rows of tiles are computed at a time, and
computed again for the backward pass.

Arrays lie as (B, planes, rows, columns, channels): of the image one plane, of queries and keys one
for each head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tcnn import functional
from tcnn.content_task import Gradients, Task, dropout_mask, dtype_of_scores

# Entries of S at once, for a CPU's cache; on other devices it is launches that count.
_BLOCK_ELEMENTS = 200_000
_BLOCK_ELEMENTS_ELSEWHERE = 64 * 2**20


def forward(task: Task, keep: bool) -> tuple[Tensor, Tensor]:
    """Y (B, out_channels, Nq), and with `keep` A_h X, tile by tile, else nothing."""
    tiles = _Tiles(task)
    y = tiles.for_queries(task.x, 1, len(task.kernel))
    attended = task.x.new_empty(math.prod(tiles.kept()) if keep else 0)
    matrix = tiles.matrix()
    for number, (image, rows) in enumerate(tiles.parts()):
        _, _, attention, _ = tiles.attention(number, image, rows)
        values = tiles.patches(tiles.x[image], rows)[:, 0]
        seen = torch.bmm(attention.to(values.dtype).flatten(1, 2), values)
        if keep:
            kept = attended.view(tiles.kept())[image, rows]
            kept.copy_(seen.view(kept.shape))
        out = (tiles.by_group(seen) @ matrix).transpose(0, 1)
        tiles.put(y[image], out.reshape(len(seen), 1, -1, len(task.kernel)), rows)
    return tiles.only_queries(y)[:, 0].permute(0, 3, 1, 2).flatten(2), attended


def backward(task: Task, grad: Tensor, attended: Tensor | None) -> Gradients:
    """Gradients by what `forward` took, of its output's gradient (B, out_channels, Nq)."""
    tiles = _Tiles(task)
    heads = task.queries.shape[1]
    dx = torch.zeros_like(tiles.x, dtype=tiles.dtype)
    dq, dk = torch.empty_like(tiles.queries), torch.zeros_like(tiles.keys, dtype=tiles.dtype)
    dshare = torch.zeros(heads, dtype=tiles.dtype, device=grad.device)
    dgate = torch.zeros_like(dshare)
    matrix = tiles.matrix()
    dmatrix = torch.zeros_like(matrix)
    by_y = tiles.tiled(grad.mT[:, None])
    for number, (image, rows) in enumerate(tiles.parts()):
        patch_keys, content, attention, dropped = tiles.attention(number, image, rows)
        values = tiles.patches(tiles.x[image], rows)[:, 0]
        given = tiles.take(by_y[image], rows).flatten(0, 2)
        given = given.view(len(given), task.groups, -1).transpose(0, 1)
        if attended is not None:
            seen = attended.view(tiles.kept())[image, rows]
            dmatrix.baddbmm_(tiles.by_group(seen.view(len(values), -1, values.shape[-1])).mT, given)
        by_seen = torch.unflatten(given @ matrix.mT, -1, (heads, -1)).permute(1, 2, 0, 3)
        by_seen = by_seen.reshape(len(values), -1, values.shape[-1])
        by_values = torch.bmm(attention.to(values.dtype).flatten(1, 2).mT, by_seen)
        tiles.add_patches(dx[image], by_values[:, None], rows)
        by_attention = torch.bmm(by_seen, values.mT).view_as(content).to(tiles.dtype)
        if task.mix is not None:
            taps = tiles.taps.expand(*content.shape[:-1], 1)
            dgate += by_attention.gather(-1, taps).sum((0, 1, 3))
        if dropped is not None:
            by_attention *= dropped
        # ∂L/∂scores = c S (∂L/∂A - ⟨∂L/∂A, S⟩), and ∂L/∂c = ⟨∂L/∂A, S⟩.
        product = by_attention.mul_(content)
        total = product.sum(-1, keepdim=True)
        dshare += total.sum((0, 1, 3))
        by_scores = product.addcmul_(content, total, value=-1)
        if task.mix is not None:
            by_scores *= task.mix.share.to(tiles.dtype).view(-1, 1)
        by_scores = by_scores.transpose(1, 2).to(task.queries.dtype).contiguous()
        tiles.put(dq[image], by_scores @ patch_keys, rows)
        query = tiles.take(tiles.queries[image], rows)
        # Transposed: a narrow product is fast only with its long side last.
        tiles.add_patches(dk[image], (query.mT @ by_scores).mT, rows)
    dkernel = torch.unflatten(dmatrix, 1, (heads, -1)).permute(0, 3, 2, 1)
    return Gradients(
        tiles.only_image(dx)[:, 0].permute(0, 3, 1, 2).contiguous(),
        tiles.only_queries(dq).reshape(task.queries.shape),
        tiles.only_image(dk).reshape(task.keys.shape),
        dkernel.reshape(task.kernel.shape),
        dshare,
        dgate,
    )


class _Tiles:
    """A task cut into tiles, and the attention of some of them, as often as it is asked for.

    Attributes:
        sides, span: queries and keys of a tile along rows and columns.
        counts: tiles along rows and columns.
        x, keys: padded, (B, planes, rows, columns, channels).
        queries: those of whole tiles, (B, heads, rows, columns, d_k).
        taps: with `task.mix`, the key of a patch that a head's P is on, (1, queries, heads, 1).
    """

    def __init__(self, task: Task) -> None:
        scene, window = task.scene, task.scene.window
        assert window is not None and scene.tile is not None
        self.task, self.sides = task, scene.tile
        self.dtype = dtype_of_scores(task.queries)
        self.span = scene.span(self.sides)
        self.n_queries = math.prod(self.sides)
        self.steps = self.sides[0] * scene.stride[0], self.sides[1] * scene.stride[1]
        self.counts = -(-scene.grid[0] // self.sides[0]), -(-scene.grid[1] // self.sides[1])
        self.before = (window - 1) // 2
        # Where the image begins in the padded one; a pixel that no window holds may be cut off.
        self.lead = self.before - scene.origin[0], self.before - scene.origin[1]
        self.padded = tuple(
            (count - 1) * step + span
            for count, step, span in zip(self.counts, self.steps, self.span, strict=True)
        )
        self.x = self._pad(task.x.flatten(2).mT[:, None])
        self.keys = self._pad(task.keys)
        self.queries = self.tiled(task.queries)
        self.outside = self._outside()
        if task.mix is not None:
            device = task.x.device
            rows, columns = (
                torch.arange(self.sides[axis], device=device)[:, None] * scene.stride[axis]
                + torch.tensor([c[axis] for c in task.mix.centres], device=device)
                + self.before
                for axis in (0, 1)
            )
            index = rows[:, None] * self.span[1] + columns[None, :]
            self.taps = index.view(1, self.n_queries, -1, 1)

    def parts(self) -> Iterator[tuple[int, slice]]:
        """Image and rows of tiles of each block."""
        heads = self.task.queries.shape[1]
        row = self.counts[1] * self.n_queries * heads * math.prod(self.span)
        on_cpu = self.task.x.device.type == "cpu"
        step = max(1, (_BLOCK_ELEMENTS if on_cpu else _BLOCK_ELEMENTS_ELSEWHERE) // row)
        for image in range(len(self.task.x)):
            for start in range(0, self.counts[0], step):
                yield image, slice(start, min(start + step, self.counts[0]))

    def attention(
        self, number: int, image: int, rows: slice
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Keys of some tiles, (tiles, heads, K, d_k), and their S, A and dropout's mask, each
        (tiles, queries, heads, K)."""
        keys = self.patches(self.keys[image], rows)
        scores = self.take(self.queries[image], rows) @ keys.mT
        # In this order the output matrix meets all heads of a query side by side.
        shape = (len(keys), self.n_queries, keys.shape[1], keys.shape[2])
        ordered = torch.empty(shape, dtype=self.dtype, device=keys.device)
        outside = self.outside[rows].flatten(0, 1)[:, :, None]
        torch.add(scores.transpose(1, 2), outside, out=ordered)
        content = torch.softmax(ordered, dim=-1)
        dropped = dropout_mask(content, self.task, number)
        mix = self.task.mix
        if mix is None:
            return keys, content, content if dropped is None else content * dropped, dropped
        mixed = torch.mul(content, mix.share.to(self.dtype).view(-1, 1), out=ordered)
        if dropped is not None:
            mixed *= dropped
        weights = mix.gate.to(self.dtype).view(-1, 1).expand(*shape[:-1], 1)
        mixed.scatter_add_(-1, self.taps.expand_as(weights), weights)
        return keys, content, mixed, dropped

    def kept(self) -> tuple[int, int, int]:
        """Shape of A_h X of all tiles, but for their queries, heads and channels."""
        each = self.counts[1] * self.n_queries * self.task.queries.shape[1] * self.task.x.shape[1]
        return len(self.task.x), self.counts[0], each

    def matrix(self) -> Tensor:
        """The kernel as output matrix, (groups, heads · C / groups, out_channels / groups)."""
        by_group = torch.unflatten(self.task.kernel, 0, (self.task.groups, -1))
        return by_group.permute(0, 3, 2, 1).flatten(1, 2)

    def by_group(self, seen: Tensor) -> Tensor:
        """A_h X of some tiles (tiles, queries · heads, C) as the output matrix takes it, (groups,
        tiles · queries, heads · C / groups)."""
        heads, groups = self.task.queries.shape[1], self.task.groups
        split = seen.reshape(-1, heads, groups, seen.shape[-1] // groups)
        return split.permute(2, 0, 1, 3).flatten(2)

    # Of queries

    def for_queries(self, like: Tensor, planes: int, channels: int) -> Tensor:
        """Room for something of each query of whole tiles."""
        rows, columns = (n * side for n, side in zip(self.counts, self.sides, strict=True))
        return like.new_empty(len(like), planes, rows, columns, channels)

    def tiled(self, pixels: Tensor) -> Tensor:
        """Something of each query (B, planes, Nq, c), with zeros where tiles go beyond."""
        rows, columns = self.task.scene.grid
        room = self.for_queries(pixels, pixels.shape[1], pixels.shape[3]).zero_()
        room[:, :, :rows, :columns] = torch.unflatten(pixels, 2, (rows, columns))
        return room

    def only_queries(self, room: Tensor) -> Tensor:
        """Without what goes beyond."""
        rows, columns = self.task.scene.grid
        return room[:, :, :rows, :columns]

    def take(self, room: Tensor, rows: slice) -> Tensor:
        """What some rows of tiles have of an image's (planes, ...): (tiles, planes, queries, c)."""
        tiles = self._by_tile(room, rows).permute(1, 3, 0, 2, 4, 5)
        return tiles.flatten(3, 4).flatten(0, 1).contiguous()

    def put(self, room: Tensor, values: Tensor, rows: slice) -> None:
        """Fill in what `take` would give."""
        tiles = self._by_tile(room, rows)
        shape = (tiles.shape[1], tiles.shape[3], tiles.shape[0], *self.sides, tiles.shape[5])
        tiles.copy_(values.reshape(shape).permute(2, 0, 3, 1, 4, 5))

    def _by_tile(self, room: Tensor, rows: slice) -> Tensor:
        """(planes, tile rows, side, tile columns, side, c)."""
        part = room[:, rows.start * self.sides[0] : rows.stop * self.sides[0]]
        part = torch.unflatten(part, 2, (-1, self.sides[1]))
        return torch.unflatten(part, 1, (-1, self.sides[0]))

    # Of keys

    def patches(self, padded: Tensor, rows: slice) -> Tensor:
        """What some rows of tiles see of an image's (planes, ...): (tiles, planes, K, c)."""
        patches = self._windows(padded, rows, (0, 0), self.span)
        return patches.contiguous().flatten(3, 4).flatten(0, 1)

    def add_patches(self, padded: Tensor, values: Tensor, rows: slice) -> None:
        """Add what `patches` cut out to where it came from.

        Patches overlap; parts of a tile's step do not, and are added for all tiles at once.
        """
        shape = (rows.stop - rows.start, self.counts[1], len(padded), *self.span, values.shape[-1])
        values = values.reshape(shape)
        for top in range(0, self.span[0], self.steps[0]):
            for left in range(0, self.span[1], self.steps[1]):
                height = min(self.steps[0], self.span[0] - top)
                width = min(self.steps[1], self.span[1] - left)
                part = values[:, :, :, top : top + height, left : left + width]
                self._windows(padded, rows, (top, left), (height, width)).add_(part)

    def only_image(self, padded: Tensor) -> Tensor:
        """The image within the padded one; zeros where it was cut off."""
        image = padded.new_zeros(*padded.shape[:2], *self.task.scene.size, padded.shape[-1])
        here, there = self._overlap()
        image[(slice(None), slice(None), *here)] = padded[(slice(None), slice(None), *there)]
        return image

    def _pad(self, pixels: Tensor) -> Tensor:
        padded = pixels.new_zeros(*pixels.shape[:2], *self.padded, pixels.shape[-1])
        here, there = self._overlap()
        image = torch.unflatten(pixels, 2, self.task.scene.size)
        padded[(slice(None), slice(None), *there)] = image[(slice(None), slice(None), *here)]
        return padded

    def _overlap(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Rows and columns that image and padded image share: in the one, and in the other."""
        here = []
        for lead, size, padded in zip(self.lead, self.task.scene.size, self.padded, strict=True):
            here.append((max(0, -lead), min(size, padded - lead), lead))
        return (
            tuple(slice(first, last) for first, last, _ in here),
            tuple(slice(first + lead, last + lead) for first, last, lead in here),
        )

    def _windows(
        self, padded: Tensor, rows: slice, corner: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        """The part at `corner` of each tile's patch: (tile rows, tile columns, planes, h, w, c)."""
        plane, row, column, channel = padded.stride()
        first = padded[:, rows.start * self.steps[0] + corner[0] :, corner[1] :]
        return first.as_strided(
            (rows.stop - rows.start, self.counts[1], len(padded), *size, padded.shape[-1]),
            (self.steps[0] * row, self.steps[1] * column, plane, row, column, channel),
        )

    def _outside(self) -> Tensor:
        """0 for a key in a query's window and -∞ for others, (tile rows, tile columns, queries,
        K)."""
        scene = self.task.scene
        assert scene.window is not None
        axes = []
        for axis in (0, 1):
            device = self.task.x.device
            tile = torch.arange(self.counts[axis], device=device)[:, None, None]
            query = torch.arange(self.sides[axis], device=device)[:, None]
            key = torch.arange(self.span[axis], device=device)
            near = functional.in_window(
                key - query * scene.stride[axis] - self.before, scene.window
            )
            pixel = tile * self.steps[axis] + key - self.lead[axis]
            near = near & (pixel >= 0) & (pixel < scene.size[axis])
            # Queries beyond the last may have no key: they see them all, for no NaN to spread.
            near = near | (tile * self.sides[axis] + query >= scene.grid[axis])
            axes.append(torch.zeros(near.shape, dtype=self.dtype, device=device))
            axes[-1].masked_fill_(~near, -torch.inf)
        rows, columns = axes
        both = rows[:, None, :, None, :, None] + columns[None, :, None, :, None, :]
        return both.flatten(4).flatten(2, 3)
