"""What one recast layer costs beside its convolution: time and memory, by grid.

    python benchmarks/layer.py --json benchmarks/results/layer.json

A 3×3 convolution and the layers recast from it, gates 0.7, take turns; figures are medians with
quartiles, ratios are taken pair by pair. "dense" is the layer with one matrix of queries and keys
for each head and the kernel as output matrix, whatever the grid. Memory is the most that a call
holds beyond what was there before it, added up from the allocations that torch.profiler records.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import tcnn
from tcnn import content
from tcnn.provenance import provenance
from tcnn.tables import text_table

# Side of the grid, channels, images.
GRIDS = ((7, 512, 8), (14, 256, 8), (28, 128, 4), (56, 64, 2))
DENSE_BYTES = 2e9  # a matrix beyond this is left out
Call = Callable[[Tensor], Tensor]


class Dense(nn.Module):
    """The layer on its dense path, of any size."""

    def __init__(self, layer: tcnn.GPSA2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with mock.patch.object(content, "choose_path", lambda **_: "dense"):
            y: Tensor = self.layer(x)
        return y


def modules(side: int, channels: int, batch: int) -> dict[str, nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, padding=1)

    def layer(**options: Any) -> tcnn.GPSA2d:
        return tcnn.GPSA2d.from_conv2d(conv, tcnn.GPSAConfig(gate_init=0.7, **options))

    found: dict[str, nn.Module] = {"convolution": conv, "layer": layer()}
    if 4 * batch * 9 * side**4 <= DENSE_BYTES:
        found["dense"] = Dense(layer())
    return found | {"window=7": layer(window=7), "learned positions": layer(positions="learned")}


def forward(module: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        module(x)


def step(module: nn.Module, x: Tensor) -> None:
    module.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    module(x).square().mean().backward()


def peak_mib(call: Callable[[], object]) -> float:
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events: Any = record.profiler.kineto_results.events()
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def measure(side: int, channels: int, batch: int, runs: int) -> list[dict[str, Any]]:
    x = torch.randn(batch, channels, side, side)
    found = modules(side, channels, batch)
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(runs + 1):
        for name, module in found.items():
            for kind, call in (("forward", forward), ("step", step)):
                start = time.perf_counter()
                call(module, x)
                if turn:
                    times.setdefault((name, kind), []).append(time.perf_counter() - start)
    rows = []
    for name, module in found.items():
        row: dict[str, Any] = {"side": side, "channels": channels, "batch": batch, "name": name}
        for kind, call in (("forward", forward), ("step", step)):
            mine, base = times[name, kind], times["convolution", kind]
            low, middle, high = statistics.quantiles(
                [a / b for a, b in zip(mine, base, strict=True)], n=4
            )
            row[kind] = {
                "median_ms": statistics.median(mine) * 1e3,
                "ratio": middle,
                "ratio_quartiles": [low, high],
                "peak_mib": peak_mib(lambda m=module, c=call: c(m, x)),
            }
        rows.append(row)
    return rows


def best(call: Callable[[], object], runs: int = 10) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def rates() -> dict[str, float]:
    """Matrix product and copy at their best, in 10⁹ operations and 10⁹ bytes a second."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    large, other = torch.randn(32 * 2**20), torch.empty(32 * 2**20)
    return {
        "matrix_gflops": 2 * 1024**3 / best(lambda: a @ b) / 1e9,
        "copy_gbytes": 2 * 4 * large.numel() / best(lambda: other.copy_(large)) / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results: dict[str, Any] = {
        "command": f"python benchmarks/layer.py --runs {args.runs} --threads {args.threads}",
        "rates": rates(),
        "rows": [row for grid in GRIDS for row in measure(*grid, args.runs)],
    }
    print(
        "matrix product {matrix_gflops:.0f} GFLOP/s, copy {copy_gbytes:.1f} GB/s".format(
            **results["rates"]
        )
    )
    headers = ("grid", "layer", "forward ms", "x conv", "quartiles", "MiB")
    headers += ("step ms", "x conv", "quartiles", "MiB")
    table = []
    for row in results["rows"]:
        cells = [f"{row['side']}x{row['side']}, {row['channels']}, {row['batch']}", row["name"]]
        for kind in ("forward", "step"):
            r = row[kind]
            cells += [f"{r['median_ms']:.1f}", f"{r['ratio']:.2f}"]
            cells += ["{:.2f} to {:.2f}".format(*r["ratio_quartiles"]), f"{r['peak_mib']:.1f}"]
        table.append(cells)
    print(text_table(headers, table))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**results, **provenance()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
