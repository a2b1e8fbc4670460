"""Every head of a captured hybrid in figures."""

from __future__ import annotations

import math
from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from tcnn.analysis import measures
from tcnn.analysis.capture import Capture
from tcnn.evaluate import finite
from tcnn.layers import AttentionMaps, GPSA2d
from tcnn.tables import text_table


@dataclass(frozen=True)
class HeadFigures:
    """One head of a recast layer, as means over images and queries.

    Attributes:
        layer: name of the layer.
        tap: row and column of its tap in the kernel.
        gate: g; 1 is the convolution.
        content_share: 1 - g.
        position_distance, content_distance, attention_distance: attention distance of the
            positional attention, of the content attention, and of their mixture (which a negative
            content share can take below 0).
        content_entropy: entropy of the content attention, in nats.
        content_window_share, window_share: share of the content attention, and of the mixture,
            within the original kernel.
        departure: how far the mixture is from the convolution's attention, in total variation.
        head_distance: mean total variation between its mixture and those of the layer's other
            heads; NaN where there is no other.
        pixels: pixels of the layer's input; the entropy is at most the logarithm of it.
    """

    layer: str
    tap: tuple[int, int]
    gate: float
    content_share: float
    position_distance: float
    content_distance: float
    attention_distance: float
    content_entropy: float
    content_window_share: float
    window_share: float
    departure: float
    head_distance: float
    pixels: int

    @property
    def content_spread(self) -> float:
        """exp(entropy) / pixels: how much of the image content attention covers; 1 is all."""
        return math.exp(self.content_entropy) / self.pixels


@dataclass(frozen=True)
class HeadsReport:
    """The heads of a hybrid, layer by layer, in the order in which the layers were called."""

    heads: tuple[HeadFigures, ...]

    @property
    def layers(self) -> dict[str, tuple[HeadFigures, ...]]:
        """The heads of each layer."""
        names = dict.fromkeys(head.layer for head in self.heads)
        return {name: tuple(h for h in self.heads if h.layer == name) for name in names}

    @property
    def redundancy(self) -> dict[str, float]:
        """Mean distance between the heads of each layer (`measures.head_redundancy`)."""
        return {
            name: sum(head.head_distance for head in heads) / len(heads)
            for name, heads in self.layers.items()
        }

    def table(self) -> str:
        """One row for each head."""
        headers = (
            *("layer", "tap", "gate", "content share"),
            *("distance: position", "content", "mixed", "content entropy"),
            *("in kernel: content", "mixed", "departure", "from other heads", "pixels"),
        )
        rows = [(h.layer, str(h.tap), *(round(v, 3) for v in astuple(h)[2:])) for h in self.heads]
        return text_table(headers, rows)

    def to_json(self) -> list[dict[str, Any]]:
        """The figures as plain data; None for what there is not."""
        return [
            {
                **asdict(head),
                "head_distance": finite(head.head_distance),
                "content_spread": head.content_spread,
            }
            for head in self.heads
        ]


def heads_report(seen: Capture) -> HeadsReport:
    """Measure every head of the layers that were called, on the images they last saw."""
    heads = []
    for name, x in seen.inputs.items():
        layer, batch = seen.layers[name], len(x) if x.dim() == 4 else 1
        # One image at a time, for maps can be large.
        parts = [
            _figures(layer, seen.attention(name, slice(image, image + 1))) for image in range(batch)
        ]
        figures = {key: torch.stack([part[key] for part in parts]).mean(dim=0) for key in parts[0]}
        figures |= {"gate": layer.gate, "content_share": layer.content_share}
        for head in range(layer.heads):
            heads.append(
                HeadFigures(
                    layer=name,
                    tap=divmod(head, layer.kernel_size[1]),
                    pixels=x.shape[-2:].numel(),
                    **{key: values[head].item() for key, values in figures.items()},
                )
            )
    return HeadsReport(tuple(heads))


def _figures(layer: GPSA2d, maps: AttentionMaps) -> dict[str, Tensor]:
    """Figures of each head on one image, (heads,)."""
    geometry, mode, stride = layer.geometry, layer.padding_mode, layer.stride
    size = (maps.content.shape[-2], maps.content.shape[-1])
    rows, columns = geometry.anchors(size, maps.content.device)
    first = int(rows[0]), int(columns[0])
    position, content, mixed = maps.position.float(), maps.content[0].float(), maps.mixed[0].float()
    others = measures.head_distances(mixed).sum(dim=-1)
    return {
        "position_distance": measures.attention_distance(position, stride, first),
        "content_distance": measures.attention_distance(content, stride, first),
        "attention_distance": measures.attention_distance(mixed, stride, first),
        "content_entropy": measures.attention_entropy(content),
        "content_window_share": measures.kernel_window_share(content, geometry, mode),
        "window_share": measures.kernel_window_share(mixed, geometry, mode),
        "departure": measures.departure(mixed, geometry, mode),
        "head_distance": others / (layer.heads - 1) if layer.heads > 1 else others * torch.nan,
    }
