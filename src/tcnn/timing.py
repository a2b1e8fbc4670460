"""What a call costs: its time, in turns with other calls, its memory, and the machine's floor."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tcnn.errors import check_option

Call = Callable[[], object]
_CPU = torch.device("cpu")
# Uncounted rounds. A GPU's clock rises with work, and cuDNN tries out algorithms first.
_WARM_UP = {"cpu": 2, "cuda": 5}
_FEWEST = 3  # runs that quartiles can be taken of


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a figure that was measured several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of three values or more."""
        low, median, high = statistics.quantiles(values, n=4)
        return cls(median, low, high)


@dataclass(frozen=True)
class Timing:
    """Seconds of a call in each round, and those of the first call in the same rounds.

    Attributes:
        seconds: of the call, in the order of the rounds.
        base: of the call that others are held against.
    """

    seconds: tuple[float, ...]
    base: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """Seconds."""
        return Spread.of(self.seconds)

    @property
    def ratio(self) -> Spread:
        """Seconds over those of the first call, round by round, so that a drift of the machine's
        speed meets both alike."""
        return Spread.of([a / b for a, b in zip(self.seconds, self.base, strict=True)])

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data, times in milliseconds."""
        spread, ratio = self.spread, self.ratio
        return {
            "median_ms": spread.median * 1e3,
            "quartiles_ms": [spread.low * 1e3, spread.high * 1e3],
            "ratio": ratio.median,
            "ratio_quartiles": [ratio.low, ratio.high],
        }


def alternate(
    calls: Mapping[str, Call], runs: int, device: torch.device = _CPU
) -> dict[str, Timing]:
    """Time calls in turns: each once in a round, every other round backwards.

    A GPU is waited for before the clock starts and before it stops. Before the rounds that count
    come two that do not, five on a GPU.

    Args:
        calls: by name; the others are held against the first.
        runs: rounds that count, 3 or more.
        device: where the calls compute.

    Raises:
        ValueError: `runs` is below 3.
    """
    check_option("runs", runs, runs >= _FEWEST, f"a whole number from {_FEWEST} up")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    warm_up = _WARM_UP[device.type]
    for turn in range(warm_up + runs):
        for name in list(calls) if turn % 2 == 0 else reversed(list(calls)):
            elapsed = elapsed_seconds(calls[name], device)
            if turn >= warm_up:
                seconds[name].append(elapsed)
    base = tuple(next(iter(seconds.values())))
    return {name: Timing(tuple(values), base) for name, values in seconds.items()}


def elapsed_seconds(call: Call, device: torch.device = _CPU) -> float:
    """Seconds of one call, until what it started on the device is done."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def peak_memory(call: Call, device: torch.device = _CPU) -> int:
    """The most bytes of tensors that a call holds beyond those that are there before it.

    The call is run twice, for what it keeps from its first run is none of its cost. On a CPU the
    allocations are those that `torch.profiler` records, on a GPU those of PyTorch's allocator.
    """
    call()
    if device.type == "cuda":
        _wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with (
        _silent_stderr(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as record,
    ):
        call()
    kept: Any = record.profiler  # untyped, as its events
    changes = [event for event in kept.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@dataclass(frozen=True)
class Rates:
    """What a machine reaches at its best, in operations and bytes a second.

    Attributes:
        matrix_flops: of a large matrix product or 3×3 convolution, whichever is faster (libraries
            differ), a multiply-add counting as 2.
        copy_bytes: of a large copy, read and written bytes together.
    """

    matrix_flops: float
    copy_bytes: float

    @classmethod
    def measure(
        cls, device: torch.device = _CPU, dtype: torch.dtype = torch.float32, runs: int = 10
    ) -> Rates:
        """The best of some runs on this machine, with as many threads as PyTorch now has."""
        on_gpu = device.type == "cuda"
        side, length = (8192, 2**28) if on_gpu else (1024, 2**25)
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        images = torch.randn(8, 256, 14, 14, device=device).to(dtype)
        kernel = torch.randn(256, 256, 3, 3, device=device).to(dtype)
        source = torch.ones(length, device=device)
        target = torch.empty_like(source)

        def best(call: Call) -> float:
            return min(elapsed_seconds(call, device) for _ in range(runs))

        convolution = 2 * images.numel() * kernel[0].numel()
        return cls(
            matrix_flops=max(
                2 * side**3 / best(lambda: a @ b),
                convolution / best(lambda: torch.conv2d(images, kernel, padding=1)),
            ),
            copy_bytes=2 * 4 * length / best(lambda: target.copy_(source)),
        )

    def floor(self, operations: float, moved: float) -> float:
        """The least seconds for so many operations and so many bytes read and written.

        The larger of the two times, and not their sum: a machine can compute and move at once, so
        only the larger is a bound (the roofline of Williams, Waterman, Patterson 2009, *Roofline:
        an insightful visual performance model*, CACM 52(4)).
        """
        return max(operations / self.matrix_flops, moved / self.copy_bytes)

    def to_json(self) -> dict[str, float]:
        """The rates as plain data."""
        return asdict(self)


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """PyTorch with so many threads inside, with as many as before after; None changes nothing."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Without the lines that the profiler's library writes to the process's own stderr."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
