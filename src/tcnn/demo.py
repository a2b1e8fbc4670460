"""The whole story on scikit-learn's digits: train a CNN, recast it, fine-tune both, compare."""

from __future__ import annotations

import copy
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tcnn import checkpoint
from tcnn.analysis.capture import capture
from tcnn.analysis.heads import heads_report
from tcnn.corruptions import SEVERITIES
from tcnn.data import ArrayImages, Splits, digits, split
from tcnn.data_config import DataConfig, ImagesConfig
from tcnn.demo_result import ARM_NAMES, DemoResult, closing, pictures
from tcnn.engine import fit, reproducible
from tcnn.equivalence import check_equivalence
from tcnn.evaluate_config import InferenceConfig
from tcnn.files import make_folder, write_json, write_whole
from tcnn.loaders import ImageData
from tcnn.models import load_model
from tcnn.planning import plan
from tcnn.processes import make_fabric
from tcnn.provenance import provenance
from tcnn.robustness_result import PartScore, RobustnessResult
from tcnn.run_record import FitResult
from tcnn.scoring import score
from tcnn.suites import clean, corrupted
from tcnn.surgery import recast
from tcnn.train_config import EngineConfig, TrainConfig
from tcnn.view import View

Echo = Callable[[str], None]

_TEST_BATCH = 64
_LOOKED_AT = 64  # test images that the heads are measured on
_READING = ImagesConfig(workers=0)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demonstration trains, and for how long.

    The recipes were chosen on the validation images; the test images are for the final figures.
    """

    depth: int = 8
    """Layers of the residual network."""

    widths: tuple[int, int, int] = (8, 16, 32)
    """Channels of its three stages."""

    size: int = 32
    """Side in pixels that the digits are enlarged to."""

    cnn: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=15, batch_size=64, lr=3e-3, warmup_epochs=2, smoothing=0.1
        )
    )
    """Recipe of the CNN's training."""

    finetune: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=20, batch_size=64, lr=4e-3, gate_lr_scale=20, warmup_epochs=1, smoothing=0.1
        )
    )
    """Recipe of the fine-tuning, for the hybrid and the CNN alike."""

    corruptions: tuple[str, ...] = (
        "gaussian_noise",
        "impulse_noise",
        "defocus_blur",
        "brightness",
        "contrast",
    )
    """Corruptions that both are tested under."""

    severities: tuple[int, ...] = SEVERITIES
    """Severities that both are tested at."""


def run(
    out: Path, seed: int, echo: Echo, *, config: DemoConfig | None = None, program: str = "tcnn"
) -> DemoResult:
    """Run the demonstration, and write the hybrid, metrics.json and three pictures to `out`.

    Args:
        out: folder, made if it is not there; the files of an earlier run are overwritten.
        seed: of everything random; the same seed gives the same figures on the same machine with
            as many threads.
        echo: called with each line of the story.
        config: what to train; None is the demonstration as it is meant.
        program: how the command line is called from where it was, for what to type next.

    Raises:
        TCNNError: `out` cannot be written to; found out before anything is trained.
    """
    config = config or DemoConfig()
    for folder in (out, out / "hybrid"):
        make_folder(folder)
    with reproducible(seed):
        result = _Demo(out, seed, echo, config).run()
    echo(closing(result, program))
    return result


def train(
    model: nn.Module,
    parts: Splits,
    recipe: TrainConfig,
    seed: int,
    progress: Callable[[str], None] | None = None,
) -> FitResult:
    """Train a network on digits, reproducibly; batches follow from `seed` alone.

    Args:
        model: for one channel and pixels in [0, 1]; trained in place.
        parts: the digits.
        recipe: but for its seed.
        seed: of everything random.
        progress: called with one line for each epoch.
    """
    # A digit is no longer itself in a mirror.
    data = DataConfig(crop="pad", hflip=0, mean=(0.0,), std=(1.0,), workers=0)
    height, width = parts.train.images.shape[1:3]
    view = View.of(model, replace(data, input_size=(1, height, width)))
    images = [ArrayImages(part, "digit") for part in (parts.train, parts.validation)]
    return fit(
        model,
        ImageData(images[0], images[1], view, data, recipe.batch_size, seed),
        replace(recipe, seed=seed),
        EngineConfig(accelerator="cpu", deterministic=True),
        progress=progress,
    )


class _Demo:
    """One run, part by part."""

    def __init__(self, out: Path, seed: int, echo: Echo, config: DemoConfig) -> None:
        self.out, self.seed, self.echo, self.config = out, seed, echo, config
        self.splits: Splits = split(digits(config.size), seed)
        self.seconds: dict[str, float] = {}

    def run(self) -> DemoResult:
        start = time.monotonic()
        config, parts, echo = self.config, self.splits, self.echo
        echo(
            f"1/5  A CNN on {len(parts.train)} handwritten digits (scikit-learn's, enlarged to "
            f"{config.size}×{config.size}; {len(parts.validation)} more to validate, "
            f"{len(parts.test)} to test)"
        )
        cnn = load_model(
            "tcnn.networks:cifar_resnet",
            depth=config.depth,
            num_classes=len(parts.train.classes),
            in_channels=1,
            widths=config.widths,
        )
        fits = {"cnn": self._fit("cnn", cnn, config.cnn, self.seed)}

        echo("\n2/5  Its last stage recast as gated positional self-attention\n")
        size = (1, config.size, config.size)
        steps = plan(cnn, input_size=size)
        echo(steps.table() + "\n")
        hybrid = recast(cnn, input_size=size)
        report = check_equivalence(cnn, hybrid, parts.test.tensors()[0])
        echo(report.table())

        echo("\n3/5  Fine-tuning from that CNN: itself (the control), then the hybrid")
        control = copy.deepcopy(cnn)
        for name, model in (("control", control), ("hybrid", hybrid)):
            echo(f"  {ARM_NAMES[name]}")
            fits[name] = self._fit(name, model, config.finetune, self.seed + 1)

        echo("\n4/5  Testing, clean and on corrupted images made here")
        tested = self._test({"cnn": cnn, "control": control, "hybrid": hybrid})

        echo("\n5/5  Looking at the heads, and writing\n")
        with capture(hybrid) as seen, torch.no_grad():
            hybrid(parts.test.tensors()[0][:_LOOKED_AT])
        result = DemoResult(self.out, steps, report, fits, tested, heads_report(seen), self.seconds)
        checkpoint.save(hybrid, self.out / "hybrid", classes=parts.train.classes)
        for name, figure in pictures(result, seen, parts.test).items():
            write_whole(self.out / name, partial(figure.savefig, dpi=150))
        self.seconds["total"] = time.monotonic() - start
        self._write_metrics(result)
        return result

    def _fit(self, name: str, model: nn.Module, recipe: TrainConfig, seed: int) -> FitResult:
        """Train; both arms see the same batches, which follow from `seed`."""
        result = train(
            model, self.splits, recipe, seed, progress=lambda line: self.echo(f"    {line}")
        )
        self.seconds[f"train {name}"] = result.seconds
        return result

    def _test(self, models: dict[str, nn.Module]) -> RobustnessResult:
        """All of them on the same images."""
        start = time.monotonic()
        images = ArrayImages(self.splits.test, "digit")
        config = InferenceConfig(accelerator="cpu", batch_size=_TEST_BATCH)
        fabric = make_fabric(config)
        severities = self.config.severities
        parts = [clean(images), *corrupted(images, self.config.corruptions, severities, self.seed)]
        view, scores = self._view(), []
        for part in parts:
            shown = {name: (model, view) for name, model in models.items()}
            scores.append(PartScore.of(part, score(shown, part, _READING, config, fabric)))
        result = RobustnessResult(tuple(models), tuple(scores))
        for name in models:
            self.echo(
                f"  {ARM_NAMES[name]}: top-1 {scores[0].scores[name].result.top1:.1%} clean, "
                f"{result.corrupted().top1(name):.1%} over {len(parts) - 1} corrupted sets"
            )
        self.seconds["test"] = time.monotonic() - start
        return result

    def _view(self) -> View:
        """Digits as they are: grey, pixels in [0, 1]."""
        size = self.config.size
        return View((1, size, size), (0.0,), (1.0,), "bilinear", 1.0)

    def _write_metrics(self, result: DemoResult) -> None:
        command = ["tcnn", "demo", "--out", str(self.out), "--seed", str(self.seed)]
        content = {
            "seed": self.seed,
            "command": shlex.join(command),
            "config": asdict(self.config),
            **provenance(),
            "data": {
                "name": "scikit-learn digits",
                "train": len(self.splits.train),
                "validation": len(self.splits.validation),
                "test": len(self.splits.test),
            },
            "results": result.to_json(),
            "timing": result.seconds,
        }
        write_json(self.out / "metrics.json", content)
