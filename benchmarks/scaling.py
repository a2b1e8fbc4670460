"""How the cost of attention grows with the image: networks by resolution, layers by grid.

    python benchmarks/scaling.py --json benchmarks/results/scaling.json \
        --picture docs/images/scaling.png

Networks: a CNN beside its default targets recast, gates 0.7, with content from the whole image, a
window, and pooled keys. Layers: those of `layer.py`, here of one width (64) on every grid, one
image, forward. Last, what a pixel costs in a layer with a window, in small images and in large.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import tcnn
from contenders import KEY_STRIDE, WINDOW, Contender, Grid, contend
from layer import work_of
from output import arguments, device, show, start, write
from tcnn.benchmark import OPEN_GATE, benchmark
from tcnn.benchmark_result import BenchmarkResult
from tcnn.timing import Rates, alternate

CHANNELS = 64
SIDES = (7, 14, 28, 56, 112)
WINDOWED_SIDES = (28, 56, 112)
# Name → colour, marker and dashes. Okabe and Ito's colours for what the package offers, which
# people with any colour vision can tell apart; what it is held against is grey and dashed.
STYLES = {
    "convolution": ("#000000", "o", "-"),
    "layer": ("#D55E00", "s", "-"),
    "learned positions": ("#E69F00", "v", "-"),
    "learned positions alone": ("#56B4E9", "^", "-"),
    "window=7": ("#0072B2", "D", "-"),
    "key_stride=4": ("#009E73", "P", "-"),
    "dense T-CNN": ("#777777", "x", "--"),
    "ConViT GPSA": ("#777777", "+", ":"),
    "BottleneckAttn": ("#777777", "1", "-."),
}


def networks(model: str, sizes: Sequence[int], runs: int) -> BenchmarkResult:
    """A CNN and its hybrids with open gates, one image of each size."""
    cnn = tcnn.load_model(model)
    options: dict[str, dict[str, Any]] = {
        "whole image": {},
        f"window={WINDOW}": {"window": WINDOW},
        f"key_stride={KEY_STRIDE}": {"key_stride": KEY_STRIDE},
    }
    hybrids = {
        name: tcnn.recast(cnn, config=tcnn.GPSAConfig(gate_init=OPEN_GATE, **option))
        for name, option in options.items()
    }
    images = [(3, size, size) for size in sizes]
    return benchmark({"CNN": cnn, **hybrids}, images, batch=1, runs=runs, say=print)


def layers(sides: Sequence[int], runs: int, rates: Rates) -> list[dict[str, Any]]:
    """Milliseconds of each layer on one image of each grid, forward."""
    rows: list[dict[str, Any]] = []
    for side in sides:
        grid = Grid(side, CHANNELS, 1)
        print(f"{grid}: forward", flush=True)
        field = contend(grid, rates, device())
        calls = {name: work_of(entry, "forward", False) for name, entry in field.entries.items()}
        for name, timing in alternate(calls, runs, device()).items():
            row = {"side": side, "tokens": grid.tokens, "name": name, **timing.to_json()}
            rows.append({**row, "floor_ms": field.entries[name].floor(rates, False) * 1e3})
        rows += [
            {"side": side, "tokens": grid.tokens, "name": name, "left_out": why}
            for name, why in field.left_out.items()
        ]
    return rows


def per_pixel(sides: Sequence[int], runs: int) -> list[dict[str, Any]]:
    """Time of a layer with a window on the same number of pixels, in small images and in large."""
    config = tcnn.GPSAConfig(gate_init=OPEN_GATE, window=WINDOW)
    layer = tcnn.GPSA2d(CHANNELS, CHANNELS, 3, padding=1, config=config).to(device())
    rows = []
    for work in ("forward", "forward and backward"):
        calls = {}
        for side in sides:
            batch = (max(sides) // side) ** 2
            x = torch.randn(batch, CHANNELS, side, side, device=device())
            calls[f"{side}×{side}"] = work_of(Contender(layer, x, 0.0), work, False)
        rows += [
            {"grid": name, "work": work, **timing.to_json()}
            for name, timing in alternate(calls, runs, device()).items()
        ]
    return rows


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Milliseconds against tokens, both logarithmic, a line for each layer."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    axes = figure.add_subplot()
    for name, (colour, marker, dashes) in STYLES.items():
        mine = [row for row in rows if row["name"] == name and "left_out" not in row]
        axes.plot(
            [row["tokens"] for row in mine], [row["median_ms"] for row in mine], dashes,
            color=colour, marker=marker, markersize=7, markeredgewidth=1.5, lw=1.8, label=name,
        )  # fmt: skip
    tokens = sorted({row["tokens"] for row in rows})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(tokens, [f"{round(n**0.5)}²" for n in tokens])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("tokens (pixels of the grid)")
    axes.set_ylabel("milliseconds an image, forward")
    axes.set_title(f"One layer of {CHANNELS} channels, 3×3 kernel, gates {OPEN_GATE}", fontsize=11)
    axes.grid(color="#DDDDDD", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = arguments(__doc__, runs=5)
    parser.add_argument("--model", default="timm:resnet50")
    parser.add_argument("--sizes", type=int, nargs="+", help="pixels; 224 448 896, or 224 448")
    parser.add_argument("--picture", type=Path, help="PNG of cost against tokens")
    args = start(parser)
    sizes = args.sizes or ([224, 448] if args.short else [224, 448, 896])
    sides = SIDES[:-1] if args.short else SIDES
    windowed = WINDOWED_SIDES[:-1] if args.short else WINDOWED_SIDES

    rates = Rates.measure(device())
    by_layer = layers(sides, args.runs, rates)
    pixels = per_pixel(windowed, args.runs)
    by_size = networks(args.model, sizes, args.runs)

    print(f"\nOne layer of {CHANNELS} channels, forward, milliseconds an image")
    names = list(STYLES)
    found = {(row["name"], row["side"]): row.get("median_ms") for row in by_layer}
    cells = [
        [name, *(None if (ms := found[name, s]) is None else f"{ms:.2f}" for s in sides)]
        for name in names
    ]
    show(args, ["layer", *(f"{side}×{side}" for side in sides)], cells)
    for row in by_layer:
        if "left_out" in row:
            print(f"{row['side']}×{row['side']}: {row['name']} left out: {row['left_out']}")
    print(f"\nOne pixel in a layer with window={WINDOW}, as many pixels in all")
    show(
        args,
        ["work", "grid", "ms", f"x {windowed[0]}×{windowed[0]}", "quartiles"],
        [
            (
                row["work"],
                row["grid"],
                f"{row['median_ms']:.2f}",
                f"{row['ratio']:.2f}",
                "{:.2f} to {:.2f}".format(*row["ratio_quartiles"]),
            )
            for row in pixels
        ],
    )
    print(f"\n{args.model}, one image\n")
    print(by_size.markdown() if args.markdown else by_size.table())
    if args.picture:
        draw(by_layer, args.picture)
    write(
        args,
        {
            "rates": rates.to_json(),
            "layers": by_layer,
            "window_by_pixel": pixels,
            "networks": by_size.to_json()["costs"],
        },
    )


if __name__ == "__main__":
    main()
