"""What each kind of gate costs at the start and lets a head do: the figures of docs/method.md.

    python benchmarks/gates.py --json benchmarks/results/gates.json

For each seed a CNN is trained on scikit-learn's digits as in `tcnn demo`, recast with each gate,
compared with the CNN before training, and fine-tuned with one recipe. λ is the starting parameter
of the sigmoid gate, g = σ(λ).
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import tcnn
from tcnn.data import Splits, digits, loader, split
from tcnn.demo import DemoConfig, train
from tcnn.engine import reproducible
from tcnn.evaluate import evaluate
from tcnn.layers import gpsa_layers
from tcnn.provenance import provenance
from tcnn.tables import text_table

GATES = {
    "linear": tcnn.GPSAConfig(),
    **{
        f"sigmoid, λ = {logit}": tcnn.GPSAConfig(
            gate="sigmoid", gate_init=torch.tensor(logit, dtype=torch.float64).sigmoid().item()
        )
        for logit in (1, 3, 5, 10, 14, 40)
    },
}


def gate_gradient(hybrid: nn.Module, parts: Splits) -> float:
    """Mean |∂loss/∂parameter| of the gates on the validation images, before any step."""
    images, labels = parts.validation.tensors()
    gates = [layer.gating_param for layer in gpsa_layers(hybrid).values()]
    gradients = torch.autograd.grad(F.cross_entropy(hybrid(images), labels), gates)
    return torch.cat(gradients).abs().mean().item()


def one(cnn: nn.Module, gate: str, parts: Splits, config: DemoConfig, seed: int) -> dict[str, Any]:
    """A hybrid with one kind of gate, before and after fine-tuning."""
    with reproducible(seed):
        hybrid = tcnn.recast(cnn, config=GATES[gate], input_size=(1, config.size, config.size))
        report = tcnn.check_equivalence(cnn, hybrid, parts.test.tensors()[0])
        gradient = gate_gradient(hybrid, parts)
    train(hybrid, parts, config.finetune, seed + 1)
    shares = torch.cat([layer.content_share.detach() for layer in gpsa_layers(hybrid).values()])
    return {
        "gate": gate,
        "seed": seed,
        "error": report.max_rel_error,
        "gradient": gradient,
        "share_min": shares.min().item(),
        "share_max": shares.max().item(),
        "top1": evaluate(hybrid, loader(parts.test, 256)).top1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = DemoConfig()
    config = replace(config, finetune=replace(config.finetune, epochs=args.epochs))

    runs = []
    for seed in range(args.seeds):
        parts = split(digits(config.size), seed)
        with reproducible(seed):
            cnn = tcnn.load_model(
                "tcnn.networks:cifar_resnet",
                depth=config.depth,
                in_channels=1,
                widths=config.widths,
            )
        train(cnn, parts, config.cnn, seed)
        for gate in GATES:
            runs.append(one(cnn, gate, parts, config, seed))
            print(f"seed {seed}, {gate}: top-1 {runs[-1]['top1']:.1%}", flush=True)

    rows = []
    for gate in GATES:
        mine = [run for run in runs if run["gate"] == gate]
        accuracy = [100 * run["top1"] for run in mine]
        rows.append(
            (
                gate,
                f"{max(run['error'] for run in mine):.1e}",
                f"{statistics.mean(run['gradient'] for run in mine):.1e}",
                f"{min(run['share_min'] for run in mine):+.2f}",
                f"{max(run['share_max'] for run in mine):+.2f}",
                f"{statistics.mean(accuracy):.1f}",
                " ".join(f"{value:.1f}" for value in accuracy),
            )
        )
    headers = ("gate", "error at start", "gate gradient", "least share", "most", "top-1 %", "seeds")
    print(text_table(headers, rows))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "command": f"python benchmarks/gates.py --seeds {args.seeds} --epochs {args.epochs}",
            "config": asdict(config),
            "runs": runs,
            **provenance(),
        }
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
