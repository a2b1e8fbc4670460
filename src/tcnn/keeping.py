"""Nothing is lost: checkpoints in the middle of an epoch, whole or not at all; signals; a loss that
is no number.

A checkpoint is Lightning's own (weights, optimiser, schedule, loss scale) without the state of its
loops, and with the place in the run: a run that goes on is, to Lightning, a shorter run.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from tcnn.errors import TCNNError
from tcnn.files import write_whole
from tcnn.train_config import TrainConfig

CHECKPOINT = "last.ckpt"
_PLACE = "tcnn"  # key of a checkpoint
_EXPLODED = 100  # times the loss of a uniform guess, ln K
_LOOK_EVERY = 10  # steps, on devices where looking makes them wait


class TrainingError(TCNNError):
    """Training cannot begin, or cannot go on; the message says why and what to do."""


class Stopped(Exception):
    """A signal ended the run, after a checkpoint.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int, checkpoint: Path | None) -> None:
        super().__init__(number, checkpoint)  # both, so that it comes out of a process whole
        self.number, self.checkpoint = number, checkpoint

    def __str__(self) -> str:
        kept = f"the run is kept in {self.checkpoint}" if self.checkpoint else "nothing is kept"
        return f"stopped by {signal.Signals(self.number).name}; {kept}"


@dataclass(frozen=True)
class Place:
    """Where a run is, and what it has told so far.

    Attributes:
        epoch: epochs done.
        step: steps of the optimiser done of the next one.
        seconds: time taken so far.
        identity: what must be the same for the run to go on, as plain data.
        record: what the record of the run holds, as plain data.
    """

    epoch: int
    step: int
    seconds: float
    identity: dict[str, Any]
    record: dict[str, Any]


def read_place(folder: Path, identity: dict[str, Any]) -> Place | None:
    """The place of the run in a folder; None where there is no checkpoint.

    Raises:
        TrainingError: the checkpoint is damaged, or of another run; the message names what differs.
    """
    file = folder / CHECKPOINT
    if not file.is_file():
        return None
    place = Place(**read_checkpoint(file, mmap=True)[_PLACE])
    if differs := list(_differences(place.identity, identity)):
        more = f" and {len(differs) - 3} more" if len(differs) > 3 else ""
        raise TrainingError(
            f"Expected the run in {str(folder)!r} to go on as it began, but it differs in "
            f"{', '.join(differs[:3])}{more}: resume with the same options, or give another --out."
        )
    return place


def _differences(then: Any, now: Any, name: str = "") -> Iterator[str]:
    """What two nests of dictionaries do not have in common, for people."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            yield from _differences(then.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif then != now:
        yield f"{name} ({str(then)[:60]} then, {str(now)[:60]} now)"


def read_checkpoint(file: Path, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint, read without running code; `mmap` leaves the tensors on the disk.

    Raises:
        TrainingError: it is damaged, or not of a run.
    """
    try:
        with zipfile.ZipFile(file) as archive:  # PyTorch's reader does not look at the check sums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        content[_PLACE]
    except Exception as error:  # a damaged file can make the reader raise anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise TrainingError(
            f"Expected a checkpoint of a run in {str(file)!r}, but it cannot be read ({reason}): "
            "move it away to start anew."
        ) from error
    return content


def check_space(folder: Path, model: nn.Module, config: TrainConfig) -> None:
    """See that the disk has room for the checkpoints of a run.

    A checkpoint holds the weights, two moments of each at the most, and their average if there is
    one; the next is written before the last goes; the network is saved twice (last and best).

    Raises:
        TrainingError: it has not.
    """
    tensors = [*model.parameters(), *model.buffers()]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    needed = weights * (2 * (3 + config.model_ema) + 3)
    kept = [*folder.glob("*.ckpt"), *folder.rglob("*.safetensors")]  # of this run, to be replaced
    free = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in kept)
    if free < needed:
        raise TrainingError(
            f"Expected {needed / 1e6:,.1f} MB free for checkpoints in {str(folder)!r}, but the "
            f"disk has {free / 1e6:,.1f} MB: make room, or give another --out."
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there, read without running code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        file = Path(path)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, partial(torch.save, checkpoint))
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError to PyTorch
            kept = "the one before it is whole" if file.exists() else "there was none before"
            raise TrainingError(
                f"Expected to write the checkpoint {str(file)!r}, but it says: {error}; {kept}."
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class Keeper(Checkpoint):
    """Writes checkpoints, ends the run on a signal, and stops it on a loss that is no number.

    Args:
        folder: of the checkpoint; None keeps none.
        every: steps between checkpoints within an epoch.
        accumulate: batches in a step.
        start: epoch and batch that the run begins with.
        steps: steps in an epoch.
        place: tells the place of the run for an epoch and a step in it.
        signals: what has been asked for.
    """

    def __init__(
        self,
        folder: Path | None,
        every: int,
        accumulate: int,
        start: tuple[int, int],
        steps: int,
        place: Callable[[int, int], Place],
        signals: Signals,
    ) -> None:
        self.file = None if folder is None else folder / CHECKPOINT
        self.every, self.accumulate, self.start, self.steps = every, accumulate, start, steps
        self.place, self.signals = place, signals
        self.losses: list[Tensor] = []
        self.bad_loss: float | None = None  # of this process
        self.saving: Place | None = None

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.losses.append(outputs["loss"].detach() * self.accumulate)  # Lightning divides it
        epoch, done = at(self.start, trainer.current_epoch, batch_idx + 1)
        if done % self.accumulate:
            return
        in_epoch = done // self.accumulate
        step = epoch * self.steps + in_epoch
        last = in_epoch == self.steps
        due = step % self.every == 0 and not last  # an epoch ends with one after validation
        looks = pl_module.device.type == "cpu" or step % _LOOK_EVERY == 0
        if not (due or last or looks):
            return
        stop = self._agree(trainer, self._bad_step(trainer, step), due)
        if (due or stop) and not last:
            self._save(trainer, epoch, in_epoch)
        if stop and not last:
            raise Stopped(stop, self.file)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        stop = self._agree(trainer, 0, True)
        epoch, _ = at(self.start, trainer.current_epoch, 0)
        self._save(trainer, epoch + 1, 0)
        if stop:
            raise Stopped(stop, self.file)

    def _bad_step(self, trainer: lightning.Trainer, step: int) -> int:
        """The first step since the last look whose loss exploded; 0 if none did."""
        losses = torch.stack(self.losses).tolist()
        self.losses.clear()
        for before, loss in zip(reversed(range(len(losses))), losses, strict=True):
            if not math.isfinite(loss) or loss > _EXPLODED * math.log(max(2, _classes(trainer))):
                self.bad_loss = loss
                return step - before // self.accumulate
        return 0

    def _agree(self, trainer: lightning.Trainer, bad_step: int, saves: bool) -> int:
        """The signal that any process got, or 0; raises in all of them if any has a bad step."""
        signal = self.signals.received
        broken = (saves or signal != 0) and not bad_step and not _finite(trainer)
        mine = torch.tensor([signal, bad_step, int(broken)])
        if trainer.world_size > 1:
            mine = mine.to(trainer.strategy.root_device)
            torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
        stop, bad, broken_anywhere = mine.tolist()
        if bad or broken_anywhere:
            self._fail(trainer, bad)
        return int(stop)

    def _fail(self, trainer: lightning.Trainer, step: int) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        what = f"the loss of step {step}" if step else "a weight"
        value = "" if self.bad_loss is None else f" ({self.bad_loss:.3g})"
        kept = self.file if self.file is not None and self.file.exists() else None
        raise TrainingError(
            f"Expected training to stay finite, but {what} is not a usable number{value}; the "
            f"learning rate is {rate:.3g}. The last good checkpoint is {kept or 'none'}. Start "
            "again with a lower --train.lr, a longer --train.warmup_epochs or --train.clip_grad."
        )

    def _save(self, trainer: lightning.Trainer, epoch: int, step: int) -> None:
        if self.file is not None:
            self.saving = self.place(epoch, step)
            trainer.save_checkpoint(self.file)
            self.saving = None

    def on_save_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        if self.saving is not None:  # not another callback's checkpoint
            del checkpoint["loops"]
            checkpoint[_PLACE] = self.saving.__dict__


def at(start: tuple[int, int], epochs: int, batches: int) -> tuple[int, int]:
    """Epoch and batch of the whole run, from where it began and what was counted since."""
    return start[0] + epochs, batches + (start[1] if epochs == 0 else 0)


class Signals:
    """What has been asked of the process.

    Attributes:
        received: number of the first signal; 0 while there is none.
    """

    def __init__(self) -> None:
        self.received = 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:  # asked twice: at once
            raise SystemExit(128 + number)
        self.received = number

    @contextmanager
    def listening(self) -> Iterator[Signals]:
        """SIGINT and SIGTERM are noted inside; a second one ends the program there and then. One
        that the process ignores stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _finite(trainer: lightning.Trainer) -> bool:
    """Whether all parameters are finite and all buffers numbers (a mask may hold infinities)."""
    task = trainer.lightning_module
    with torch.no_grad():
        return all(bool(p.isfinite().all()) for p in task.parameters()) and not any(
            bool(b.isnan().any()) for b in task.buffers() if b.is_floating_point()
        )


def _classes(trainer: lightning.Trainer) -> int:
    return int(getattr(trainer.lightning_module.model, "num_classes", 0) or 1000)


def is_first_process(processes: int) -> bool:
    """Whether this process is the one that writes and speaks, also before a trainer is there.

    Args:
        processes: how many share the run; one alone is the first, whatever its launcher calls it.
    """
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return processes == 1 or all(os.environ.get(name, "0") == "0" for name in ranks)
