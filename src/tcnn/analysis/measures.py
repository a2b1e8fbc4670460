"""Figures on attention: tensor in, tensor out.

Attention maps A are (..., Hq, Wq, H, W): for each query on the output grid, a weight for each pixel
of the input, as `tcnn.layers.AttentionMaps` has them. Leading dimensions (images, heads) are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


def content_share(gate: Tensor) -> Tensor:
    """1 - g: how much of a head's attention depends on what is seen; 0 is the convolution."""
    return 1 - gate


def attention_distance(attention: Tensor, stride: tuple[int, int] = (1, 1)) -> Tensor:
    """D = mean over queries of Σ_j A_ij ‖δ_ij‖, in pixels of the layer's input.

    δ is the pixel attended to minus the query's, which is (u·s, v·s) as in `nn.Conv2d`. Attention
    that falls on zero padding is in no map, and adds nothing.

    Args:
        attention: A, (..., Hq, Wq, H, W).
        stride: s, of the layer.

    Returns:
        (...).

    Source: d'Ascoli et al. 2021, "ConViT" (arXiv 2103.10697), eq. 8 (non-locality).
    """
    rows, columns = (
        torch.arange(keys, device=attention.device, dtype=attention.dtype)[None, :]
        - torch.arange(queries, device=attention.device, dtype=attention.dtype)[:, None] * step
        for queries, keys, step in zip(
            attention.shape[-4:-2], attention.shape[-2:], stride, strict=True
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
