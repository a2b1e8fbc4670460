"""Fine-tuning: `TrainConfig`, the Lightning task that obeys it, and `fit`, one run of it."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tcnn import metrics
from tcnn.files import make_folder, write_json
from tcnn.layers import gpsa_layers
from tcnn.tables import text_table


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A recipe; the names are those of timm's `train.py`.

    Raises:
        ValueError: an option is outside its range; the message names it.
    """

    epochs: int = 50
    """Passes over the training images."""

    batch_size: int = 128
    """Images in a step, for whoever builds the loader."""

    opt: Literal["adamw"] = "adamw"
    """Optimiser."""

    lr: float = 5e-4
    """Highest learning rate."""

    weight_decay: float = 0.05
    """Decay of the weights; norms, biases, gates and positions are never decayed."""

    gate_lr_scale: float = 1.0
    """Learning rate of the gates, in units of `lr`."""

    sched: Literal["cosine"] = "cosine"
    """Learning rate after the warm-up: half a cosine down to 0, step by step."""

    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""

    smoothing: float = 0.0
    """Label smoothing of the training loss."""

    seed: int = 0
    """Of everything random in a run but the loaders, which have their own."""

    def __post_init__(self) -> None:
        _check("opt", self.opt, self.opt == "adamw", "'adamw'")
        _check("sched", self.sched, self.sched == "cosine", "'cosine'")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            _check(name, value, isinstance(value, int) and value >= 1, "a whole number from 1 up")
        _check("lr", self.lr, 0 < self.lr < math.inf, "above 0")
        for name in ("weight_decay", "gate_lr_scale"):
            value = getattr(self, name)
            _check(name, value, 0 <= value < math.inf, "0 or more")
        fits = 0 <= self.warmup_epochs <= self.epochs
        _check("warmup_epochs", self.warmup_epochs, fits, f"from 0 to epochs ({self.epochs})")
        _check("smoothing", self.smoothing, 0 <= self.smoothing < 1, "in [0, 1)")


class FinetuneTask(lightning.LightningModule):
    """Classification with a `TrainConfig`, for any Lightning `Trainer`.

    Logs train_loss, train_top1, val_loss and val_top1 by epoch. The schedule spans the run of the
    trainer it is given to, and the warm-up keeps its share of it.

    Args:
        model: maps (B, C, H, W) to class scores (B, K); trained in place.
        config: the recipe.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step("train", batch, self.config.smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step("val", batch, 0.0)

    def _step(self, stage: str, batch: tuple[Tensor, Tensor], smoothing: float) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        top1 = metrics.correct(logits, labels).float().mean()
        self.log_dict(
            {f"{stage}_loss": loss.detach(), f"{stage}_top1": top1},
            on_step=False,
            on_epoch=True,
            batch_size=len(labels),
            sync_dist=True,
        )
        return loss

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.model, self.config)
        optimizer = torch.optim.AdamW(groups, lr=self.config.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(steps * self.config.warmup_epochs / self.config.epochs)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, warmup)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear from 1/`warmup` to 1, then ½ (1 + cos πt) with t from 0 to 1 at the end of the run.

    Args:
        step: steps taken so far.
        steps: steps of the run.
        warmup: steps of the warm-up.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Trainable parameters in three groups, for a `torch.optim` optimiser.

    "decayed": weights of more than one dimension. "plain": biases, norms and positions (`v_pos`),
    without weight decay. "gates": the `gating_param` of every `GPSA2d`, without weight decay, at
    `lr` x `gate_lr_scale`. Empty groups are left out.
    """
    layers = gpsa_layers(model).values()
    gates = {layer.gating_param for layer in layers}
    positions = {layer.v_pos for layer in layers if layer.config.positions == "learned"}
    members: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": [], "gates": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            plain = parameter.dim() < 2 or parameter in positions
            group = "gates" if parameter in gates else "plain" if plain else "decayed"
            members[group].append(parameter)
    rates = {"gates": config.lr * config.gate_lr_scale}
    return [
        {
            "name": name,
            "params": parameters,
            "lr": rates.get(name, config.lr),
            "weight_decay": config.weight_decay if name == "decayed" else 0.0,
        }
        for name, parameters in members.items()
        if parameters
    ]


@dataclass(frozen=True)
class EpochResult:
    """Figures of one epoch: training as the mean over its steps, validation at its end."""

    epoch: int
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float


@dataclass(frozen=True)
class FitResult:
    """What a run of `fit` measured.

    Attributes:
        config: its recipe.
        history: one entry for each epoch.
        seconds: how long it took.
    """

    config: TrainConfig
    history: tuple[EpochResult, ...]
    seconds: float

    @property
    def last(self) -> EpochResult:
        """The last epoch, whose weights the model now has."""
        return self.history[-1]

    def table(self) -> str:
        """One row for each epoch."""
        return text_table(
            ("epoch", "train loss", "train top-1 %", "val loss", "val top-1 %"),
            [
                (e.epoch, e.train_loss, 100 * e.train_top1, e.val_loss, 100 * e.val_top1)
                for e in self.history
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """The run as plain data."""
        return asdict(self)


def fit(
    model: nn.Module,
    train_loader: DataLoader[Any],
    val_loader: DataLoader[Any],
    config: TrainConfig,
    *,
    out: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> FitResult:
    """Train a model in place, on one GPU if there is one; it ends on the CPU, in eval mode.

    The same model, loaders and recipe give the same weights when run twice on the same machine
    with as many threads.

    Args:
        model: maps (B, C, H, W) to class scores (B, K).
        train_loader, val_loader: batches of images and labels.
        config: the recipe; its `batch_size` is the loader's business.
        out: folder for history.json; None writes nothing.
        progress: called with one line for each epoch.
    """
    start = time.monotonic()
    record = _Record(config.epochs, progress)
    with reproducible(config.seed), _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=config.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[record],
        )
        model.train()
        trainer.fit(FinetuneTask(model, config), train_loader, val_loader)
    model.cpu().eval()
    result = FitResult(config, tuple(record.history), time.monotonic() - start)
    if out is not None:
        make_folder(out)
        write_json(out / "history.json", result.to_json())
    return result


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeded, with PyTorch's deterministic algorithms; random states and settings return after.

    An operation that has no deterministic form raises RuntimeError.
    """
    devices = range(torch.cuda.device_count())
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with torch.random.fork_rng(devices):
        try:
            torch.manual_seed(seed)
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace or ":4096:8"  # CUDA asks for it
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark
            if workspace is None:
                del os.environ["CUBLAS_WORKSPACE_CONFIG"]


class _Record(lightning.Callback):
    """Keeps the figures of each epoch, and reports them."""

    def __init__(self, epochs: int, progress: Callable[[str], None] | None) -> None:
        self.epochs = epochs
        self.progress = progress
        self.history: list[EpochResult] = []

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epoch = EpochResult(trainer.current_epoch + 1, **figures)
        self.history.append(epoch)
        if self.progress:
            self.progress(
                f"epoch {epoch.epoch:>{len(str(self.epochs))}}/{self.epochs}: "
                f"train loss {epoch.train_loss:.3f}, validation top-1 {epoch.val_top1:.1%}"
            )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning without its notes on hardware, its tips, its advice to use more workers, and a
    warning of PyTorch's that is about Lightning's own code."""
    loggers = [
        logging.getLogger(f"lightning.{part}")
        for part in ("pytorch", "pytorch.utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _check(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"Expected `{name}` to be {wanted}, but got {value!r}.")
