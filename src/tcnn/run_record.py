"""What a run of training tells as it goes: figures by epoch, gates, and images not read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from tcnn.files import write_text
from tcnn.images import DataError
from tcnn.layers import gpsa_layers
from tcnn.tables import csv_text, text_table
from tcnn.train_config import TrainConfig


@dataclass(frozen=True)
class EpochResult:
    """Figures of one epoch: training as the mean over its images, validation at its end.

    Attributes:
        content_share: 1 - g of each head, by recast layer, at the end of the epoch.
    """

    epoch: int
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    content_share: dict[str, list[float]] = field(default_factory=dict)

    @property
    def mean_content_share(self) -> float | None:
        """Mean of |1 - g| over all heads; None without recast layers."""
        shares = [abs(share) for layer in self.content_share.values() for share in layer]
        return sum(shares) / len(shares) if shares else None

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {**asdict(self), "mean_content_share": self.mean_content_share}


@dataclass(frozen=True)
class FitResult:
    """What a run of `fit` measured.

    Attributes:
        config: its recipe.
        history: one entry for each epoch.
        unreadable: images that could not be read, with the reason of each.
        seconds: how long it took, over all times that it was resumed.
        images_per_second: training images by the time of training alone, without validation.
        processes: how many processes shared the work.
        batch_norm: "synchronised", "of each process" or "of one process".
    """

    config: TrainConfig
    history: tuple[EpochResult, ...]
    unreadable: dict[str, str]
    seconds: float
    images_per_second: float
    processes: int
    batch_norm: str

    @property
    def last(self) -> EpochResult:
        """The last epoch, whose weights the model now has."""
        return self.history[-1]

    @property
    def best(self) -> EpochResult:
        """The epoch of the highest validation accuracy, the first of those alike."""
        return max(self.history, key=lambda epoch: epoch.val_top1)

    def table(self) -> str:
        """One row for each epoch."""
        return text_table(
            ("epoch", "train loss", "train top-1 %", "val loss", "val top-1 %", "|content share|"),
            [
                (
                    e.epoch,
                    e.train_loss,
                    round(100 * e.train_top1, 2),
                    e.val_loss,
                    round(100 * e.val_top1, 2),
                    e.mean_content_share,
                )
                for e in self.history
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """The run as plain data."""
        return {**asdict(self), "history": [epoch.to_json() for epoch in self.history]}


def history_csv(history: tuple[EpochResult, ...]) -> str:
    """One line for each epoch."""
    names = ("epoch", "train_loss", "train_top1", "val_loss", "val_top1", "mean_content_share")
    return csv_text(names, [[getattr(epoch, name) for name in names] for epoch in history])


def gates_csv(history: tuple[EpochResult, ...]) -> str:
    """One line for each epoch, layer and head."""
    rows = [
        (epoch.epoch, layer, head, 1 - share, share)
        for epoch in history
        for layer, shares in epoch.content_share.items()
        for head, share in enumerate(shares)
    ]
    return csv_text(("epoch", "layer", "head", "gate", "content_share"), rows)


class Record(Checkpoint):  # so that it comes after the task at the end of an epoch
    """Keeps the figures of each epoch, and writes them.

    Args:
        config: the recipe.
        loggers: where else to log to.
        out: folder for history.csv and gates.csv; None writes nothing.
        progress: called with one line for each epoch.
    """

    def __init__(
        self,
        config: TrainConfig,
        loggers: Sequence[Logger],
        out: Path | None,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.config, self.loggers, self.out, self.progress = config, loggers, out, progress
        self.history: list[EpochResult] = []
        self.unreadable: dict[str, str] = {}
        self.images = 0  # trained on, by all processes
        self.training_seconds = 0.0
        self._since = 0.0

    def to_plain(self) -> dict[str, Any]:
        """What the record holds, as plain data, for a checkpoint."""
        self._stop_clock()
        self._since = time.monotonic()
        self._share_unreadable()
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "unreadable": dict(self.unreadable),
            "images": self.images,
            "training_seconds": self.training_seconds,
        }

    def restore(self, plain: dict[str, Any]) -> None:
        """Go on from what `to_plain` gave."""
        self.history = [EpochResult(**epoch) for epoch in plain["history"]]
        self.unreadable = dict(plain["unreadable"])
        self.images = plain["images"]
        self.training_seconds = plain["training_seconds"]

    def _stop_clock(self) -> None:
        if self._since:
            self.training_seconds += time.monotonic() - self._since
        self._since = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self._since = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.images += len(batch[1]) * trainer.world_size
        self._note_unreadable(batch)

    def on_validation_start(self, *_: Any) -> None:
        self._stop_clock()

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._note_unreadable(batch)

    def _note_unreadable(self, batch: Any) -> None:
        self.unreadable |= dict(batch[2]) if len(batch) > 2 else {}

    def _share_unreadable(self) -> None:
        """What any process could not read, in all of them."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, self.unreadable)
            self.unreadable = {name: why for part in gathered for name, why in part.items()}

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if "val_loss" not in trainer.callback_metrics:
            name, reason = next(iter(self.unreadable.items()), ("in another process", "see there"))
            raise DataError(
                "Expected validation images that can be read, but not one can; the first is "
                f"{name!r}: {reason}."
            )

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        names = ("train_loss", "train_top1", "val_loss", "val_top1")
        figures = {name: float(trainer.callback_metrics[name]) for name in names}
        shares = {
            name: layer.content_share.detach().tolist()
            for name, layer in gpsa_layers(pl_module.result).items()
        }
        epoch = EpochResult(len(self.history) + 1, **figures, content_share=shares)
        self.history.append(epoch)
        self._share_unreadable()
        if trainer.is_global_zero:
            self._tell(epoch)

    def _tell(self, epoch: EpochResult) -> None:
        for logger in self.loggers:
            logger.log_metrics(
                {
                    **{k: v for k, v in asdict(epoch).items() if isinstance(v, float)},
                    **{
                        f"content_share/{name}": sum(map(abs, shares)) / len(shares)
                        for name, shares in epoch.content_share.items()
                    },
                },
                step=epoch.epoch,
            )
            logger.save()
        if self.out is not None:
            history = tuple(self.history)
            write_text(self.out / "history.csv", history_csv(history))
            write_text(self.out / "gates.csv", gates_csv(history))
        if self.progress:
            share = epoch.mean_content_share
            self.progress(
                f"epoch {epoch.epoch:>{len(str(self.config.epochs))}}/{self.config.epochs}: "
                f"train loss {epoch.train_loss:.3f}, validation top-1 {epoch.val_top1:.1%}"
                + ("" if share is None else f", mean |content share| {share:.3f}")
            )

    def teardown(self, *_: Any, **__: Any) -> None:
        for logger in self.loggers:
            logger.finalize("success")

    def on_exception(self, *_: Any) -> None:
        for logger in self.loggers:
            logger.finalize("failed")
