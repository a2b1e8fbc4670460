"""The commands that test, `evaluate` and `robustness`, made as those of `tcnn.commands`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from tcnn.commands import echo, folder_of, network_of
from tcnn.data_config import ImagesConfig
from tcnn.errors import TCNNError
from tcnn.evaluate_config import InferenceConfig, RobustnessConfig

_SHOWN = 10  # rows of long tables on the screen; all of them are in the files


def evaluate_network(
    model: str,
    *,
    data: ImagesConfig,
    engine: InferenceConfig = InferenceConfig(),  # noqa: B008
    out: str | None = None,
    pretrained: bool | None = None,
    weights: str | None = None,
    model_settings: dict[str, Any] | None = None,
) -> int:
    """Test a network on images: top-1, top-5, loss, calibration, by class, and what is confused.

    Args:
        model: Folder of a saved network, or timm:NAME, torchvision:NAME, package.module:function.
        data: The images.
        engine: What to run on.
        out: Folder for evaluation.json, classes.csv, confusions.csv and predictions.csv; null
            writes nothing.
        pretrained: Take the weights that timm or torchvision publish; null does so for their
            networks unless weights are given.
        weights: File of weights, safetensors or a PyTorch file of plain tensors.
        model_settings: Arguments of the function that builds the network.
    """
    from tcnn import evaluation, progress
    from tcnn.files import make_folder
    from tcnn.tables import text_table

    folder = None if out is None else folder_of(out)
    if folder is not None:
        make_folder(folder)
    network = _network_of(model, pretrained, weights, model_settings)
    found = evaluation.evaluate_images(network, data, engine, bar=sys.stderr.isatty())
    if found is None:
        return 0
    result, classes = found.score.result, found.classes
    progress.say(
        f"{model} on {result.images} images of {len(classes)} classes in {data.root!r}:\n\n"
        f"{result.table()}\n"
    )
    rows = sorted(result.by_class(classes), key=lambda row: row[2])[:_SHOWN]
    cells = [(name, images, f"{t:.1%}", f"{f:.1%}", f"{c:.1%}") for name, images, t, f, c in rows]
    echo(f"Hardest classes:\n{text_table(('class', 'images', 'top-1', 'top-5', 'sure'), cells)}\n")
    pairs = [(a, b, n, f"{share:.1%}") for a, b, n, share in result.confusions(classes)[:_SHOWN]]
    if pairs:
        headers = ("class", "taken for", "images", "of the class")
        echo(f"Most confused:\n{text_table(headers, pairs)}\n")
    echo(found.speed())
    for name, reason in found.score.unread[:1]:
        count = len(found.score.unread)
        echo(f"{count} images could not be read and were left out. {name}: {reason}")
    if folder is not None:
        evaluation.write(found, folder, model, data, engine)
        echo(f"Wrote {out}: evaluation.json, classes.csv, confusions.csv, predictions.csv.")
    return 0


def measure_robustness(
    model: str,
    *,
    suite: list[str],
    out: str,
    data: ImagesConfig = ImagesConfig(),  # noqa: B008
    engine: InferenceConfig = InferenceConfig(),  # noqa: B008
    measure: RobustnessConfig = RobustnessConfig(),  # noqa: B008
    compare: str | None = None,
    names: tuple[str, str] = ("model", "other"),
    pretrained: bool | None = None,
    weights: str | None = None,
    model_settings: dict[str, Any] | None = None,
) -> int:
    """Test a network on suites of hard images, and hold it against another on the same ones.

    Suites made of the images of --data.root: corruptions (all 19 of ImageNet-C), fgsm, pgd,
    patch-shuffle, occlusion, resolution. Published ones, by their folder: imagenet-c=DIR,
    cifar10-c=DIR, imagenet-a=DIR, imagenet-r=DIR, imagenet-v2=DIR, imagenet-sketch=DIR,
    imagenet-real=DIR. A run that was cut goes on when it is asked for again.

    Args:
        model: Folder of a saved network, or timm:NAME, torchvision:NAME, package.module:function.
        suite: What to test on; give it several times for several suites.
        out: Folder for robustness.json, robustness.csv, robustness.md, the plots, and every score.
        data: The images that suites are made of.
        engine: What to run on.
        measure: What the suites that are made here ask.
        compare: Another network, given as the first is, to be shown the same images.
        names: What tables and plots call the two, as '[hybrid, control]'.
        pretrained: Take the weights that timm or torchvision publish; null does so for their
            networks unless weights are given.
        weights: File of weights of the first network.
        model_settings: Arguments of the function that builds the networks.
    """
    import shlex

    from tcnn import evaluation, progress
    from tcnn.keeping import is_first_process
    from tcnn.report import page

    if not suite:
        raise TCNNError("Expected a suite, but got none: give --suite corruptions, for one.")
    folder = folder_of(out)
    if len(set(names)) < 2 or not all(re.fullmatch(r"[\w.+-]*\w", name) for name in names):
        raise TCNNError(
            f"Expected two different words of letters, digits and -_.+ as --names, but got {names}."
        )
    models = {names[0]: _network_of(model, pretrained, weights, model_settings)}
    given = {names[0]: model}
    if compare is not None:
        models[names[1]] = _network_of(compare, pretrained, None, model_settings)
        given[names[1]] = compare
    say = progress.say if is_first_process(engine.processes) else _nothing
    command = shlex.join(["tcnn", *sys.argv[1:]])
    found = evaluation.measure_robustness(
        models, suite, folder, data, engine, measure, say=say, bar=sys.stderr.isatty()
    )
    if found is None:
        return 0
    pictures = evaluation.write_robustness(found, folder, given, command, data, engine, measure)
    told = "\n".join(f"{key}: {name}" for key, name in given.items())
    lines = "\n".join(f"- {line}" for line in found.remarks())
    echo(f"\n{told}\n\n{found.table()}\n")
    if found.corruption_suites:
        echo(f"{found.corruption_tables()}\n")
    echo(f"{lines}\n{found.timing()}")
    written = ["robustness.md", "robustness.json", "robustness.csv", *pictures]
    echo(f"Wrote {Path(out)}: {', '.join(written)}, and the scores in parts.")
    page.add(folder, echo, "tcnn")
    return 0


def _network_of(
    name: str,
    pretrained: bool | None,
    weights: str | None,
    settings: dict[str, Any] | None,
) -> Any:
    """A network whose weights, if they are random, are the same in every process and run."""
    import torch

    torch.manual_seed(0)
    return network_of(name, pretrained, weights, settings)


def _nothing(line: str) -> None:
    """What a process that is not the first says."""
