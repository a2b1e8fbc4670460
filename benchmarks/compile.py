"""What `torch.compile` makes of a recast layer and of a hybrid: breaks, recompilations, time.

    python benchmarks/compile.py --json benchmarks/results/compile.json

Graph breaks are those that `torch._dynamo.explain` counts, recompilations the graphs that are made
beyond the first while five sizes of input pass through (dynamic shapes from the second on). Times
are of alternating runs on one size, compiled for it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.exc import InductorError

import tcnn
from output import arguments, device, show, start, write
from tcnn.benchmark import OPEN_GATE
from tcnn.timing import alternate

LAYER_SIDES = (7, 9, 14, 20, 28)
IMAGE_SIDES = (160, 192, 224, 256, 288)


def forward(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> None:
        with torch.inference_mode():
            module(x)

    return call


def training(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> None:
        module(x).square().mean().backward()
        module.zero_grad()

    return call


def measure(
    name: str, module: nn.Module, inputs: Sequence[Tensor], middle: int, runs: int
) -> list[dict[str, Any]]:
    """A row for inference and one for training: graph breaks, recompilations over all inputs, and
    times on the one in the middle, compiled for it alone."""
    rows = []
    for work, call in (("forward", forward), ("forward and backward", training)):
        module.train(work != "forward")
        print(f"{name}: {work}", flush=True)
        torch._dynamo.reset()
        with torch.set_grad_enabled(module.training):
            breaks = torch._dynamo.explain(module)(inputs[0]).graph_break_count
        recompilations = over_sizes(call, module, inputs)
        x = inputs[middle]
        torch._dynamo.reset()
        compiled = call(torch.compile(module, dynamic=False), x)
        times = alternate({"eager": call(module, x), "compiled": compiled}, runs, device())
        rows.append(
            {
                "name": name,
                "work": work,
                "graph_breaks": breaks,
                "recompilations": recompilations,
                "input": list(x.shape),
                "eager_ms": times["eager"].spread.median * 1e3,
                **times["compiled"].to_json(),
            }
        )
    return rows


def over_sizes(
    call: Callable[[nn.Module, Tensor], Callable[[], object]],
    module: nn.Module,
    inputs: Sequence[Tensor],
) -> int | str:
    """Graphs beyond the first that all inputs take, or the error that compiling ends in."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(module)
    for x in inputs:
        try:
            call(compiled, x)()
        except InductorError as error:
            said = " ".join(str(error).split("\n\n")[0].split())
            return f"fails at {x.shape[-2]}×{x.shape[-1]}: {said}"
    return counters["stats"]["unique_graphs"] - 1


def main() -> None:
    parser = arguments(__doc__, runs=9)
    parser.add_argument("--model", default="timm:resnet50")
    parser.add_argument("--batch", type=int, default=2)
    args = start(parser)
    config = tcnn.GPSAConfig(gate_init=OPEN_GATE)
    layer = tcnn.GPSA2d(128, 128, 3, padding=1, config=config).to(device())
    inputs = [torch.randn(args.batch, 128, side, side, device=device()) for side in LAYER_SIDES]
    rows = measure("GPSA2d, 128 channels", layer, inputs, 2, args.runs)
    if not args.short:
        hybrid = tcnn.recast(tcnn.load_model(args.model), config=config).to(device())
        images = [torch.randn(args.batch, 3, side, side, device=device()) for side in IMAGE_SIDES]
        rows += measure(f"{args.model}, hybrid", hybrid, images, 2, args.runs)
    headers = ("network", "work", "graph breaks", "recompilations", "input",
               "eager ms", "compiled ms", "ratio", "quartiles")  # fmt: skip
    print()
    show(
        args,
        headers,
        [
            (
                row["name"],
                row["work"],
                row["graph_breaks"],
                row["recompilations"],
                "×".join(map(str, row["input"])),
                f"{row['eager_ms']:.2f}",
                f"{row['median_ms']:.2f}",
                f"{row['ratio']:.3f}",
                "{:.3f} to {:.3f}".format(*row["ratio_quartiles"]),
            )
            for row in rows
        ],
    )
    write(args, {"rows": rows})


if __name__ == "__main__":
    main()
