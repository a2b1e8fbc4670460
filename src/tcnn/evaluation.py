"""Tests of networks from a configuration, and the files that come of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from tcnn import sources
from tcnn.analysis import robustness_plots as plots
from tcnn.corruptions import STANDARD
from tcnn.data_config import ImagesConfig
from tcnn.evaluate_config import InferenceConfig, RobustnessConfig
from tcnn.files import make_folder, write_json, write_text, write_whole
from tcnn.images import DataError, Images
from tcnn.loaders import open_validation
from tcnn.processes import make_fabric
from tcnn.provenance import provenance
from tcnn.robustness import check_alike, robustness, weights_checksum
from tcnn.robustness_result import RobustnessResult
from tcnn.scoring import Score, explained, score
from tcnn.suites import CLEAN, clean, parts_of
from tcnn.tables import csv_text
from tcnn.train import output_width
from tcnn.view import View

_PANELS = {  # suite → the paper's panel that it is drawn in
    "imagenet-c": "ImageNet-C",
    "corruptions": "ImageNet-C",
    "cifar10-c": "ImageNet-C",
    "imagenet-a": "ImageNet-A",
    "imagenet-r": "ImageNet-R",
    "fgsm": "FGSM",
}


@dataclass(frozen=True)
class Evaluation:
    """A network on one set of images.

    Attributes:
        score: its answers.
        classes: names of its outputs.
        names: of the images, by their places.
        processes: how many computed.
    """

    score: Score
    classes: tuple[str, ...]
    images: Images
    processes: int

    @property
    def images_per_second(self) -> float:
        """Images by seconds on the clock, reading and all."""
        return self.score.result.images / self.score.seconds["clock"]

    def speed(self) -> str:
        """How fast it was, and where the time went."""
        seconds = self.score.seconds
        return (
            f"{self.images_per_second:.0f} images/s ({seconds['clock']:.1f} s on the clock; "
            f"reading {seconds['reading']:.1f} s of worker processes, computing "
            f"{seconds['computing']:.1f} s of {self.processes} "
            f"process{'es' if self.processes > 1 else ''})."
        )


def evaluate_images(
    model: nn.Module,
    data: ImagesConfig,
    config: InferenceConfig | None = None,
    *,
    bar: bool = False,
) -> Evaluation | None:
    """Score a network on images, each counted once, on one process or several.

    Args:
        model: the network; with a class list, the images must be of these classes.
        data: the images.
        config: what to run on.
        bar: show a progress bar.

    Returns:
        The evaluation in the first process, None in others.

    Raises:
        DataError: the images are not there or of other classes.
    """
    config = config or InferenceConfig()
    images = _open(model, data)
    fabric = make_fabric(config)
    check_alike(weights_checksum(model), fabric)
    part = clean(images)
    first = fabric.global_rank == 0
    with tqdm(total=len(images), unit=" images", leave=False, disable=not (bar and first)) as shown:
        models = {"": (model, View.of(model, data))}
        found = score(models, part, data, config, fabric, shown.update)
    if not first:
        return None
    return Evaluation(found[""], images.classes, images, fabric.world_size)


def write(
    found: Evaluation, out: Path, model: str, data: ImagesConfig, config: InferenceConfig
) -> None:
    """Write an evaluation to a folder: JSON, and CSV by class, by confusion and by image."""
    make_folder(out)
    result = found.score.result
    write_text(out / "classes.csv", result.by_class_csv(found.classes))
    write_text(out / "confusions.csv", result.confusions_csv(found.classes))
    rows = [
        (found.images.name(i), found.classes[label], found.classes[other], sure, loss)
        for i, label, other, sure, loss in zip(
            result.index.tolist(), result.labels.tolist(), result.predicted.tolist(),
            result.confidence.tolist(), result.losses.tolist(), strict=True,
        )
    ]  # fmt: skip
    headers = ("image", "class", "predicted", "confidence", "loss")
    write_text(out / "predictions.csv", csv_text(headers, rows))
    content = {
        "model": model,
        **result.to_json(),
        "images_per_second": found.images_per_second,
        "seconds": found.score.seconds,
        "processes": found.processes,
        "pixels": found.score.pixels,
        "unreadable": dict(found.score.unread),
        "data": asdict(data),
        "engine": asdict(config),
        **provenance(),
    }
    write_json(out / "evaluation.json", content)


def measure_robustness(
    models: Mapping[str, nn.Module],
    suites: Sequence[str],
    out: str | Path,
    data: ImagesConfig | None = None,
    config: InferenceConfig | None = None,
    measure: RobustnessConfig | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
    bar: bool = False,
) -> RobustnessResult | None:
    """Score one network, or two on the same images, on suites.

    Args:
        models: by name; the second is what the first is held against.
        suites: NAME or NAME=DIR, as of `suites.parts_of`.
        out: folder that every score is kept in as soon as it is there.
        data: the images that suites are made of; a root of "" is none.
        config: what to run on.
        measure: what the suites that are made here ask.
        say: called with each line of what happens.
        bar: show a progress bar.

    Returns:
        The result in the first process, None in others.

    Raises:
        TCNNError: as from `suites.parts_of` and `robustness.robustness`, or the networks have
            different outputs.
    """
    data, config = data or ImagesConfig(), config or InferenceConfig()
    measure, out = measure or RobustnessConfig(), Path(out)
    first, *others = models.values()
    outputs = _outputs(first, data)
    classes = sources.origin(first).classes
    for other in others:
        names = sources.origin(other).classes
        if _outputs(other, data) != outputs or (names and classes and names != classes):
            raise DataError(
                "Expected two networks with the same classes in the same order, but they have "
                f"{outputs} and {_outputs(other, data)} outputs, or other names: compare networks "
                "that answer the same question."
            )
        classes = classes or names
    images = _open(first, data, classes) if data.root else None
    parts = parts_of(suites, measure, images, outputs, classes)
    fabric = make_fabric(config)
    return robustness(models, parts, out, data, config, fabric, say=say, bar=bar)


def write_robustness(
    found: RobustnessResult,
    out: Path,
    names: Mapping[str, str],
    command: str,
    data: ImagesConfig,
    config: InferenceConfig,
    measure: RobustnessConfig,
) -> list[str]:
    """Write a result to its folder: JSON, CSV, a Markdown page, and plots, whose names it
    returns."""
    pictures = []
    for name, figure in _pictures(found, data).items():
        write_whole(out / name, partial(figure.savefig, dpi=150))
        pictures.append(name)
    made = provenance()
    content = {
        "command": command,
        "networks": dict(names),
        **found.to_json(),
        "data": asdict(data),
        "engine": asdict(config),
        "measure": asdict(measure),
        **made,
    }
    write_json(out / "robustness.json", content)
    write_text(out / "robustness.csv", found.csv())
    versions = ", ".join(f"{key} {value}" for key, value in made["versions"].items())
    hardware = made["hardware"]
    told = "; ".join(f"{key}: `{name}`" for key, name in names.items())
    page = [
        "# Robustness",
        f"`{command}`",
        f"{told}. Seed {measure.seed}. {versions}; {hardware['processor']}, "
        f"{hardware['threads']} threads, GPU {hardware['gpu'] or 'none'}.",
        found.markdown(),
        *(f"![{Path(name).stem}]({name})" for name in pictures),
    ]
    write_text(out / "robustness.md", "\n\n".join(page) + "\n")
    return pictures


def _pictures(found: RobustnessResult, data: ImagesConfig) -> dict[str, Any]:
    pictures = {}
    top1 = {
        model: {group.title: group.top1(model) for group in found.groups} for model in found.models
    }
    errors = {
        model: {group.title: group.error(model) for group in found.groups} for model in found.models
    }
    pictures["suites.png"] = plots.suites_plot(top1, errors)[0]
    clean_top1 = {model: tops[CLEAN] for model, tops in top1.items() if CLEAN in tops}
    for suite in found.corruption_suites:
        pictures[f"{suite}.png"] = plots.severity_plot(
            found.curves(suite),
            found.severities(suite),
            STANDARD,
            clean=clean_top1 or None,
            title=f"{suite}: top-1 by severity",
        )[0]
    if clean_top1:
        panels: dict[str, dict[str, tuple[float, float]]] = {}
        titles = []
        # Of several attacks that of about one grey level.
        for group in sorted(found.groups, key=lambda group: abs((group.parts[0].level or 1) - 1)):
            panel = _PANELS.get(group.suite)
            if panel and panel not in panels and "extra" not in group.title:
                panels[panel] = {
                    model: (clean_top1[model], group.top1(model)) for model in found.models
                }
                titles.append(group.title)
        if panels:
            note = f"clean {data.root}; {'; '.join(sorted(titles))}"
            pictures["scatter.png"] = plots.scatter_plot(panels, note)[0]
    return pictures


def _open(model: nn.Module, data: ImagesConfig, classes: Sequence[str] | None = None) -> Images:
    """Images of the network's classes."""
    if not data.root:
        raise DataError("Expected images, but got none: give --data.root DIR.")
    classes = classes or sources.origin(model).classes
    images = open_validation(data, classes)
    outputs = _outputs(model, data)
    if len(images.classes) != outputs:
        raise DataError(
            f"Expected images of {outputs} classes, one for each output of the network, but "
            f"{data.root!r} has {len(images.classes)}: fine-tune it on these first, or give other "
            "images."
        )
    return images


def _outputs(model: nn.Module, data: ImagesConfig) -> int:
    size = View.of(model, data).input_size
    with explained(model, size, "its input"):
        return output_width(model, torch.zeros(1, *size))
