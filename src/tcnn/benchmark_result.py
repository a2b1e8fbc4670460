"""What networks cost beside the first of them: figures by image size and kind of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tcnn.tables import markdown_table, text_table
from tcnn.timing import Spread, Timing

Row = tuple[str | int | float | None, ...]
_HEADERS = ("pixels", "work", "network", "ms", "quartiles", "ratio", "quartiles", "images/s",
            "peak MiB", "ratio")  # fmt: skip


@dataclass(frozen=True)
class NetworkCost:
    """One network at one kind of work, on one batch.

    Attributes:
        network: its name.
        size: (C, H, W) of an image.
        work: "forward" (eval mode, no gradients), "forward and backward" (training mode), or
            "training step" (the optimiser's step as well).
        batch: images.
        timing: seconds of a batch, and those of the first network.
        peak_bytes: tensors held at the most, beyond the network and its optimiser's state.
        base_peak_bytes: those of the first network.
    """

    network: str
    size: tuple[int, int, int]
    work: str
    batch: int
    timing: Timing
    peak_bytes: int
    base_peak_bytes: int

    @property
    def images_per_second(self) -> float:
        """Of the median batch."""
        return self.batch / self.timing.spread.median

    @property
    def peak_ratio(self) -> float:
        """Peak memory over the first network's."""
        return self.peak_bytes / self.base_peak_bytes

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "network": self.network,
            "size": list(self.size),
            "work": self.work,
            **self.timing.to_json(),
            "images_per_second": self.images_per_second,
            "peak_mib": self.peak_bytes / 2**20,
            "peak_ratio": self.peak_ratio,
        }


@dataclass(frozen=True)
class BenchmarkResult:
    """Networks that took turns, each held against the first.

    Attributes:
        costs: by size, then work, then network.
        runs: rounds that each figure is the median of.
        device: "cpu", or the name of the GPU.
        options: what was asked for besides: arithmetic, memory format, compilation.
        provenance: versions and hardware.
    """

    costs: tuple[NetworkCost, ...]
    runs: int
    device: str
    options: tuple[str, ...]
    provenance: dict[str, Any]

    def cost(self, network: str, work: str, size: tuple[int, int, int]) -> NetworkCost:
        """The figures of one network, work and size."""
        for cost in self.costs:
            if (cost.network, cost.work, cost.size) == (network, work, size):
                return cost
        raise KeyError((network, work, size))

    def table(self) -> str:
        """The figures, and what they were made with."""
        return f"{text_table(_HEADERS, self._rows())}\n\n{self.made_with()}"

    def markdown(self) -> str:
        """The same as Markdown."""
        return f"{markdown_table(_HEADERS, self._rows())}\n\n{self.made_with()}"

    def made_with(self) -> str:
        """How the figures came about, in a paragraph."""
        hardware, versions = self.provenance["hardware"], self.provenance["versions"]
        where = self.device
        if where == "cpu":
            where = f"{hardware['processor']}, {hardware['threads']} threads"
        return (
            f"Batch {self.costs[0].batch}, {', '.join(self.options)}; {where}; "
            f"torch {versions['torch']}. Medians of {self.runs} alternating runs; ratios to the "
            "first network round by round; peak memory beyond weights and optimiser."
        )

    def to_json(self) -> dict[str, Any]:
        """The result as plain data, with versions and hardware."""
        return {
            "runs": self.runs,
            "batch": self.costs[0].batch,
            "device": self.device,
            "options": list(self.options),
            "costs": [cost.to_json() for cost in self.costs],
            **self.provenance,
        }

    def _rows(self) -> Sequence[Row]:
        return [
            (
                f"{cost.size[1]}×{cost.size[2]}",
                cost.work,
                cost.network,
                f"{1e3 * cost.timing.spread.median:.1f}",
                between(cost.timing.spread, 1e3, 1),
                f"{cost.timing.ratio.median:.3f}",
                between(cost.timing.ratio, 1, 3),
                f"{cost.images_per_second:.1f}",
                f"{cost.peak_bytes / 2**20:.1f}",
                f"{cost.peak_ratio:.3f}",
            )
            for cost in self.costs
        ]


def between(spread: Spread, factor: float, digits: int) -> str:
    """Quartiles for people."""
    return f"{factor * spread.low:.{digits}f} to {factor * spread.high:.{digits}f}"
