"""What recasting a network costs: the surgery itself, and the hybrid's forward beside the CNN's.

    python benchmarks/recast.py --model timm:resnet50 --json benchmarks/results/recast_resnet50.json

The networks take turns, so that a drift of the machine's speed meets them alike; figures are
medians with quartiles, and ratios are taken pair by pair. "Gates open" runs every head's content
attention (gate 0.7); "training step" is forward and backward, where a shut gate is trained too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tcnn
from tcnn.provenance import provenance
from tcnn.tables import text_table


def seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(
    calls: dict[str, Callable[[], object]], runs: int, device: torch.device
) -> dict[str, list[float]]:
    """Times of each call, taken in turn, after two uncounted rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(runs + 2):
        for name, call in calls.items():
            elapsed = seconds(call, device)
            if turn >= 2:
                times[name].append(elapsed)
    return times


def forward(model: nn.Module, images: Tensor, bf16: bool) -> Callable[[], object]:
    def call() -> None:
        model.eval()
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, bf16):
            model(images)

    return call


def step(model: nn.Module, images: Tensor, bf16: bool) -> Callable[[], object]:
    def call() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, bf16):
            y = model(images)
        y.float().square().mean().backward()

    return call


def compare(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each call: its time, and its ratio to the first."""
    base = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "name": name,
                "median_ms": statistics.median(values) * 1e3,
                "ratio": middle,
                "ratio_quartiles": [low, high],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="timm:resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--bf16", action="store_true", help="autocast, kernels channels last")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = (3, args.size, args.size)
    cnn = tcnn.load_model(args.model).to(device)
    surgery = [seconds(lambda: tcnn.recast(cnn, input_size=size), device) for _ in range(5)]
    shut = tcnn.recast(cnn, input_size=size)
    opened, likeness = (
        tcnn.recast(cnn, config=tcnn.GPSAConfig(gate_init=0.7, content=content), input_size=size)
        for content in ("dot", "cosine")
    )
    images = torch.randn(args.batch, *size, device=device)
    report = tcnn.check_equivalence(cnn, shut, images)
    if not report.ok:
        raise SystemExit(report.table())

    networks = {
        "CNN": cnn,
        "hybrid, gates shut": shut,
        "hybrid, gates open": opened,
        "hybrid, gates open, cosine": likeness,
    }
    if args.bf16:
        for model in networks.values():
            model.to(memory_format=torch.channels_last)
    kinds = {"forward": forward, "training step": step}
    results = {
        "command": f"python benchmarks/recast.py --model {args.model} --size {args.size} "
        f"--batch {args.batch} --runs {args.runs}{' --bf16' if args.bf16 else ''}",
        "recast_seconds": statistics.median(surgery),
        **{
            kind: compare(
                alternate(
                    {n: call(m, images, args.bf16) for n, m in networks.items()}, args.runs, device
                )
            )
            for kind, call in kinds.items()
        },
    }
    print(
        f"{args.model} at {args.size} px, batch {args.batch}, {device.type}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"recast: {results['recast_seconds']:.2f} s (median of 5)")
    for kind in kinds:
        print(f"\n{kind}")
        rows = [
            (
                r["name"],
                f"{r['median_ms']:.1f}",
                f"{r['ratio']:.3f}",
                "{:.3f} to {:.3f}".format(*r["ratio_quartiles"]),
            )
            for r in results[kind]
        ]
        print(text_table(("network", "median ms", "x CNN", "quartiles"), rows))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**results, **provenance()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
