"""Every head of a captured hybrid in figures."""

from __future__ import annotations

import math
from dataclasses import asdict, astuple, dataclass
from typing import Any

from tcnn.analysis import measures
from tcnn.analysis.capture import Capture
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
    pixels: int

    @property
    def content_spread(self) -> float:
        """exp(entropy) / pixels: how much of the image content attention covers; 1 is all."""
        return math.exp(self.content_entropy) / self.pixels


@dataclass(frozen=True)
class HeadsReport:
    """The heads of a hybrid, layer by layer."""

    heads: tuple[HeadFigures, ...]

    def table(self) -> str:
        """One row for each head."""
        headers = ("layer", "tap", "gate", "content share")
        measured = ("distance: position", "content", "mixed", "content entropy", "pixels")
        return text_table(
            (*headers, *measured),
            [(h.layer, str(h.tap), *(round(v, 3) for v in astuple(h)[2:])) for h in self.heads],
        )

    def to_json(self) -> list[dict[str, Any]]:
        """The figures as plain data."""
        return [{**asdict(head), "content_spread": head.content_spread} for head in self.heads]


def heads_report(seen: Capture) -> HeadsReport:
    """Measure every head of the layers that were called, on the images they last saw."""
    heads = []
    for name in seen.inputs:
        layer, maps = seen.layers[name], seen.attention(name)
        content = measures.attention_distance(maps.content, layer.stride)
        figures = {
            "gate": maps.gate,
            "content_share": measures.content_share(maps.gate),
            "position_distance": measures.attention_distance(maps.position, layer.stride),
            "content_distance": content.mean(dim=0),
            "attention_distance": measures.attention_distance(maps.mixed, layer.stride).mean(dim=0),
            "content_entropy": measures.attention_entropy(maps.content).mean(dim=0),
        }
        for head in range(layer.heads):
            heads.append(
                HeadFigures(
                    layer=name,
                    tap=divmod(head, layer.kernel_size[1]),
                    pixels=maps.content.shape[-2:].numel(),
                    **{key: values[head].item() for key, values in figures.items()},
                )
            )
    return HeadsReport(tuple(heads))
