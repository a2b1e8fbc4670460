"""What a run keeps: the last good checkpoint, whatever happens after it."""

from __future__ import annotations

import errno
import math
import os
import re
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tcnn import TCNNError, keeping
from tcnn.files import clear_leftovers
from tcnn.keeping import Stopped, TrainingError, check_space, read_place
from tcnn.train_config import TrainConfig
from training import QUIET, At, batches, cnn, trained

RECIPE = TrainConfig(epochs=2, batch_size=8, lr=1e-2)
ENGINE = replace(QUIET, checkpoint_every=2)


class Spoilt(nn.Module):
    """A network whose scores are multiplied in one training step, from 1 on."""

    def __init__(self, step: int, factor: float) -> None:
        super().__init__()
        self.net, self.left, self.factor = cnn(), step, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= self.training
        scores: torch.Tensor = self.net(x)
        return scores * self.factor if self.training and self.left == 0 else scores


def run(out: Path, model: nn.Module, accumulate: int = 1, **options: Any) -> None:
    engine = replace(ENGINE, accumulate=accumulate)
    trained(model, RECIPE, batches(40, 8, 8, accumulate=accumulate), engine, out=out, **options)


def place(out: Path) -> tuple[int, int]:
    found = read_place(out, torch.load(out / "last.ckpt", weights_only=True)["tcnn"]["identity"])
    assert found is not None
    return found.epoch, found.step


@pytest.mark.parametrize("factor", [math.nan, 1e6])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_no_number(tmp_path: Path, factor: float, accumulate: int) -> None:
    model = Spoilt(4 * accumulate, factor)  # the fourth step of five
    with pytest.raises(TrainingError, match="the loss of step 4 is not a usable number") as error:
        run(tmp_path, model, accumulate)
    text = str(error.value)
    assert str(tmp_path / "last.ckpt") in text
    rate = 1e-2 * 0.5 * (1 + math.cos(0.4 * math.pi))  # after four of ten steps
    assert float(re.findall(r"learning rate is (\S+)\. ", text)[0]) == pytest.approx(rate, rel=5e-3)
    assert place(tmp_path) == (0, 2)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())
    run(tmp_path, Spoilt(-1, 1.0), accumulate, resume=True)  # and it can be gone on from
    assert place(tmp_path) == (2, 0)


def test_the_first_of_the_losses_since_the_last_look_is_named() -> None:
    """On a GPU the losses of ten steps are looked at together."""
    keeper = keeping.Keeper(None, 100, 2, (0, 0), 100, lambda *_: None, keeping.Signals())  # type: ignore[arg-type, return-value]
    trainer = type("T", (), {"lightning_module": type("M", (), {"model": cnn()})})
    keeper.losses = [torch.tensor(x) for x in (1.0, 1.0, 1.0, math.inf, math.nan, 1.0)]
    assert keeper._bad_step(trainer, 10) == 9  # type: ignore[arg-type]
    assert keeper.losses == []


@pytest.mark.parametrize("save", ["due", "at the end of an epoch", "on a signal"])
def test_a_weight_that_is_no_number_is_never_saved(tmp_path: Path, save: str) -> None:
    def spoil(trainer: Any, module: Any, *_: object) -> None:
        with torch.no_grad():
            module.model[8].weight[0, 0] = math.nan
        if save == "on a signal":
            os.kill(os.getpid(), 15)

    step = {"due": 4, "at the end of an epoch": 5, "on a signal": 3}[save]
    with pytest.raises(TrainingError, match="a weight is not a usable number; the learning"):
        run(tmp_path, cnn(), callbacks=(At("on_train_batch_end", step, spoil),))
    assert place(tmp_path) == (0, 4 if step == 5 else 2)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_no_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="The last good checkpoint is none"):
        run(tmp_path, Spoilt(1, math.nan))
    assert read_place(tmp_path, {}) is None


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")]
)
def test_a_disk_that_fills_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run(tmp_path, cnn(), callbacks=(At("on_train_start", 1, lambda *_: None),))
    before = (tmp_path / "last.ckpt").read_bytes()

    def half(content: Any, file: Path) -> None:
        file.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(TrainingError, match=r"it says: .*; the one before it is whole") as raised:
        run(tmp_path, cnn())
    assert "\n" not in str(raised.value)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert not list(tmp_path.glob(".writing-*"))
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(TrainingError, match="there was none before"):
        run(tmp_path, cnn())


def test_room_is_looked_for_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    model = nn.Linear(249_999, 1, dtype=torch.float32)  # a megabyte
    for average, copies in ((False, 9), (True, 11)):
        config = TrainConfig(model_ema=average)
        monkeypatch.setattr("shutil.disk_usage", lambda _, n=copies: usage(0, 0, n * 10**6))
        check_space(tmp_path, model, config)
        monkeypatch.setattr("shutil.disk_usage", lambda _, n=copies: usage(0, 0, n * 10**6 - 1))
        with pytest.raises(TrainingError, match=r"Expected (9|11)\.0 MB free"):
            check_space(tmp_path, model, config)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, 0))
    with pytest.raises(TrainingError, match="MB free"):
        run(tmp_path, cnn(), callbacks=(At("on_train_start", 1, pytest.fail),))


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TCNNError, match="folder that can be written to"):
        run(tmp_path / "file" / "below", cnn(), callbacks=(At("on_train_start", 1, pytest.fail),))


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "other", "tensor", "evil", "old evil"])
def test_damaged_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run", cnn())
    file = tmp_path / "run" / "last.ckpt"
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        file.write_text("no checkpoint")
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "other":
        torch.save({"state_dict": {}}, file)
    elif damage == "tensor":  # one bit
        weight = torch.load(file, weights_only=True)["state_dict"]["model.3.weight"]
        content[content.index(weight.numpy().tobytes())] ^= 1
        file.write_bytes(content)
    else:
        torch.save(Evil(), file, _use_new_zipfile_serialization=damage == "evil")
    before = file.read_bytes()
    with pytest.raises(TrainingError, match=r"it cannot be read .*: move it away") as error:
        run(tmp_path / "run", cnn(), resume=True)
    assert "\n" not in str(error.value)
    assert file.read_bytes() == before
    assert not (tmp_path / "evil").exists()


def test_leftovers_of_writes_that_were_killed_go(tmp_path: Path) -> None:
    for name in (".writing-abc", ".saving-abc", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    clear_leftovers(tmp_path)
    clear_leftovers(tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_what_is_said_on_a_signal() -> None:
    kept = "stopped by SIGTERM; the run is kept in runs/a/last.ckpt"
    assert str(Stopped(15, Path("runs/a/last.ckpt"))) == kept
    assert str(Stopped(2, None)) == "stopped by SIGINT; nothing is kept"


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_the_first_process(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(other, raising=False)
    assert keeping.is_first_process(2)
    monkeypatch.setenv(name, "0")
    assert keeping.is_first_process(2)
    monkeypatch.setenv(name, "1")
    assert keeping.is_first_process(1)  # alone, whatever a launcher numbers it
    assert not keeping.is_first_process(2)
