"""`InferenceConfig` and `RobustnessConfig`: what a test runs on, and what it asks.

In a file without PyTorch, so that the command line's help need not load it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from tcnn.errors import check_option


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """What a test runs on. It changes what comes out only by rounding.

    Raises:
        ValueError: an option is outside its range; the message names it.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device; auto takes GPUs where there are any."""

    devices: int = 1
    """Devices (processes) on each machine; they share the batches."""

    num_nodes: int = 1
    """Machines."""

    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Arithmetic."""

    channels_last: bool = False
    """Keep kernels channel by channel in memory, which many CPUs and GPUs like."""

    batch_size: int = 128
    """Images in a batch."""

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes", "batch_size"):
            value = getattr(self, name)
            check_option(name, value, value >= 1, "a whole number from 1 up")
        for name, known in (
            ("accelerator", ("auto", "cpu", "gpu")),
            ("precision", ("32", "bf16-mixed", "16-mixed")),
        ):
            value = getattr(self, name)
            check_option(name, value, value in known, f"one of {', '.join(known)}")

    @property
    def processes(self) -> int:
        """How many processes share the images."""
        return self.devices * self.num_nodes


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig:
    """What the suites that are made here ask of a network.

    Raises:
        ValueError: an option is outside its range; the message names it.
    """

    seed: int = 0
    """Fixes all randomness of corruptions, shuffles, occlusions and starts of attacks."""

    corruptions: list[str] | None = None
    """Corruptions to make; null is all 19 of them."""

    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    """Their severities."""

    epsilons: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0, 4.0])
    """Sizes of attacks in grey levels (of 255)."""

    pgd_steps: int = 10
    """Steps of an attack by PGD."""

    shuffle_grids: list[int] = field(default_factory=lambda: [2, 4, 8])
    """Patches a side that patch-shuffle puts in a random order."""

    occlusion_grid: int = 8
    """Patches a side that occlusion drops from."""

    occlusion_shares: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])
    """Shares of the patches that occlusion makes black."""

    scales: list[float] = field(default_factory=lambda: [0.5, 0.75, 1.25, 1.5])
    """Sides of the network's input that resolution shows, by its own."""

    def __post_init__(self) -> None:
        check_option("seed", self.seed, self.seed >= 0, "0 or more")
        for name in (
            *("corruptions", "severities", "epsilons"),
            *("shuffle_grids", "occlusion_shares", "scales"),
        ):
            values = getattr(self, name)
            some = values is None or 0 < len(values) == len(set(values))
            check_option(name, values, some, "one or more, each once")
        known = all(severity in (1, 2, 3, 4, 5) for severity in self.severities)
        check_option("severities", self.severities, known, "whole numbers from 1 to 5")
        sizes = all(0 <= size <= 255 for size in self.epsilons)
        check_option("epsilons", self.epsilons, sizes, "grey levels from 0 to 255")
        check_option("pgd_steps", self.pgd_steps, self.pgd_steps >= 1, "1 or more")
        grids = all(grid >= 2 for grid in (*self.shuffle_grids, self.occlusion_grid))
        check_option("shuffle_grids, occlusion_grid", self.shuffle_grids, grids, "2 or more")
        shares = all(0 < share < 1 for share in self.occlusion_shares)
        check_option("occlusion_shares", self.occlusion_shares, shares, "between 0 and 1")
        scales = all(0 < scale < math.inf for scale in self.scales)
        check_option("scales", self.scales, scales, "above 0")
