"""Attention rollout: from where in the image attention brings what the last recast layer sees."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tcnn.analysis.capture import Capture
from tcnn.layers import GPSA2d


def attention_rollout(seen: Capture, residual: float = 0.5) -> Tensor:
    r"""Attention of all recast layers, one after the other, from the last back to the first.

    .. math::
        R_l = \hat A_l \, T_l \, R_{l-1}, \qquad \hat A_l = r I_l + (1 - r) \bar A_l

    for the layers l = 1 … L in the order of their calls, with R_0 = I on the pixels of the first
    layer's input. Every row of every factor sums to 1, so R_L is a distribution over those pixels.

    - Ā_l is the mean over heads of |A_h|, its rows scaled to sum to 1. (|·| because a content share
      beyond [0, 1] takes attention below 0; scaled because of what falls on zero padding. A query
      with all attention on padding stays where it is.)
    - I_l takes query (u, v) to the pixel that it is anchored at: the residual connection.
    - T_l takes a pixel of layer l's input to the part of layer l - 1's output grid that lies in the
      same place, by area; it is I where the grids are the same.

    What it ignores: the convolutions that are not recast, but for their grids; values, kernels and
    channels, so also that a head with a large kernel slice counts for more; nonlinearities; and
    branches, for the layers count as if each read from the one called before it. A layer that is
    called several times counts once, with its last call.

    Args:
        seen: the layers, after a call.
        residual: r; 0 for a network without residual connections.

    Returns:
        R_L of each image, (B, Hq, Wq, H, W): from the queries of the last layer to the pixels of
        the first one's input. Its mean over queries is what a network that ends in a global average
        looks at.

    Raises:
        ValueError: no layer was called.

    Source: Abnar & Zuidema 2020 (arXiv 2005.00928) §3, eq. 1 (r = 0.5; mean over heads); anchors,
        grids and padding are this project's.
    """
    if not seen.inputs:
        raise ValueError("Expected recast layers that were called, but none was: run an image.")
    batch = {len(x) if x.dim() == 4 else 1 for x in seen.inputs.values()}
    if len(batch) > 1:
        raise ValueError(
            f"Expected layers called with the same images, but their batches have {sorted(batch)}."
        )
    return torch.stack([_of_image(seen, image, residual) for image in range(batch.pop())])


def _of_image(seen: Capture, image: int, residual: float) -> Tensor:
    """R_L, (Hq, Wq, H, W)."""
    rolled = torch.empty(0)
    for index, name in enumerate(seen.inputs):
        maps = seen.attention(name, slice(image, image + 1)).mixed[0].float().abs()
        grid, size = maps.shape[1:3], maps.shape[3:]
        if not index:
            pixels = torch.eye(size.numel(), device=maps.device)
            rolled = pixels.view(*size, *size)
        rolled = _on_grid(rolled, (size[0], size[1])).flatten(2).flatten(0, 1)
        anchored = _anchored(seen.layers[name], (size[0], size[1]), maps)
        attention = maps.mean(dim=0).flatten(2).flatten(0, 1)
        total = attention.sum(dim=1, keepdim=True)
        attention = torch.where(total > 0, attention / total, anchored)
        rolled = (residual * anchored + (1 - residual) * attention) @ rolled
        rolled = rolled.view(*grid, -1)
    first = next(iter(seen.inputs.values())).shape[-2:]
    return rolled.view(*rolled.shape[:2], *first)


def _anchored(layer: GPSA2d, size: tuple[int, int], like: Tensor) -> Tensor:
    """I_l, (Hq·Wq, H·W): 1 at the pixel nearest to each query's anchor."""
    rows, columns = (
        F.one_hot(anchors.clamp(0, n - 1).long(), n).to(like.dtype)
        for anchors, n in zip(layer.geometry.anchors(size, like.device), size, strict=True)
    )
    return torch.kron(rows, columns)


def _on_grid(rolled: Tensor, size: tuple[int, int]) -> Tensor:
    """T R: (H', W', ...) to (H, W, ...), each pixel the mean of those that it covers."""
    if tuple(rolled.shape[:2]) == size:
        return rolled
    channels = rolled.flatten(2).permute(2, 0, 1)
    return F.adaptive_avg_pool2d(channels, size).permute(1, 2, 0)
