"""What recasting a network costs: the surgery itself, and the hybrid beside the CNN.

    python benchmarks/model.py --json benchmarks/results/recast_resnet50.json

The networks take turns (`tcnn.benchmark`): the CNN, and the default targets recast with every gate
shut, with every gate open (0.7), and with open gates and cosine content. "Forward and backward"
trains a shut gate too; "training step" has the optimiser's step as well, after which it is open.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

import tcnn
from output import arguments, device, start, write
from tcnn.benchmark import OPEN_GATE, benchmark
from tcnn.benchmark_result import BenchmarkResult
from tcnn.timing import elapsed_seconds


def by_work(result: BenchmarkResult) -> dict[str, list[dict[str, Any]]]:
    """The rows of each kind of work, named."""
    works: dict[str, list[dict[str, Any]]] = {}
    for cost in result.costs:
        row = cost.to_json()
        works.setdefault(row.pop("work"), []).append({"name": row.pop("network"), **row})
    return works


def main() -> None:
    parser = arguments(__doc__, runs=15)
    parser.add_argument("--model", default="timm:resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--channels_last", action="store_true")
    args = start(parser)
    size = (3, args.size, args.size)
    cnn = tcnn.load_model(args.model).to(device())
    surgery = [elapsed_seconds(lambda: tcnn.recast(cnn, input_size=size)) for _ in range(5)]
    shut = tcnn.recast(cnn, input_size=size)
    opened, likeness = (
        tcnn.recast(cnn, None, tcnn.GPSAConfig(gate_init=OPEN_GATE, content=content), size)
        for content in ("dot", "cosine")
    )
    report = tcnn.check_equivalence(cnn, shut, torch.randn(args.batch, *size))
    if not report.ok:
        raise SystemExit(report.table())
    result = benchmark(
        {
            "CNN": cnn,
            "hybrid, gates shut": shut,
            "hybrid, gates open": opened,
            "hybrid, gates open, cosine": likeness,
        },
        [size],
        batch=args.batch,
        runs=args.runs,
        bf16=args.bf16,
        channels_last=args.channels_last,
        say=print,
    )
    seconds = statistics.median(surgery)
    print(f"\n{args.model} recast in {seconds:.2f} s (median of 5)\n")
    print(result.markdown() if args.markdown else result.table())
    write(args, {"recast_seconds": seconds, "device": result.device, **by_work(result)})


if __name__ == "__main__":
    main()
