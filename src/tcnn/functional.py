"""The mathematics of gated positional self-attention on a pixel grid, as pure functions.

The positional attention of a head is a product of one factor per axis, P_h = R_h ⊗ C_h: a softmax
of a sum of a row term and a column term, over a product grid. Only the factors are ever formed.

Sources: Cordonnier et al. 2020 (arXiv 1911.03584) eq. 9; d'Ascoli et al. 2021, "ConViT"
(arXiv 2103.10697) eq. 4-7; d'Ascoli et al. 2021, "Transformed CNNs" (arXiv 2106.05795).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def axis_offsets(anchors: Tensor, first_key: int, n_keys: int) -> Tensor:
    """Offsets δ = key - anchor along one axis.

    Args:
        anchors: pixel that each query is anchored at, (queries,).
        first_key: pixel of the first key; negative where keys start in the padding.
        n_keys: number of keys.

    Returns:
        δ, (queries, keys), in the dtype of `anchors`.
    """
    keys = torch.arange(first_key, first_key + n_keys, device=anchors.device, dtype=anchors.dtype)
    return keys[None, :] - anchors[:, None]


def axis_one_hot(offsets: Tensor, centres: Tensor) -> Tensor:
    """Positional factor at α = ∞: all attention on the key at δ = Δ_h.

    Args:
        offsets: δ, (queries, keys), whole numbers.
        centres: Δ_h along this axis, (heads,), whole numbers.

    Returns:
        (heads, queries, keys) of 0 and 1, boolean.
    """
    return offsets[None] == centres[:, None, None]


def axis_softmax(offsets: Tensor, quadratic: Tensor, linear: Tensor) -> Tensor:
    """Positional factor at finite α: softmax over keys of v₀δ² + v₁δ (ConViT eq. 6, one axis).

    Weights below the square of the dtype's precision, relative to the largest, are exactly zero:
    they cannot be seen in any sum, and as denormal floats they triple the time on a CPU.

    Args:
        offsets: δ, (queries, keys).
        quadratic: v₀ of each head, (heads,); -α at the start.
        linear: v₁ of each head, (heads,); 2αΔ_h at the start.

    Returns:
        (heads, queries, keys), rows summing to 1.
    """
    logits = quadratic[:, None, None] * offsets.square() + linear[:, None, None] * offsets
    logits = logits - logits.detach().amax(dim=-1, keepdim=True)
    invisible = logits.detach() < 2 * math.log(torch.finfo(logits.dtype).eps)
    return logits.masked_fill(invisible, -torch.inf).softmax(dim=-1)


def fold_padding(factor: Tensor, before: int, after: int, mode: str) -> Tensor:
    """Move the attention that a factor pays to padded pixels to the pixels they are copies of.

    Padding is linear along each axis, so padding the identity gives its matrix: attention over the
    padded axis times that matrix is attention over the real one. Zero padding copies nothing, and
    its attention is dropped (the zeros it meets add nothing to the output).

    Args:
        factor: (heads, queries, before + n + after) over the padded axis.
        before, after: padded pixels on either side.
        mode: "zeros", "reflect", "replicate" or "circular", as `torch.nn.Conv2d`.

    Returns:
        (heads, queries, n) over the real axis.
    """
    n = factor.shape[-1] - before - after
    if mode == "zeros":
        return factor[..., before : before + n]
    if before == after == 0:
        return factor
    identity = torch.eye(n, device=factor.device, dtype=factor.dtype)[None]
    return factor @ F.pad(identity, (before, after), mode=mode)[0].T


def positional_output(
    x: Tensor, rows: Tensor, columns: Tensor, kernel: Tensor, groups: int
) -> Tensor:
    """Σ_h W[:, :, h] (P_h X) by the per-axis factors.

    Head by head, so that what lies between the products stays in a CPU's cache: the kernel, then
    columns, then rows: 2·N·out_channels·(W + H) operations for a head beside the kernel's.

    Args:
        x: image, (B, C, H, W).
        rows, columns: factors R_h (heads, Hq, H) and C_h (heads, Wq, W).
        kernel: W, (out_channels, C / groups, heads).
        groups: channel groups of the convolution.

    Returns:
        (B, out_channels, Hq, Wq).
    """
    batch, channels, height, width = x.shape
    heads, n_rows, _ = rows.shape
    n_columns = columns.shape[1]
    by_group = x.reshape(batch, groups, channels // groups, height * width)
    by_head = torch.unflatten(kernel, 0, (groups, -1)).unbind(-1)
    planes = batch * len(kernel)
    y = x.new_zeros(planes, n_rows, n_columns)
    for head in range(heads):
        values = (by_head[head] @ by_group).reshape(planes * height, width)
        seen = (values @ columns[head].mT).view(planes, height, n_columns)
        y = torch.baddbmm(y, rows[head].expand(planes, -1, -1), seen)
    return y.view(batch, len(kernel), n_rows, n_columns)


def unpool(attention: Tensor, cell: int, size: tuple[int, int]) -> Tensor:
    """Attention over the means of an image's cells as attention over its pixels.

    Args:
        attention: (..., ⌈H/cell⌉, ⌈W/cell⌉).
        cell: side of a cell.
        size: (H, W); cells at the far sides may be smaller.

    Returns:
        (..., H, W), with the same sums.
    """
    if cell == 1:
        return attention
    spread = attention.repeat_interleave(cell, -2).repeat_interleave(cell, -1)
    spread = spread[..., : size[0], : size[1]]
    rows, columns = (
        torch.tensor([min(cell, n - i // cell * cell) for i in range(n)], device=spread.device)
        for n in size
    )
    return spread / (rows[:, None] * columns)


def dense_position(rows: Tensor, columns: Tensor) -> Tensor:
    """P_h = R_h ⊗ C_h as a matrix, (heads, Hq·Wq, H·W), of (heads, Hq, H) and (heads, Wq, W)."""
    product = rows[:, :, None, :, None] * columns[:, None, :, None, :]
    return product.flatten(3).flatten(1, 2)


def in_window(offsets: Tensor, window: int) -> Tensor:
    """Whether -⌊(w-1)/2⌋ ≤ δ ≤ ⌊w/2⌋ along one axis, boolean, in the shape of `offsets`."""
    return (offsets >= -((window - 1) // 2)) & (offsets <= window // 2)


def window_mask(row_offsets: Tensor, column_offsets: Tensor, window: int) -> Tensor:
    """Which keys lie outside the window -⌊(w-1)/2⌋ ≤ δ ≤ ⌊w/2⌋ around their query, on either axis.

    Args:
        row_offsets, column_offsets: δ, (Hq, H) and (Wq, W).
        window: side w of the neighbourhood in pixels.

    Returns:
        (Hq·Wq, H·W), boolean, True where a key may not be attended to.
    """
    inside = [in_window(d, window) for d in (row_offsets, column_offsets)]
    both = inside[0][:, None, :, None] & inside[1][None, :, None, :]
    return ~both.flatten(0, 1).flatten(1, 2)


def project_heads(x: Tensor, weight: Tensor) -> Tensor:
    """Queries or keys of every pixel: Q_h = X W_h.

    Args:
        x: (B, C, H, W).
        weight: W_qry or W_key, (heads, d_k, C).

    Returns:
        (B, heads, H·W, d_k).
    """
    projected = F.conv2d(x, weight.flatten(0, 1)[..., None, None])
    return projected.view(x.shape[0], *weight.shape[:2], x.shape[2] * x.shape[3]).mT


def unit(x: Tensor) -> Tensor:
    """x / √(‖x‖² + ε) over the last dimension: of length 1, or near 0 where x is, with a gradient
    that stays finite there."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    length = (wide.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()
    return x / length.to(x.dtype)


def scaled_queries(queries: Tensor, keys: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries times the factor of the scores, 1 / √d_k or `scale` (heads,), and the keys.

    Both (B, heads, ·, d_k); of float16 in float32, for its scores would overflow.
    """
    if queries.dtype == torch.float16:
        queries, keys = queries.float(), keys.float()
    factor = queries.shape[-1] ** -0.5 if scale is None else scale.to(queries.dtype).view(-1, 1, 1)
    return queries * factor, keys


def content_attention(queries: Tensor, keys: Tensor, outside: Tensor | None = None) -> Tensor:
    """S_h = softmax over keys of Q_h K_hᵀ (ConViT eq. 5).

    Args:
        queries: with the factor of the scores, (B, heads, Nq, d_k).
        keys: (B, heads, Nk, d_k).
        outside: (Nq, Nk), True where a key may not be attended to; None allows all.

    Returns:
        (B, heads, Nq, Nk), rows summing to 1.
    """
    scores = queries @ keys.transpose(-1, -2)
    if outside is not None:
        scores = scores.masked_fill(outside, -torch.inf)
    return torch.softmax(scores, dim=-1)


def content_attend(x: Tensor, attention: Tensor) -> Tensor:
    """S_h X for all heads in one matrix product, without a copy of X per head.

    Args:
        x: image, (B, C, H, W).
        attention: S, (B, heads, Nq, H·W).

    Returns:
        (B, C, heads, Nq).
    """
    # X on the left: its gradient then lies in memory as X does. Transposed, with one image in the
    # batch, it has strides that PyTorch's batch norm misreads on a CPU (wrong gradients, silently).
    weights = attention.flatten(1, 2).transpose(1, 2).to(x.dtype)
    return torch.bmm(x.flatten(2), weights).view(*x.shape[:2], *attention.shape[1:3])


def output_matrix(
    attended: Tensor, kernel: Tensor, groups: int, bias: Tensor | None = None
) -> Tensor:
    """Σ_h W[:, :, h] (A_h X) + bias: the kernel as the heads' output matrix, by groups.

    Args:
        attended: A_h X, (B, C, heads, Hq, Wq).
        kernel: W, (out_channels, C / groups, heads).
        groups: channel groups of the convolution.
        bias: (out_channels,).

    Returns:
        (B, out_channels, Hq, Wq).
    """
    # Channels and heads flatten in the kernel's own order, so this is a grouped 1x1 convolution.
    return F.conv2d(attended.flatten(1, 2), kernel.flatten(1)[..., None, None], bias, groups=groups)
