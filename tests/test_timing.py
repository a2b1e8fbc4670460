"""Times, memory and floors against a clock of our own, known allocations and hand numbers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
import torch

from tcnn import timing
from tcnn.timing import Rates, Spread, Timing, alternate, elapsed_seconds, peak_memory, threads

MIB = 2**20


class Clock:
    """Time that passes only when a call says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.log: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.log.append("wait"))

    def call(self, name: str, seconds: list[float]) -> Callable[[], None]:
        left = iter(seconds)

        def run() -> None:
            self.log.append(name)
            self.now += next(left)

        return run


def test_turns_and_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {
        "a": clock.call("a", [100, 100, 1, 2, 4, 8]),  # the machine gets slower and slower
        "b": clock.call("b", [999, 999, 3, 6, 12, 24]),
    }
    found = alternate(calls, 4)
    assert "".join(clock.log) == "abbaabbaabba"
    assert found["a"].seconds == (1, 2, 4, 8)
    assert found["b"].seconds == (3, 6, 12, 24)
    assert found["a"].ratio == Spread(1, 1, 1)
    assert found["b"].ratio == Spread(3, 3, 3)
    assert found["b"].spread.median == 9


def test_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = alternate({"a": clock.call("a", [1] * 8)}, 3, torch.device("cuda"))
    assert clock.log == ["wait", "a", "wait"] * (5 + 3)
    assert found["a"].seconds == (1, 1, 1)


def test_quartiles_by_hand() -> None:
    assert Spread.of([5, 1, 3]) == Spread(3, 1, 5)
    assert Spread.of([7, 1, 2, 3, 4, 5, 6]) == Spread(4, 2, 6)
    found = Timing((0.002, 0.004, 0.006), (0.001, 0.001, 0.004)).to_json()
    assert found == {
        "median_ms": pytest.approx(4),
        "quartiles_ms": pytest.approx([2, 6]),
        "ratio": pytest.approx(2),
        "ratio_quartiles": pytest.approx([1.5, 4]),
    }


def test_too_few_runs() -> None:
    with pytest.raises(ValueError, match="Expected `runs` to be a whole number from 3 up"):
        alternate({"a": int}, 2)


def test_seconds_are_seconds() -> None:
    assert 0.02 <= elapsed_seconds(lambda: time.sleep(0.02)) < 0.5


def test_peak_of_known_allocations(capfd: pytest.CaptureFixture[str]) -> None:
    def call() -> torch.Tensor:
        a = torch.empty(MIB)  # 4 MiB
        b = torch.empty(2 * MIB)  # 12 MiB now
        del a
        c = torch.empty(MIB // 2)  # 10 MiB
        return b[:1] + c[:1]

    assert peak_memory(call) == pytest.approx(12 * MIB, abs=1000)
    assert peak_memory(lambda: None) == 0
    assert capfd.readouterr().err == ""


def test_what_is_kept_from_the_first_run_is_no_cost() -> None:
    kept: list[torch.Tensor] = []

    def call() -> None:
        if not kept:
            kept.append(torch.empty(MIB))

    assert peak_memory(call) == 0


def test_peak_of_matrices_in_a_row() -> None:
    x = torch.randn(256, 256)  # 256 KiB, there before

    def call() -> torch.Tensor:
        return x @ x @ x @ x

    assert peak_memory(call) == pytest.approx(2 * 256 * 1024, rel=0.01)


def test_peak_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: log.append("from here")
    )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 175)
    assert peak_memory(lambda: log.append("call"), torch.device("cuda")) == 75
    assert log == ["call", "wait", "from here", "call", "wait"]


def test_errors_come_through_and_stderr_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    runs = iter([None, RuntimeError("broken")])

    def call() -> None:
        if error := next(runs):
            raise error

    with pytest.raises(RuntimeError, match="broken"):
        peak_memory(call)
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"


def test_floor_is_the_larger_of_the_two_times() -> None:
    rates = Rates(matrix_flops=100e9, copy_bytes=20e9)
    assert rates.floor(1e9, 1e6) == pytest.approx(0.01)  # 10 ms of products, 0.05 ms of copies
    assert rates.floor(1e9, 1e9) == pytest.approx(0.05)
    assert rates.to_json() == {"matrix_flops": 100e9, "copy_bytes": 20e9}


def test_rates_from_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    product, convolution, copied = [0.5, 0.1, 0.2], [0.3, 0.4, 0.05], [0.9, 0.4, 0.8]
    seconds = iter([*product, *convolution, *copied])

    def elapsed(call: Callable[[], object], device: torch.device) -> float:
        call()
        return next(seconds)

    monkeypatch.setattr(timing, "elapsed_seconds", elapsed)
    rates = Rates.measure(runs=3)
    expected = max(2 * 1024**3 / 0.1, 2 * 9 * 256 * 256 * 14 * 14 * 8 / 0.05)
    assert rates.matrix_flops == pytest.approx(expected)
    assert rates.copy_bytes == pytest.approx(2 * 128 * MIB / 0.4)


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
    with threads(None):
        assert torch.get_num_threads() == before
