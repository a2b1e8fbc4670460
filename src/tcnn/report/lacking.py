"""What a run has not, and the command that adds it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tcnn.checkpoint import SETTINGS
from tcnn.data_config import ImagesConfig
from tcnn.report.contents import Contents
from tcnn.report.findings import Findings
from tcnn.report.looking import Look


@dataclass(frozen=True)
class Lack:
    """Something that a page could show.

    Attributes:
        what: it is, and why it is not there.
        commands: that add it, to be typed in this order.
    """

    what: str
    commands: tuple[str, ...]


def lacking(contents: Contents, found: Findings, seen: Look) -> list[Lack]:
    """What is not there, in the order of the page."""
    run, lacks = str(contents.folder), []
    if contents.is_cnn:
        recast = _typed("recast", run, "--out", f"{run}-hybrid")
        return [Lack("Recast layers, and with them gates, heads and the explorer.", (recast,))]
    if found.equivalence is None:
        lacks.append(
            Lack(
                "How exactly the hybrid computed the CNN's function before it was tuned: no figure "
                "was kept. (Recasting itself runs both on a random image, and refuses what "
                "differs.)",
                (_typed("recast", *_model(contents), "--out", "runs/recast"),),
            )
        )
    if not found.curves and contents.network is not None:
        elsewhere = _run_of(contents.network)
        commands = (
            (_typed("report", elsewhere),)
            if elsewhere is not None
            else (
                _typed("finetune", "--model", contents.network, "--out", f"{run}-tuned",
                       "--data.root", "DIR"),
            )
        )  # fmt: skip
        lacks.append(Lack("Training curves, and gates through epochs.", commands))
    if not found.comparisons and (found.curves or contents.robustness is not None):
        lacks.append(
            Lack(
                "A control: the same CNN with the same fine-tuning, clean and under corruption.",
                (
                    *(made := _control(contents)),
                    _robustness(contents, f"{run}-cnn" if made else "CONTROL"),
                ),
            )
        )
    elif not found.levels and contents.network is not None:
        control = f"{run}-cnn"
        if contents.study is not None and contents.shown is not None:
            arms = contents.folder / "arms"
            control = str(arms / contents.study["control"] / f"seed{contents.shown[1]}" / "model")
        if contents.demo is None:
            lacks.append(
                Lack("Accuracy by severity, and under attacks.", (_robustness(contents, control),))
            )
    if not seen.layers:
        built = (_typed("report", run, "--cnn", "package.module:function"),)
        # Where the network could be read, its maps are too large, and no command mends that.
        lacks.append(
            Lack(f"The explorer and the heads: {seen.failure}", built if seen.lens is None else ())
        )
    elif not seen.pictures:
        lacks.append(
            Lack(
                f"Pictures for the explorer, and figures of the heads on them: {seen.failure}",
                (_typed("report", run, "--images", "DIR"),),
            )
        )
    if seen.layers:
        lacks.append(Lack("Pictures of your own.", (_typed("explore", run),)))
    return lacks


def _run_of(network: Path) -> Path | None:
    """The folder of the training that a network came of: its own, or that of its study."""
    if (network / "run.json").is_file():
        return network
    return next((at for at in network.parents[:4] if (at / "study.json").is_file()), None)


def _control(contents: Contents) -> tuple[str, ...]:
    """The command that trains the control of a run of `tcnn finetune`."""
    if contents.run is None:
        return ()
    start: dict[str, Any] = contents.run.get("start") or {}
    if not start.get("recast", False):
        return ()
    model: str = start["model"]
    restored: tuple[str, ...] = ()
    if (Path(model) / SETTINGS).is_file():  # a saved hybrid, whose gates were shut
        restored = (_typed("restore", model, "--out", f"{model}-cnn"),)
        model = f"{model}-cnn"
    words: list[Any] = ["--model", model, "--recast", "false"]
    if start.get("weights"):
        words += ["--weights", start["weights"]]
    words += ["--out", f"{contents.folder}-cnn", "--data.root", contents.run["data"]["root"]]
    return (*restored, _typed("finetune", *words) + "  # and the options of this run")


def _robustness(contents: Contents, control: str) -> str:
    return _typed(
        "robustness", contents.network or contents.folder, "--compare", control, "--names",
        "[hybrid, control]", *_images(contents), "--suite", "corruptions", "--suite", "fgsm",
        "--out", contents.folder,
    )  # fmt: skip


def _model(contents: Contents) -> list[str]:
    """What a run was recast from, as the command line takes it."""
    said: dict[str, Any] = {}
    if contents.run is not None:
        said = contents.run.get("start") or {}
    elif contents.study is not None:
        said = contents.study["setting"]
    model = said.get("model") or contents.settings.get("model", {}).get("name") or "MODEL"
    return [str(model), *(("--weights", str(said["weights"])) if said.get("weights") else ())]


def _images(contents: Contents) -> list[str]:
    """The images of a run, and how it showed them, as the command line takes them."""
    data = contents.data
    if data is None or not data.root:
        return ["--data.root", "DIR"]
    words = ["--data.root", data.root]
    for option in fields(ImagesConfig):
        value = getattr(data, option.name)
        if option.name not in ("root", "workers") and value != option.default:
            spelled = value if isinstance(value, str) else json.dumps(value)
            words += [f"--data.{option.name}", spelled]
    return words


def _typed(*words: object) -> str:
    return shlex.join(["tcnn", *map(str, words)])
