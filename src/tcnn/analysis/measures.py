"""Figures on attention: tensor in, tensor out.

Attention maps A are (..., Hq, Wq, H, W): for each query on the output grid, a weight for each pixel
of the input, as `tcnn.layers.AttentionMaps` has them. Leading dimensions (images, heads) are kept.
Attention on zero padding is in no map: a row sums to 1 less what falls there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tcnn import functional
from tcnn.geometry import Geometry


def content_share(gate: Tensor) -> Tensor:
    """1 - g: how much of a head's attention depends on what is seen; 0 is the convolution."""
    return 1 - gate


def attention_distance(
    attention: Tensor, stride: tuple[int, int] = (1, 1), first: tuple[int, int] = (0, 0)
) -> Tensor:
    """D = mean over queries of Σ_j A_ij ‖δ_ij‖, in pixels of the layer's input.

    δ is the pixel attended to minus the query's, which is (u·s, v·s) as in `nn.Conv2d`. Attention
    that falls on zero padding adds nothing.

    Args:
        attention: A, (..., Hq, Wq, H, W).
        stride: s, of the layer.
        first: pixel that the first query is anchored at: not (0, 0) where the maps are of some
            queries only, or where the padding follows the size of the input.

    Returns:
        (...).

    Source: d'Ascoli et al. 2021, "ConViT" (arXiv 2103.10697), eq. 8 (non-locality).
    """
    rows, columns = (
        torch.arange(keys, device=attention.device, dtype=attention.dtype)[None, :]
        - torch.arange(queries, device=attention.device, dtype=attention.dtype)[:, None] * step
        - start
        for queries, keys, step, start in zip(
            attention.shape[-4:-2], attention.shape[-2:], stride, first, strict=True
        )
    )
    distance = torch.hypot(rows[:, None, :, None], columns[None, :, None, :])
    return (attention * distance).sum(dim=(-2, -1)).mean(dim=(-2, -1))


def attention_entropy(attention: Tensor) -> Tensor:
    """Mean over queries of -Σ_j A_ij ln A_ij, in nats: 0 for one pixel, ln(H·W) for all alike.

    Args:
        attention: (..., Hq, Wq, H, W), not below 0: the content S or the position P. (A mixture
            with a gate beyond [0, 1] is no distribution, and its entropy comes out as -inf.)

    Returns:
        (...).
    """
    terms: Tensor = torch.special.entr(attention)
    return terms.sum(dim=(-2, -1)).mean(dim=(-2, -1))


def kernel_window_share(
    attention: Tensor, geometry: Geometry, padding_mode: str = "zeros"
) -> Tensor:
    """1 - mean over queries of Σ_{j outside K_i} A_ij: the share within the original kernel.

    K_i are the pixels that the convolution's taps read for query i; where the padding copies
    pixels, those they are copies of. Attention on zero padding counts as within. The share is
    linear in A: that of a mixture is the mixture of the shares.

    Args:
        attention: A, (..., Hq, Wq, H, W).
        geometry: of the layer, which is `GPSA2d.geometry`.
        padding_mode: of the layer.

    Returns:
        (...): 1 for a layer that was just recast.
    """
    rows, columns = _tap_factors(attention, geometry, padding_mode)
    # The taps are a product grid, so the window is the product of its rows and columns.
    inside_rows, inside_columns = rows.amax(dim=0), columns.amax(dim=0)
    inside = inside_rows[:, None, :, None] * inside_columns[None, :, None, :]
    return 1 - (attention * (1 - inside)).sum(dim=(-2, -1)).mean(dim=(-2, -1))


def departure(attention: Tensor, geometry: Geometry, padding_mode: str = "zeros") -> Tensor:
    """Mean over queries of TV(A_h, C_h): how far each head left its convolution.

    C_h is the convolution's own attention, all of it on the head's tap, and TV is as in
    `head_distances`. With fixed positions this is |1 - g_h| TV(S_h, C_h): a head whose gate is open
    but whose content attention falls on its tap has not left.

    Args:
        attention: A of all heads of a layer, (..., heads, Hq, Wq, H, W).
        geometry, padding_mode: of the layer, as in `kernel_window_share`.

    Returns:
        (..., heads): 0 for the convolution, 1 where nothing is left on the tap; above 1 only for
        content shares beyond [0, 1].
    """
    rows, columns = _tap_factors(attention, geometry, padding_mode)
    taps = rows[:, :, None, :, None] * columns[:, None, :, None, :]
    return _total_variation(attention, taps)


def head_distances(attention: Tensor) -> Tensor:
    """TV_hk = mean over queries of ½ Σ_j |A^h_ij - A^k_ij|, the total variation between heads.

    The padded zeros count as one more pixel j, which takes what a row lacks to 1.

    Args:
        attention: A of all heads of a layer, (..., heads, Hq, Wq, H, W).

    Returns:
        (..., heads, heads), symmetric with a diagonal of 0. Of attention not below 0: from 0, alike
        everywhere, to 1, never on the same pixel.

    Source: Levin & Peres 2017, Markov Chains and Mixing Times, §4.1. Heads are compared by pairs as
        in Clark et al. 2019 (arXiv 1906.04341) §6, with total variation in place of Jensen-Shannon
        divergence, which attention below 0 has not.
    """
    # Head by head: all pairs at once would take as many maps as there are pairs.
    return torch.stack(
        [
            _total_variation(attention, attention[..., head : head + 1, :, :, :, :])
            for head in range(attention.shape[-5])
        ],
        dim=-2,
    )


def head_redundancy(attention: Tensor) -> Tensor:
    """Mean of `head_distances` over the pairs of a layer's heads: the lower, the more redundant.

    Args:
        attention: A of all heads of a layer, (..., heads, Hq, Wq, H, W).

    Returns:
        (...): 0 where all heads attend alike. NaN for a layer of one head.
    """
    heads = attention.shape[-5]
    distances = head_distances(attention).sum(dim=(-2, -1))
    return distances / (heads * (heads - 1)) if heads > 1 else torch.full_like(distances, torch.nan)


def _total_variation(a: Tensor, b: Tensor) -> Tensor:
    """Mean over queries of ½ Σ_j |a_ij - b_ij|, the zero padding being one pixel."""
    difference = a - b
    on_padding = difference.sum(dim=(-2, -1)).abs()
    return (difference.abs().sum(dim=(-2, -1)) + on_padding).mean(dim=(-2, -1)) / 2


def _tap_factors(attention: Tensor, geometry: Geometry, padding_mode: str) -> tuple[Tensor, Tensor]:
    """The convolution's own attention by axes, (heads, Hq, H) and (heads, Wq, W), of 0 and 1."""
    size = (attention.shape[-2], attention.shape[-1])
    anchors, centres = geometry.anchors(size, attention.device), geometry.centres(attention.device)
    rows, columns = (
        functional.fold_padding(
            functional.axis_one_hot(
                functional.axis_offsets(anchor, -before, n + before + after), centre
            ).to(attention.dtype),
            before,
            after,
            padding_mode,
        )
        for n, anchor, centre, (before, after) in zip(
            size, anchors, centres, geometry.pads(size), strict=True
        )
    )
    return rows, columns
