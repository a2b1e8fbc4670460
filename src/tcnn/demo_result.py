"""What the demonstration measured: as figures, in words, and in pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from tcnn import metrics
from tcnn.analysis import plots
from tcnn.analysis.capture import Capture
from tcnn.analysis.heads import HeadsReport
from tcnn.data import ImageSet
from tcnn.equivalence import EquivalenceReport
from tcnn.planning import Plan
from tcnn.robustness_result import Group, RobustnessResult
from tcnn.run_record import FitResult
from tcnn.tables import text_table

ARM_NAMES = {
    "cnn": "CNN before fine-tuning",
    "control": "CNN fine-tuned (control)",
    "hybrid": "hybrid fine-tuned",
}
_SHOWN_HEADS = 4
_SHOWN_CLASSES = (2, 3, 5, 8)


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration measured, and where it wrote.

    Attributes:
        out: its folder.
        plan, equivalence: of recasting the CNN.
        fits: the runs of training: "cnn", then from it "control" and "hybrid".
        test: on the test images, clean and corrupted: "cnn" before fine-tuning, "control" and
            "hybrid" after.
        heads: every head of the hybrid.
        seconds: time taken by each part.
    """

    out: Path
    plan: Plan
    equivalence: EquivalenceReport
    fits: dict[str, FitResult]
    test: RobustnessResult
    heads: HeadsReport
    seconds: dict[str, float]

    def differences(self) -> dict[str, tuple[float, float]]:
        """Hybrid minus control in top-1 on the same images, and its standard error."""
        differences = {}
        for name, group in (("clean", self.clean), ("corrupted", self.test.corrupted())):
            scores = group.scores("hybrid"), group.scores("control")
            mean, error = metrics.paired_difference(*scores)
            differences[name] = (mean.item(), error.item())
        return differences

    @property
    def clean(self) -> Group:
        """The test images as they are."""
        assert self.test.clean is not None
        return self.test.clean

    def mce(self) -> float:
        """The hybrid's mean corruption error, relative to the control's."""
        ratios = [
            (1 - group.top1("hybrid")) / (1 - group.top1("control"))
            for group in self.test.by_corruption()
        ]
        return sum(ratios) / len(ratios)

    def columns(self) -> dict[str, Group]:
        """What the table and the picture show: clean, every corruption, and all of them."""
        return {
            "clean": self.clean,
            **{group.title: group for group in self.test.by_corruption()},
            "mean corrupted": self.test.corrupted(),
        }

    def table(self) -> str:
        """Top-1 of the three networks: clean, by corruption, and over all corruptions."""
        columns = self.columns()
        rows = [
            (ARM_NAMES[arm], *(round(100 * group.top1(arm), 1) for group in columns.values()))
            for arm in self.test.models
        ]
        return text_table(("top-1 %", *columns), rows)

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data; a second run with the same seed gives the same."""
        fits = {name: result.to_json() for name, result in self.fits.items()}
        for run in fits.values():
            del run["seconds"], run["images_per_second"]
        return {
            "plan": self.plan.to_json(),
            "equivalence": self.equivalence.to_json(),
            "training": fits,
            "test": {
                arm: {
                    name: {"top1": group.top1(arm), "top1_standard_error": group.error(arm)}
                    for name, group in self.columns().items()
                }
                for arm in self.test.models
            },
            "hybrid_minus_control": {
                name: {"top1": mean, "standard_error": error}
                for name, (mean, error) in self.differences().items()
            },
            "hybrid_mce_relative_to_control": self.mce(),
            "heads": self.heads.to_json(),
        }


def pictures(result: DemoResult, seen: Capture, images: ImageSet) -> dict[str, Figure]:
    """The figures by file name.

    Args:
        result: what was measured.
        seen: the hybrid's layers on the first of the test images.
        images: the test images.
    """
    columns, arms = result.columns(), ("control", "hybrid")
    accuracy = {
        ARM_NAMES[arm]: {name: group.top1(arm) for name, group in columns.items()} for arm in arms
    }
    errors = {
        ARM_NAMES[arm]: {name: group.error(arm) for name, group in columns.items()} for arm in arms
    }
    return {
        "accuracy.png": plots.accuracy_plot(
            accuracy, errors, f"{len(images)} test digits, clean and corrupted (± 1 standard error)"
        )[0],
        "gates.png": plots.gate_plot(
            seen.gates, {name: layer.kernel_size for name, layer in seen.layers.items()}
        )[0],
        "attention.png": _attention_figure(seen, images),
    }


def _attention_figure(seen: Capture, images: ImageSet) -> Figure:
    """Content attention in the layer that left the convolution furthest, from a pixel of ink."""
    name = max(seen.gates, key=lambda name: float((1 - seen.gates[name]).abs().mean()))
    layer, content = seen.layers[name], seen.attention(name).content
    heads = (1 - seen.gates[name]).abs().argsort(descending=True)[:_SHOWN_HEADS].tolist()
    rows = []
    for label in _SHOWN_CLASSES:
        shown = np.flatnonzero(images.labels[: len(content)] == label)[:1]
        for index in shown.tolist():
            image = images.images[index, :, :, 0]
            ink = torch.from_numpy(image).float()[None, None]
            grid: Tensor = F.adaptive_avg_pool2d(ink, (content.shape[2], content.shape[3]))[0, 0]
            row, column = divmod(int(grid.argmax()), grid.shape[1])
            # The query's pixel in the layer's input, as shares of its height and width.
            centre = [
                (at * step + 0.5) / size
                for at, step, size in zip(
                    (row, column), layer.stride, content.shape[4:], strict=True
                )
            ]
            maps = content[index, heads, row, column]
            rows.append(plots.AttentionRow(image, (centre[0], centre[1]), maps))
    titles = [
        f"tap {divmod(head, layer.kernel_size[1])}\ncontent share {1 - seen.gates[name][head]:.2f}"
        for head in heads
    ]
    return plots.attention_plot(
        rows, titles, f"{name}: content attention of some heads, from the cross"
    )[0]


def closing(result: DemoResult, program: str) -> str:
    """The last lines: what was shown, in figures; where the files are; what to type next.

    Args:
        result: what was measured.
        program: how the command line is called from where it was.
    """
    report, differences, out = result.equivalence, result.differences(), result.out
    heads = result.heads.heads
    shares = [head.content_share for head in heads]
    spread = sum(head.content_spread for head in heads) / len(heads)
    lines = [
        result.table(),
        "",
        "What was shown",
        f"  Recast, the CNN computed the same function: relative error {report.max_rel_error:.1g} "
        f"on {report.images} images.",
        f"  Fine-tuned, its {len(shares)} heads took content shares from {min(shares):.2f} to "
        f"{max(shares):.2f} (0 is the convolution).",
        f"  Their content attention covers {spread:.0%} of the image on average; 100% is its mean.",
        "  Hybrid against the control, the same CNN with the same fine-tuning, on the same images:",
        *(f"    {name}: {verdict(*differences[name])}" for name in ("clean", "corrupted")),
        "  ± is one standard error over test images. It leaves out that another seed would train",
        "  another pair, and small digits say little about photographs.",
        "",
        f"Pictures: {out / 'accuracy.png'}, {out / 'gates.png'}, {out / 'attention.png'}",
        f"Figures:  {out / 'metrics.json'}",
        f'Hybrid:   {out / "hybrid"}, which tcnn.load("{out / "hybrid"}") reads',
        "",
        "Next, with a network of your own (timm:NAME, torchvision:NAME, package.module:function):",
        f"  {program} plan timm:resnet50.a1_in1k",
        f"  {program} recast timm:resnet50.a1_in1k --out runs/r50",
    ]
    return "\n".join(lines)


def verdict(mean: float, error: float) -> str:
    """A difference in top-1 in words; two standard errors are called a difference."""
    figures = f"{100 * mean:+.1f} ± {100 * error:.1f} points of top-1"
    if abs(mean) <= 2 * error:
        return f"{figures}: no difference that these images can show"
    return f"{figures}: the hybrid is {'ahead' if mean > 0 else 'behind'}"
