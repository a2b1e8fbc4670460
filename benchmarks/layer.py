"""What one recast layer costs beside its convolution and other attention layers: time and memory.

    python benchmarks/layer.py --json benchmarks/results/layer.json

A 3×3 convolution, the layers recast from it (gates 0.7), the T-CNN layer with dense matrices, and
timm's ConViT GPSA and BottleneckAttn of the same width take turns. Figures are medians with
quartiles, ratios to the convolution are taken round by round. The floor is the time that the
operations and bytes which a layer cannot do without take at the rates of this machine, measured in
the same run; "x floor" is how far the layer is above it. Memory is the most that a call holds
beyond what was there before it. "learned positions alone" has its gates shut and frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from contenders import Contender, Field, Grid, contend
from output import arguments, device, show, start, write
from tcnn.timing import Rates, alternate, peak_memory

GRIDS = (
    Grid(7, 512, 8),
    Grid(14, 256, 8),
    Grid(28, 128, 4),
    Grid(56, 64, 1),
    Grid(112, 64, 1),
)
WORKS = ("forward", "forward and backward")
HEADERS = ("grid, C, batch", "layer", "ms", "x conv", "quartiles", "floor ms", "x floor", "MiB")


def work_of(entry: Contender, work: str, bf16: bool) -> Callable[[], object]:
    """A call that does the work on the contender's input."""
    where = entry.x.device.type

    def forward() -> None:
        # Not inference mode: what a peer caches in it cannot be trained with afterwards.
        with torch.no_grad(), torch.autocast(where, torch.bfloat16, bf16):
            entry.module(entry.x)

    def forward_and_backward() -> None:
        x = entry.x.detach().requires_grad_()
        with torch.autocast(where, torch.bfloat16, bf16):
            y = entry.module(x)
        y.float().square().mean().backward()
        entry.module.zero_grad()

    return forward if work == "forward" else forward_and_backward


def measure(
    field: Field, grid: Grid, work: str, runs: int, rates: Rates, bf16: bool
) -> list[dict[str, Any]]:
    """A row for each contender, and for each that is left out."""
    calls = {name: work_of(entry, work, bf16) for name, entry in field.entries.items()}
    times = alternate(calls, runs, device())
    rows: list[dict[str, Any]] = []
    place = {"side": grid.side, "channels": grid.channels, "batch": grid.batch, "work": work}
    for name, entry in field.entries.items():
        floor = entry.floor(rates, work != "forward")
        timing = times[name]
        rows.append(
            {
                **place,
                "name": name,
                **timing.to_json(),
                "operations": entry.operations * (1 if work == "forward" else 3),
                "bytes": entry.bytes(work != "forward"),
                "floor_ms": floor * 1e3,
                "over_floor": timing.spread.median / floor,
                "peak_mib": peak_memory(calls[name], device()) / 2**20,
            }
        )
    return rows + [{**place, "name": name, "left_out": why} for name, why in field.left_out.items()]


def cells(row: dict[str, Any]) -> tuple[Any, ...]:
    place = str(Grid(row["side"], row["channels"], row["batch"]))
    if "left_out" in row:
        return (place, row["name"], f"left out: {row['left_out']}", *[None] * 5)
    low, high = row["ratio_quartiles"]
    return (
        place,
        row["name"],
        f"{row['median_ms']:.2f}",
        f"{row['ratio']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{row['floor_ms']:.2f}",
        f"{row['over_floor']:.2f}",
        f"{row['peak_mib']:.1f}",
    )


def main() -> None:
    parser = arguments(__doc__, runs=9)
    parser.add_argument("--sides", type=int, nargs="+", help="of the grids; all, or 7 14 28")
    parser.add_argument("--batch", type=int, help="images; 8, 8, 4, 1, 1 from the smallest grid on")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--channels_last", action="store_true")
    args = start(parser)
    sides = args.sides or [grid.side for grid in GRIDS if not args.short or grid.side <= 28]
    rates = Rates.measure(device(), torch.bfloat16 if args.bf16 else torch.float32)
    rows: list[dict[str, Any]] = []
    for grid in GRIDS:
        if grid.side not in sides:
            continue
        if args.batch:
            grid = Grid(grid.side, grid.channels, args.batch)
        field = contend(grid, rates, device(), args.channels_last)
        runs = args.runs if grid.side < 56 else max(3, args.runs // 3)
        for work in WORKS:
            print(f"{grid}: {work}", flush=True)
            rows += measure(field, grid, work, runs, rates, args.bf16)
    print(
        f"\nmatrix product {rates.matrix_flops / 1e9:.0f} GFLOP/s, "
        f"copy {rates.copy_bytes / 1e9:.1f} GB/s, {args.threads} threads"
    )
    for work in WORKS:
        print(f"\n{work}")
        show(args, HEADERS, [cells(row) for row in rows if row["work"] == work])
    write(args, {"rates": rates.to_json(), "rows": rows})


if __name__ == "__main__":
    main()
