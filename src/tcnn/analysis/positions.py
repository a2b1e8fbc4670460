"""Where the heads of a hybrid look by position: the centre and the width of each."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from tcnn.layers import GPSA2d, gpsa_layers
from tcnn.tables import text_table


@dataclass(frozen=True)
class HeadPosition:
    """The positional attention P_h ∝ exp(-‖δ - Δ‖² / 2σ²) of one head.

    Lengths are in pixels of the layer's input, positions relative to the query: rows, columns.

    Attributes:
        layer: name of the layer.
        tap: row and column of its tap in the kernel.
        start: where the tap lies, and the head started.
        centre: Δ; None for a head that has none.
        width: σ, 0 on a fixed position; None for a head that has none.
        gate: g; the share that P_h has in the head's attention.
    """

    layer: str
    tap: tuple[int, int]
    start: tuple[float, float]
    centre: tuple[float, float] | None
    width: float | None
    gate: float

    @property
    def moved(self) -> float | None:
        """‖Δ - start‖; None for a head without a centre."""
        return None if self.centre is None else math.dist(self.centre, self.start)


@dataclass(frozen=True)
class PositionsReport:
    """The positions of a hybrid's heads, layer by layer."""

    heads: tuple[HeadPosition, ...]

    @property
    def layers(self) -> dict[str, tuple[HeadPosition, ...]]:
        """The heads of each layer."""
        names = dict.fromkeys(head.layer for head in self.heads)
        return {name: tuple(h for h in self.heads if h.layer == name) for name in names}

    def table(self) -> str:
        """One row for each head, and a line on those without a centre."""
        rows = [
            (h.layer, str(h.tap), _pair(h.start), _pair(h.centre), h.width, h.moved, h.gate)
            for h in self.heads
        ]
        headers = ("layer", "tap", "start", "centre", "width", "moved", "gate")
        without = sum(head.centre is None for head in self.heads)
        note = (
            f"\n\n{without} heads have no centre: their attention grows with the distance (v₀ ≥ 0)."
            if without
            else ""
        )
        return text_table(headers, rows) + note

    def to_json(self) -> list[dict[str, Any]]:
        """The positions as plain data."""
        return [{**asdict(head), "moved": head.moved} for head in self.heads]


def head_positions(model: nn.Module) -> PositionsReport:
    """Where each head of the recast layers looks by position, from its parameters alone.

    P_h = softmax(v₀‖δ‖² + v₁δ₁ + v₂δ₂) is, with α = -v₀, a Gaussian of centre

        Δ = (v₁, v₂) / 2α = (-v₁ / 2v₀, -v₂ / 2v₀),    σ = 1 / √(2α)

    cut off at the border of the padded image. With v₀ ≥ 0 it has no centre and no width: it grows
    away from the query, and lies on the border. Fixed positions are on their taps, with σ = 0.

    Raises:
        ValueError: the network holds no `GPSA2d`.

    Source: Cordonnier et al. 2020 (arXiv 1911.03584) eq. 9; ConViT (arXiv 2103.10697) eq. 6.
    """
    layers = gpsa_layers(model)
    if not layers:
        raise ValueError(
            f"Expected a hybrid, but {type(model).__name__} holds no GPSA2d: recast it first."
        )
    return PositionsReport(
        tuple(head for name, layer in layers.items() for head in _of_layer(name, layer))
    )


def _of_layer(name: str, layer: GPSA2d) -> list[HeadPosition]:
    starts = torch.stack(layer.geometry.centres(torch.device("cpu")), dim=1).tolist()
    gates = layer.gate.detach().tolist()
    learned: list[list[float]] = []
    if layer.config.positions == "learned":
        learned = layer.v_pos.detach().double().tolist()
    heads = []
    for head, (start, gate) in enumerate(zip(starts, gates, strict=True)):
        tap = divmod(head, layer.geometry.kernel_size[1])
        at = start[0], start[1]
        centre: tuple[float, float] | None = at
        width: float | None = 0.0
        if learned:
            centre, width = _gaussian(*learned[head])
        heads.append(HeadPosition(name, tap, at, centre, width, gate))
    return heads


def _gaussian(v0: float, v1: float, v2: float) -> tuple[tuple[float, float] | None, float | None]:
    if not v0 < 0:
        return None, None
    return (-v1 / (2 * v0), -v2 / (2 * v0)), 1 / math.sqrt(-2 * v0)


def _pair(point: tuple[float, float] | None) -> str | None:
    return None if point is None else f"({point[0]:.2f}, {point[1]:.2f})"
