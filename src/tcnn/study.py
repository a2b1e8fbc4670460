"""A controlled study: arms and seeds, trained in turn or side by side, then compared."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from tcnn.analysis import plots
from tcnn.corruptions import CORRUPTIONS
from tcnn.errors import TCNNError
from tcnn.files import make_folder, write_json, write_text, write_whole
from tcnn.layers import gpsa_layers
from tcnn.study_result import StudyResult
from tcnn.study_run import RunResult, build_cnn, pretrain, run_arm
from tcnn.study_setting import Setting
from tcnn.surgery import recast
from tcnn.view import View

Say = Callable[[str], None]


def study(
    setting: Setting,
    seeds: Sequence[int],
    control: str,
    *,
    jobs: int = 1,
    echo: Say = lambda line: None,
    command: str = "",
) -> StudyResult:
    """Run what is not done yet of a study, and write study.json, study.md and two pictures.

    Every arm is trained and tested with every seed. What is done stays in the study's folder and
    is not done again; what was cut goes on from its checkpoint.

    Args:
        setting: what the arms have in common.
        seeds: the seeds.
        control: the arm that the others are held against.
        jobs: runs at a time, each in a process of its own, with its share of the cores and, where
            there are any, a GPU.
        echo: called with each line of what happens.
        command: that asked for it, to stand in the files.

    Raises:
        TCNNError: an arm asks for what is not there; the folder holds another study.
    """
    _check(setting, seeds, control, jobs)
    make_folder(setting.out)
    runs: dict[tuple[str, int], RunResult] = {}
    for wave in _waves(setting, seeds):
        for (arm, seed), result in _all(setting, wave, jobs, echo):
            if arm is not None and result is not None:
                runs[arm, seed] = result
    ordered = {(arm, seed): runs[arm, seed] for arm in setting.arms for seed in seeds}
    found = StudyResult(setting, tuple(seeds), control, ordered, command)
    _write(found)
    return found


Job = tuple[str | None, int]  # an arm and a seed; None for the pretraining


def _waves(setting: Setting, seeds: Sequence[int]) -> list[list[Job]]:
    """What can run side by side: each wave needs only what the ones before it made."""
    first: list[Job] = [(None, seed) for seed in seeds] if setting.pretrain else []
    shares = [name for name, arm in setting.arms.items() if isinstance(arm.start, float)]
    rest = [name for name in setting.arms if name not in shares]
    return [
        first,
        [(arm, seed) for seed in seeds for arm in rest],
        [(arm, seed) for seed in seeds for arm in shares],
    ]


def _all(
    setting: Setting, wave: list[Job], jobs: int, echo: Say
) -> list[tuple[Job, RunResult | None]]:
    if jobs == 1:
        return [(job, _one(setting, job, echo)) for job in wave]
    context = multiprocessing.get_context("spawn")
    places: multiprocessing.Queue[int] = context.Queue()
    for place in range(jobs):
        places.put(place)
    with ProcessPoolExecutor(jobs, context, _begin, (jobs, places)) as pool:
        futures = {pool.submit(_one, setting, job, _print): job for job in wave}
        try:
            with _leaving_on_sigterm():
                return [(futures[done], done.result()) for done in as_completed(futures)]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # one that trains writes its checkpoint first
            raise


def _begin(jobs: int, places: multiprocessing.Queue[int]) -> None:
    """A process of several: its share of the cores, and a GPU of its own if there are enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the first passes it on
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[places.get() % gpus]


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, with a look back."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print(line: str) -> None:
    print(line, flush=True)


def _one(setting: Setting, job: Job, echo: Say) -> RunResult | None:
    arm, seed = job

    def say(line: str) -> None:
        echo(f"[{arm or 'pretraining'}, seed {seed}] {line}")

    if arm is None:
        pretrain(setting, seed, say)
        return None
    return run_arm(setting, arm, seed, say)


def _check(setting: Setting, seeds: Sequence[int], control: str, jobs: int) -> None:
    """Say before the first hour what would otherwise be said after it."""
    if control not in setting.arms:
        raise TCNNError(
            f"Expected `control` to be one of the arms {', '.join(setting.arms)}, but got "
            f"{control!r}."
        )
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise TCNNError(f"Expected different seeds from 0 up, at least one, but got {list(seeds)}.")
    if jobs < 1:
        raise TCNNError(f"Expected `jobs` from 1 up, but got {jobs}.")
    if setting.engine.processes > 1:
        raise TCNNError(
            f"Expected one process for each run of a study, but engine asks for "
            f"{setting.engine.processes}: run several at a time with --jobs."
        )
    unknown = set(setting.measure.corruptions or ()) - set(CORRUPTIONS)
    if unknown:
        raise TCNNError(
            f"Expected corruptions out of {', '.join(CORRUPTIONS)}, but got "
            f"{', '.join(sorted(unknown))}."
        )
    given = setting.pretrained or setting.weights is not None or Path(setting.model).is_dir()
    if setting.pretrain is not None and given:
        raise TCNNError(
            "Expected `pretrain`, which trains the CNN from random weights, or a CNN that has "
            "weights, but got both: leave one out."
        )
    cnn = build_cnn(setting)
    if gpsa_layers(cnn):
        raise TCNNError(
            f"Expected a CNN, which the control is, but {setting.model!r} is recast already: give "
            "the CNN that it was recast from."
        )
    for name, arm in setting.arms.items():
        if not re.fullmatch(r"\w[\w .+-]*", name):
            raise TCNNError(
                f"Expected names of arms that can be folders, but got {name!r}: take letters, "
                "digits, spaces and . + - _."
            )
        setting.recipe(name, seeds[0])
        if arm.hybrid:
            recast(cnn, setting.targets_of(name), setting.layers(name), _size(setting, cnn))
        if isinstance(arm.start, float) and setting.scratch_arm() is None:
            raise TCNNError(
                f"Expected an arm that trains the CNN from scratch, whose snapshots arm {name!r} "
                "starts from, but there is none: add one with `start: scratch` and nothing else."
            )


def _size(setting: Setting, cnn: nn.Module) -> tuple[int, int, int]:
    return View.of(cnn, setting.data).input_size


def _write(result: StudyResult) -> None:
    out = result.setting.out
    curves = {
        arm: _mean_history(result, arm)
        for arm, chosen in result.setting.arms.items()
        if chosen.epochs != 0
    }
    accuracy = {
        arm: {name: float(result.scores(arm, name).mean()) for name in result.measures}
        for arm in result.setting.arms
    }
    differences = {
        arm: {name: result.difference(arm, name).ends for name in result.measures}
        for arm in result.setting.arms
        if arm != result.control
    }
    figures = {}
    if curves:
        figures["curves.png"] = plots.curves_plot(curves)
    if differences:
        figures["differences.png"] = plots.differences_plot(differences, accuracy, result.control)
    for name, (figure, _) in figures.items():
        write_whole(out / name, partial(figure.savefig, dpi=150))
    write_text(out / "study.md", result.markdown())
    write_json(out / "study.json", result.to_json())


def _mean_history(result: StudyResult, arm: str) -> list[dict[str, float | None]]:
    """An arm's learning curves, as means over its seeds."""
    histories = [
        run.figures["fit"]["history"] for (name, _), run in result.runs.items() if name == arm
    ]
    return [
        {
            key: None if epochs[0][key] is None else sum(e[key] for e in epochs) / len(epochs)
            for key in ("train_loss", "val_loss", "val_top1", "mean_content_share")
        }
        for epochs in zip(*histories, strict=True)
    ]
