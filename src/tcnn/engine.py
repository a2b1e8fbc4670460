"""`fit`: one run of a `FinetuneTask` on what an `EngineConfig` names, to be cut and resumed."""

from __future__ import annotations

import logging
import os
import random
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import nn

from tcnn.distributed import synchronized_batch_norm
from tcnn.files import clear_leftovers, make_folder
from tcnn.keeping import (
    CHECKPOINT,
    AtomicCheckpointIO,
    Keeper,
    Place,
    Signals,
    TrainingError,
    at,
    check_space,
    is_first_process,
    read_checkpoint,
    read_place,
)
from tcnn.loaders import ImageData
from tcnn.progress import ProgressBar
from tcnn.run_record import FitResult, Record
from tcnn.train import FinetuneTask
from tcnn.train_config import EngineConfig, TrainConfig


def fit(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    engine: EngineConfig | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    identity: dict[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
    bar: bool = False,
    callbacks: tuple[lightning.Callback, ...] = (),
) -> FitResult:
    """Train a model in place; it ends on the CPU, in eval mode, with its averaged weights if the
    recipe asks for an average.

    The same model, images and recipe give the same weights when run twice on the same machine with
    as many threads, however often the run was cut and resumed (on a CPU to the bit).

    Args:
        model: maps (B, C, H, W) to class scores (B, K).
        data: the images, with the recipe's batch size and seed.
        config: the recipe.
        engine: what to run on.
        out: folder for the checkpoint, history.csv, gates.csv and TensorBoard; None writes nothing.
        resume: go on from the checkpoint in `out`, if there is one.
        identity: what else must be the same for a run to go on, as plain data.
        progress: called with one line for each epoch.
        bar: show a progress bar with images a second and the time left.
        callbacks: more callbacks of Lightning's.

    Raises:
        TrainingError: the engine is not to be had, the batch does not divide over it, `out` holds
            another run or has no room, or the loss is no number any more.
        Stopped: SIGINT or SIGTERM came; the checkpoint is written.
    """
    engine = engine or EngineConfig()
    _check_engine(config, engine)
    start = time.monotonic()
    dtype = next(model.parameters()).dtype
    identity = {
        **(identity or {}),
        "train": asdict(config),
        "engine": {"precision": engine.precision, "sync_bn": engine.sync_bn},
        "images": data.identity(),
    }
    place = None
    if out is not None:
        if is_first_process(engine.processes):
            make_folder(out)
            clear_leftovers(out)
            check_space(out, model, config)
        place = read_place(out, identity) if resume else None
    loggers = _loggers(engine, out, place.epoch if place else 0)
    record = Record(config, loggers, out, progress)
    if place:
        record.restore(place.record)
    # In batches of each process, as Lightning counts.
    begin = (place.epoch, place.step * engine.accumulate) if place else (0, 0)
    before = place.seconds if place else 0.0
    data.start = begin

    def place_now(epoch: int, step: int) -> Place:
        seconds = before + time.monotonic() - start
        return Place(epoch, step, seconds, identity, record.to_plain())

    task = FinetuneTask(model, config, steps=config.epochs * data.steps)
    result = task.result
    signals = Signals()
    keeper = Keeper(
        out, engine.checkpoint_every, engine.accumulate, begin, data.steps, place_now, signals
    )
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(reproducible(config.seed) if engine.deterministic else _own_randomness(config.seed))
        enter(_quiet_lightning())
        enter(signals.listening())
        enter(synchronized_batch_norm(model) if engine.sync_bn else nullcontext())
        trainer = lightning.Trainer(
            accelerator=engine.accelerator,
            devices=engine.devices,
            num_nodes=engine.num_nodes,
            strategy=engine.strategy,
            precision=_PRECISIONS[engine.precision],
            max_epochs=config.epochs - begin[0],
            accumulate_grad_batches=engine.accumulate,
            gradient_clip_val=config.clip_grad,
            logger=False,  # the record has them: Lightning would count steps from a resume on
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                _SameRun([begin, identity]),
                _StepSeed(config.seed, begin),
                *([ProgressBar(config.epochs, data, begin)] if bar else []),
                *callbacks,
                record,
                keeper,
            ],
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        # Lightning's handler of SIGTERM would stop before there is a checkpoint, and call the other
        # processes in the middle of whatever they are at.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        model.train()
        if engine.channels_last:
            model.to(memory_format=torch.channels_last)
        if engine.compile:
            model.compile()
        if begin[0] < config.epochs:
            checkpoint = None if place is None else out / CHECKPOINT  # type: ignore[operator]
            trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
        elif place is not None:  # it was cut after its last epoch
            task.load_state_dict(read_checkpoint(out / CHECKPOINT)["state_dict"])  # type: ignore[operator]
    task.cpu().to(dtype)
    if result is not model:
        model.load_state_dict(result.state_dict())
    if engine.channels_last:
        model.to(memory_format=torch.contiguous_format)
    model.eval()
    return FitResult(
        config=config,
        history=tuple(record.history),
        unreadable=record.unreadable,
        seconds=before + time.monotonic() - start,
        images_per_second=record.images / max(1e-9, record.training_seconds),
        processes=engine.processes,
        batch_norm=(
            "synchronised"
            if engine.sync_bn
            else "of each process"
            if engine.processes > 1
            else "of one process"
        ),
    )


_PRECISIONS: dict[str, Any] = {
    "32": "32-true",
    "64": "64-true",
    "bf16-mixed": "bf16-mixed",
    "16-mixed": "16-mixed",
}


def _check_engine(config: TrainConfig, engine: EngineConfig) -> None:
    """Say now what Lightning would say late or in other words."""
    parts = engine.processes * engine.accumulate
    if config.batch_size % parts:
        raise TrainingError(
            f"Expected batch_size to divide over {engine.processes} processes x "
            f"{engine.accumulate} accumulations, but got {config.batch_size}: give a multiple of "
            f"{parts}."
        )
    if (config.mixup or config.cutmix) and config.batch_size // parts % 2:
        raise TrainingError(
            f"Expected an even batch in each process for Mixup and CutMix, but "
            f"{config.batch_size} images over {parts} parts give {config.batch_size // parts}."
        )
    gpus = torch.cuda.device_count()
    on_cpu = engine.accelerator == "cpu" or not gpus
    if engine.processes > 1 and hasattr(sys, "ps1"):
        raise TrainingError(
            "Expected one process where Python is interactive, for others run the program from its "
            f"start, but got {engine.processes}: write a script, or take one device."
        )
    if engine.precision == "16-mixed" and on_cpu:
        raise TrainingError(
            "Expected a GPU for precision 16-mixed, but the run is on a CPU: take bf16-mixed or 32."
        )
    if engine.devices > gpus and (engine.accelerator == "gpu" or not on_cpu):
        raise TrainingError(
            f"Expected {engine.devices} GPUs, but this machine has {gpus}: lower --engine.devices "
            "or take --engine.accelerator cpu."
        )


def _loggers(engine: EngineConfig, out: Path | None, epochs: int) -> list[Logger]:
    """TensorBoard's and W&B's."""
    loggers: list[Logger] = []
    if out is None:
        return loggers
    if engine.tensorboard:
        loggers.append(
            TensorBoardLogger(out, name="", version="tensorboard", purge_step=epochs + 1)
        )
    if engine.wandb is not None:
        if find_spec("wandb") is None:
            raise TrainingError(
                "Expected wandb to be installed for --engine.wandb, but it is not: pip install "
                "wandb, or leave the option out."
            )
        loggers.append(
            WandbLogger(
                project=engine.wandb,
                name=out.name,
                save_dir=out,
                id="-".join(out.resolve().parts[-3:]),
            )
        )
    return loggers


class _SameRun(lightning.Callback):
    """Sees before anything begins that all processes are about to do the same."""

    def __init__(self, what: Any) -> None:
        self.digest = zlib.crc32(repr(what).encode())

    def setup(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        if trainer.world_size > 1:
            found: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(found, self.digest)
            if len(set(found)) > 1:
                raise TrainingError(
                    f"Expected {trainer.world_size} processes with the same images, options and "
                    "checkpoint, but they differ: see that all machines read the same --out and "
                    "--data.root."
                )


class _StepSeed(lightning.Callback):
    """Seeds each step by the seed, the step and the process alone, for what is random in a step:
    Mixup, stochastic depth, dropout."""

    def __init__(self, seed: int, start: tuple[int, int]) -> None:
        self.seed, self.start = seed, start

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        epoch, index = at(self.start, trainer.current_epoch, batch_idx)
        entropy = [self.seed, epoch, index, trainer.global_rank]
        seeds = np.random.SeedSequence(entropy).generate_state(3)
        random.seed(int(seeds[0]))
        np.random.seed(seeds[1])
        torch.manual_seed(int(seeds[2]))


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seeded inside; the random states of PyTorch, NumPy and Python return after."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeded, with PyTorch's deterministic algorithms; random states and settings return after.

    An operation that has no deterministic form raises RuntimeError.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with _own_randomness(seed):
        try:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace or ":4096:8"  # CUDA asks for it
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark
            if workspace is None:
                del os.environ["CUBLAS_WORKSPACE_CONFIG"]


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning without its notes on hardware, its tips, its advice to use more workers, and a
    warning of PyTorch's that is about Lightning's own code."""
    loggers = [
        logging.getLogger(f"lightning.{part}")
        for part in ("pytorch", "pytorch.utilities.rank_zero", "fabric")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message="Found .* in eval mode at the start")  # averages
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
