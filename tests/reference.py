"""The dense reference: gated positional self-attention from its formulas, one matrix per head.

Nothing here is imported from the package. Every attention map is an explicit matrix of numbers
[queries, keys], so it is slow, short and easy to check by eye:

    P_h[q, k] = softmax over the padded grid of  v_pos · (‖δ‖², δ_row, δ_col)     δ = key - anchor
    S_h[q, k] = softmax over the real pixels of  (W_q x_anchor) · (W_k x_key) / sqrt(d)
    A_h       = g_h P_h + (1 - g_h) S_h
    Y         = Σ_h W[:, :, a, b] (A_h X) + bias                                  h = a * kw + b
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution on an image: where its queries, padded keys and taps are."""

    size: int
    """Real pixels."""
    before: int
    """Padding before the first real pixel."""
    after: int
    """Padding after the last one."""
    anchors: list[int]
    """Input coordinate of each query; it may lie outside the image."""
    centres: list[int]
    """Displacement Δ of each tap."""

    @property
    def padded(self) -> list[int]:
        """Coordinates of the padded grid; real pixels are 0 … size - 1."""
        return list(range(-self.before, self.size + self.after))


def axis_of(
    size: int, kernel: int, stride: int, padding: int | str, dilation: int, shift: int = 0
) -> Axis:
    """Padding, anchors and centres of one axis."""
    if padding == "same":
        total = dilation * (kernel - 1)
        before, after = total // 2, total - total // 2
    elif padding == "valid":
        before = after = 0
    else:
        before = after = int(padding)
    queries = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    return Axis(
        size=size,
        before=before,
        after=after,
        anchors=[u * stride + shift for u in range(queries)],
        centres=[a * dilation - before for a in range(kernel)],
    )


def source(coordinate: int, size: int, padding_mode: str) -> int | None:
    """The real pixel whose value a padded coordinate has, None where its value is zero."""
    if 0 <= coordinate < size:
        return coordinate
    if padding_mode == "replicate":
        return min(max(coordinate, 0), size - 1)
    if padding_mode == "circular":
        return coordinate % size
    if padding_mode == "reflect":
        return -coordinate if coordinate < 0 else 2 * (size - 1) - coordinate
    return None


def fold(rows: Axis, cols: Axis, padding_mode: str) -> Tensor:
    """[padded keys, real keys]: 1 where a padded key has the value of a real one, else 0."""
    matrix = torch.zeros(len(rows.padded), len(cols.padded), rows.size, cols.size)
    for i, row in enumerate(rows.padded):
        for j, col in enumerate(cols.padded):
            y, x = (source(row, rows.size, padding_mode), source(col, cols.size, padding_mode))
            if y is not None and x is not None:
                matrix[i, j, y, x] = 1
    return matrix.flatten(0, 1).flatten(1).double()


def displacements(rows: Axis, cols: Axis, clamp: bool, padded: bool) -> Tensor:
    """[queries, keys, 2]: δ = key - anchor; keys on the padded grid or the real one."""

    def along(axis: Axis) -> Tensor:
        keys = axis.padded if padded else list(range(axis.size))
        anchors = [min(a, axis.size - 1) for a in axis.anchors] if clamp else axis.anchors
        return torch.tensor(keys).view(1, -1) - torch.tensor(anchors).view(-1, 1)

    row, col = along(rows), along(cols)
    grid = (row.shape[0], col.shape[0], row.shape[1], col.shape[1])
    delta = torch.stack(
        [row[:, None, :, None].expand(grid), col[None, :, None, :].expand(grid)], -1
    )
    return delta.flatten(0, 1).flatten(1, 2).double()


def positional_attention(rows: Axis, cols: Axis, v_pos: Tensor | None) -> list[Tensor]:
    """P_h, one [queries, padded keys] a head; v_pos None: all of the mass on δ = Δ_h."""
    delta = displacements(rows, cols, clamp=False, padded=True)
    r = torch.stack([delta[..., 0] ** 2 + delta[..., 1] ** 2, delta[..., 0], delta[..., 1]], -1)
    maps = []
    for h, (a, b) in enumerate((a, b) for a in rows.centres for b in cols.centres):
        if v_pos is None:
            maps.append(((delta[..., 0] == a) & (delta[..., 1] == b)).double())
        else:
            maps.append((r @ v_pos[h]).softmax(-1))
    return maps


def content_attention(
    x: Tensor,
    rows: Axis,
    cols: Axis,
    qk_weight: Tensor,
    qk_dim: int,
    window: int | None,
    temperature: Tensor | None = None,
) -> list[Tensor]:
    """S_h, one [batch, queries, real keys] a head; x [batch, channels, rows, columns]."""
    heads = len(rows.centres) * len(cols.centres)
    w = qk_weight.view(2, heads, qk_dim, -1)
    anchors_y = [min(a, rows.size - 1) for a in rows.anchors]
    anchors_x = [min(a, cols.size - 1) for a in cols.anchors]
    if temperature is not None:
        x = x - x.flatten(2).mean(2)[:, :, None, None]
    at_anchors = x[:, :, anchors_y][:, :, :, anchors_x].flatten(2)
    maps = []
    for h in range(heads):
        q = w[0, h] @ at_anchors
        k = w[1, h] @ x.flatten(2)
        if temperature is None:
            logits = q.transpose(1, 2) @ k / qk_dim**0.5
        else:
            lengths = [((v**2).sum(1) + 1e-6) ** 0.5 for v in (q, k)]
            cosine = (q.transpose(1, 2) @ k) / (lengths[0][:, :, None] * lengths[1][:, None, :])
            logits = temperature[h] * cosine
        if window is not None:
            delta = displacements(rows, cols, clamp=True, padded=False)
            near = (delta >= -((window - 1) // 2)) & (delta <= window // 2)
            logits = logits.masked_fill(~near.all(-1), -torch.inf)
        maps.append(logits.softmax(-1))
    return maps


def dense_gpsa(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
    padding_mode: str,
    gate: Tensor,
    v_pos: Tensor | None,
    qk_weight: Tensor,
    qk_dim: int,
    window: int | None,
    temperature: Tensor | None = None,
    axes: tuple[Axis, Axis] | None = None,
) -> Tensor:
    """Y [batch, out_channels, rows, columns] in float64, differentiable in every tensor.

    `axes` stands in for the padding where that is no nn.Conv2d's.
    """
    x, weight, gate, qk_weight = x.double(), weight.double(), gate.double(), qk_weight.double()
    v_pos = None if v_pos is None else v_pos.double()
    kernel = tuple(weight.shape[2:])
    rows, cols = axes or (
        axis_of(
            x.shape[2 + i],
            kernel[i],
            stride[i],
            padding if isinstance(padding, str) else padding[i],
            dilation[i],
        )
        for i in (0, 1)
    )
    position = positional_attention(rows, cols, v_pos)
    content = content_attention(x, rows, cols, qk_weight, qk_dim, window, temperature)
    onto_real = fold(rows, cols, padding_mode)
    per_group = weight.shape[0] // groups
    out: Tensor | float = 0.0
    for h in range(kernel[0] * kernel[1]):
        a, b = divmod(h, kernel[1])
        attention = gate[h] * (position[h] @ onto_real) + (1 - gate[h]) * content[h]
        seen = x.flatten(2) @ attention.transpose(-1, -2)
        mixed = [
            weight[g * per_group : (g + 1) * per_group, :, a, b] @ part
            for g, part in enumerate(seen.chunk(groups, 1))
        ]
        out = out + torch.cat(mixed, 1)
    assert isinstance(out, Tensor)
    if bias is not None:
        out = out + bias.double()[:, None]
    return out.unflatten(2, (len(rows.anchors), len(cols.anchors)))


def reference_of(layer: torch.nn.Module, x: Tensor, **instead: Any) -> Tensor:
    """`dense_gpsa` with the parameters and geometry of a GPSA layer, but for those given."""
    config = layer.config
    heads = layer.kernel_size[0] * layer.kernel_size[1]
    raw = layer.gating_param.double()
    arguments = {
        "weight": layer.weight,
        "bias": layer.bias,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "padding_mode": layer.padding_mode,
        "gate": 1 - raw if config.gate == "linear" else raw.sigmoid(),
        "v_pos": layer.v_pos if config.positions == "learned" else None,
        "qk_weight": layer.qk.weight,
        "qk_dim": layer.qk.weight.shape[0] // (2 * heads),
        "window": config.window,
        "temperature": layer.logit_scale.double().exp() if config.content == "cosine" else None,
    }
    return dense_gpsa(x, **(arguments | instead))


def with_open_gates(layer: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The layer with every gate open by a different amount, of both signs, and sharp content."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.gating_param.copy_(torch.randn(layer.heads, generator=generator))
        layer.qk.weight.copy_(torch.randn(layer.qk.weight.shape, generator=generator))
    return layer


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| / max |expected|."""
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).abs().max()
    return (difference / expected.double().abs().max()).item()
