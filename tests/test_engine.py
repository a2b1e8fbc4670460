"""`fit`: a run that is cut anywhere and resumed is the run that was not cut, to the bit."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tcnn import GPSAConfig, TCNNError
from tcnn.engine import fit, reproducible
from tcnn.keeping import Stopped, TrainingError
from tcnn.loaders import ImageData
from tcnn.progress import say
from tcnn.run_record import FitResult
from tcnn.train_config import EngineConfig, TrainConfig
from training import QUIET, At, bars, batches, cnn, hybrid, kept, same, trained

# Everything that is random, averaged or carried along: 3 steps, 6 batches of 4 images an epoch.
RECIPE = TrainConfig(
    epochs=2, batch_size=8, lr=1e-2, gate_lr_scale=5, mixup=0.2, cutmix=1.0, warmup_epochs=1,
    model_ema=True, model_ema_decay=0.9, distill=0.3,
)  # fmt: skip
ENGINE = replace(QUIET, accumulate=2, checkpoint_every=1)
STEPS, BATCHES = 6, 12


def data() -> ImageData:
    return batches(28, 10, 8, accumulate=2, crop="pad", hflip=0.5, reprob=0.5)


def run(out: Path, engine: EngineConfig = ENGINE, **options: Any) -> tuple[nn.Module, FitResult]:
    """A run in a folder, from a state of the random numbers that is never the same."""
    torch.seed()
    model = hybrid(GPSAConfig(attn_drop=0.3, gate_init=0.7), dropout=0.2)
    return model, trained(model, RECIPE, data(), engine, out=out, **options)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, FitResult, dict[str, Any]]:
    out = tmp_path_factory.mktemp("uncut")
    model, result = run(out)
    assert all(share != pytest.approx(0.3) for share in result.last.content_share["3"])
    return model, result, kept(out)


class Cut(Exception):
    """What ends a run as a power cut would."""


def cut(*_: object) -> None:
    raise Cut


def terminate(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def begin_and_resume(out: Path, engine: EngineConfig, *cuts: Any) -> None:
    """Runs that end early, each resuming the one before."""
    for callback in cuts:
        with pytest.raises((Cut, Stopped)):
            run(out, engine, resume=True, callbacks=(callback,))


def as_uncut(out: Path, engine: EngineConfig, uncut: Any) -> None:
    model, result = run(out, engine, resume=True)
    same(dict(model.state_dict()), dict(uncut[0].state_dict()))
    assert result.history == uncut[1].history
    same(kept(out), uncut[2])


@pytest.mark.parametrize("batch", range(1, BATCHES + 1))
def test_terminated_at_any_batch(tmp_path: Path, uncut: Any, batch: int) -> None:
    engine = replace(ENGINE, checkpoint_every=100)  # so that the signal makes the checkpoint
    begin_and_resume(tmp_path, engine, At("on_train_batch_end", batch, terminate))
    as_uncut(tmp_path, engine, uncut)


@pytest.mark.parametrize(
    ("hook", "count"),
    [
        ("on_train_batch_start", 3), ("on_train_batch_end", 5), ("on_train_batch_end", 12),
        ("on_validation_batch_start", 2),
        ("on_validation_batch_start", 4), ("on_train_epoch_end", 1), ("on_train_epoch_end", 2),
        ("on_train_end", 1), ("on_validation_start", 1),
    ],
)  # fmt: skip
def test_cut_in_other_places(tmp_path: Path, uncut: Any, hook: str, count: int) -> None:
    engine = replace(ENGINE, checkpoint_every=2)  # so that some batches are done twice
    begin_and_resume(tmp_path, engine, At(hook, count, cut))
    as_uncut(tmp_path, engine, uncut)


@pytest.mark.parametrize("every", [1, 3])
def test_cut_again_and_again(tmp_path: Path, uncut: Any, every: int) -> None:
    engine = replace(ENGINE, checkpoint_every=every)
    begin_and_resume(
        tmp_path,
        engine,
        At("on_train_batch_end", 1, cut),  # before there is a checkpoint
        At("on_train_batch_end", 4, terminate),
        At("on_validation_batch_start", 1, terminate),  # kept at the end of the epoch
        At("on_train_batch_end", 5, cut),
        At("on_train_batch_start", 1, terminate),
    )
    as_uncut(tmp_path, engine, uncut)


def test_where_signals_leave_a_run(tmp_path: Path) -> None:
    def place(folder: str, hook: str, count: int, what: Callable[..., None]) -> tuple[int, int]:
        engine = replace(ENGINE, checkpoint_every=100)
        with pytest.raises(Stopped) as stopped:
            run(tmp_path / folder, engine, callbacks=(At(hook, count, what),))
        assert "last.ckpt" in str(stopped.value)
        assert stopped.value.number in (signal.SIGTERM, signal.SIGINT)
        found = torch.load(tmp_path / folder / "last.ckpt", weights_only=True)["tcnn"]
        return found["epoch"], found["step"]

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    assert place("first half of a step", "on_train_batch_end", 1, terminate) == (0, 1)
    assert place("second half", "on_train_batch_end", 4, interrupt) == (0, 2)
    assert place("last batch", "on_train_batch_end", 6, terminate) == (1, 0)
    assert place("validation", "on_validation_batch_start", 1, interrupt) == (1, 0)
    assert place("last of all", "on_train_batch_end", 12, terminate) == (2, 0)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_asked_twice_it_ends_at_once(tmp_path: Path) -> None:
    def twice(*_: object) -> None:
        terminate()
        terminate()

    with pytest.raises(SystemExit) as end:
        run(tmp_path, callbacks=(At("on_train_batch_end", 3, twice),))
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_without_a_folder_keeps_nothing() -> None:
    with pytest.raises(Stopped, match="SIGTERM; nothing is kept"):
        trained(cnn(), RECIPE, data(), ENGINE, callbacks=(At("on_train_batch_end", 2, terminate),))


def test_resuming_a_finished_run_gives_its_result(tmp_path: Path, uncut: Any) -> None:
    run(tmp_path)
    before = (tmp_path / "last.ckpt").stat().st_mtime_ns
    model, result = run(tmp_path, resume=True, callbacks=(At("on_train_start", 1, cut),))
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == before
    same(dict(model.state_dict()), dict(uncut[0].state_dict()))
    assert result.history == uncut[1].history
    assert not model.training


def test_resuming_where_there_is_nothing_begins(tmp_path: Path, uncut: Any) -> None:
    as_uncut(tmp_path / "new", ENGINE, uncut)


def test_a_resumed_run_may_accumulate_otherwise(tmp_path: Path) -> None:
    """Which images a step sees does not depend on how many at a time."""

    def seen(accumulate: int, *cuts: At) -> list[list[float]]:
        steps: list[list[float]] = []

        def note(trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if index % accumulate == 0:
                steps.append([])
            steps[-1] += batch[0].sum((1, 2, 3)).tolist()

        watch = At("on_train_batch_end", 0, None)
        watch.on_train_batch_end = note  # type: ignore[method-assign]
        data = batches(28, 10, 8, accumulate=accumulate, crop="pad")
        engine = replace(ENGINE, accumulate=accumulate)
        with contextlib.suppress(Stopped):
            fit(cnn(), data, PLAIN_RECIPE, engine, out=tmp_path, resume=True,
                callbacks=(watch, *cuts))  # fmt: skip
        return steps

    first = seen(2, At("on_train_batch_end", 4, terminate))
    rest = seen(1)
    assert (len(first), len(rest)) == (2, 4)
    (tmp_path / "last.ckpt").unlink()
    assert [sorted(step) for step in first + rest] == [sorted(step) for step in seen(4)]


PLAIN_RECIPE = TrainConfig(epochs=2, batch_size=8, lr=1e-2)


@pytest.mark.parametrize(
    ("model", "recipe", "options", "words"),
    [
        ("cnn", {"lr": 2e-2}, {}, r"train\.lr \(0.01 then, 0.02 now\)"),
        ("cnn", {"epochs": 3}, {}, r"train\.epochs \(1 then, 3 now\)"),
        ("cnn", {}, {"reprob": 0.1}, r"images\.config\.reprob \(0.0 then, 0.1 now\)"),
        ("cnn", {}, {"train": 32}, r"images\.train \(\[16, .* then, \[32, "),
        ("other", {}, {}, r"model \(CNN then, other now\)"),
        ("other", {"opt": "sgd", "lr": 1.0, "mixup": 1.0}, {}, "and 1 more: resume"),
    ],
)
def test_another_run_is_not_resumed(
    tmp_path: Path, model: str, recipe: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    def go(resume: bool, name: str, config: TrainConfig, **options: Any) -> None:
        batch = batches(**{"train": 16, "val": 8, "batch_size": 8} | options)
        trained(cnn(), config, batch, out=tmp_path, resume=resume, identity={"model": name})

    config = replace(PLAIN_RECIPE, epochs=1)
    go(False, "CNN", config)
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(TrainingError, match=words) as error:
        go(True, "CNN" if model == "cnn" else "other", replace(config, **recipe), **options)
    assert "\n" not in str(error.value)
    assert "resume with the same options" in str(error.value)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    go(True, "CNN", config, workers=1, unreadable="fail")  # of no effect on what comes out


def test_it_learns_and_says_what_it_measured(tmp_path: Path) -> None:
    model, lines = hybrid(), []
    config = TrainConfig(epochs=4, batch_size=16, lr=2e-2, gate_lr_scale=3, warmup_epochs=1)
    data = batches(96, 96)
    result = trained(model, config, data, out=tmp_path / "new", progress=lines.append)
    assert [e.epoch for e in result.history] == [1, 2, 3, 4]
    assert result.last.train_loss < result.history[0].train_loss
    assert not model.training
    # The figures are those of the weights that the model ends with.
    pixels, labels = bars().tensors()
    with torch.no_grad():
        scores = model((pixels - 0.5) / 0.5)
    assert result.last.val_top1 == pytest.approx((scores.argmax(1) == labels).float().mean().item())
    loss = nn.functional.cross_entropy(scores, labels).item()
    assert result.last.val_loss == pytest.approx(loss, rel=1e-4)
    assert result.last.val_top1 > 0.9
    assert len(lines) == 4
    assert lines[-1].startswith("epoch 4/4: train loss ")
    assert "epoch" in result.table().splitlines()[0]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "gates.csv", "history.csv", "last.ckpt",
    ]  # fmt: skip
    rows = (tmp_path / "new" / "history.csv").read_text().splitlines()
    assert len(rows) == 5
    assert float(rows[4].split(",")[3]) == result.last.val_loss
    gates = (tmp_path / "new" / "gates.csv").read_text().splitlines()
    assert len(gates) == 1 + 4 * 9
    shares = [float(row.split(",")[-1]) for row in gates[-9:]]
    assert shares == model[3].content_share.tolist() == result.last.content_share["3"]
    assert min(map(abs, shares)) > 0


def test_same_numbers_twice_and_state_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    start, engine = hybrid(), replace(QUIET, deterministic=True)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, second = copy.deepcopy(start), copy.deepcopy(start)
    config = TrainConfig(epochs=2, batch_size=16, lr=1e-2, mixup=0.5)
    result = trained(first, config, engine=engine)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)  # a second run starts from its own seed, not from wherever the state is
    assert trained(second, config, engine=engine).history == result.history
    same(dict(first.state_dict()), dict(second.state_dict()))
    third = copy.deepcopy(start)
    trained(third, replace(config, seed=1), engine=engine)
    assert not torch.equal(first[0].weight, third[0].weight)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert list(tmp_path.iterdir()) == []


def test_it_is_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    level = logging.getLogger("lightning.pytorch").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = TrainConfig(epochs=1, batch_size=16, model_ema=True)
        trained(cnn(), config, engine=replace(QUIET, tensorboard=True), out=tmp_path)
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []
    assert logging.getLogger("lightning.pytorch").level == level


def test_the_bar_goes_on_where_the_run_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    begin_and_resume(tmp_path, ENGINE, At("on_train_batch_end", 8, terminate))
    capfd.readouterr()
    run(tmp_path, resume=True, bar=True, progress=say)
    out, err = capfd.readouterr()
    assert out.startswith("epoch 2/2: train loss ")
    assert out.count("\n") == 1
    assert "epoch 2/2" in err
    assert "67%" in err  # four steps of six
    assert "100%" in err
    assert "images/s" in err
    assert err.rpartition("\r")[2].strip() == ""  # it is wiped
    with pytest.raises(Stopped):
        run(tmp_path / "b", bar=True, callbacks=(At("on_train_batch_end", 8, terminate),))
    assert capfd.readouterr().err.rpartition("\r")[2].strip() == ""


def interrupted() -> None:
    with reproducible(3):
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        raise RuntimeError("inside")


def test_reproducible_restores_after_an_error() -> None:
    state = torch.get_rng_state()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(RuntimeError, match="inside"):
            interrupted()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_average_of_the_weights_against_a_loop(tmp_path: Path) -> None:
    """timm's warm-up: the decay of update t is at most 1 - (t + 1)^(-2/3)."""
    weights: list[torch.Tensor] = []

    def note(trainer: Any, module: Any, *_: object) -> None:
        weights.append(module.model[0].weight.detach().clone())

    watch = At("on_train_batch_end", 0, None)
    watch.on_train_batch_end = note  # type: ignore[method-assign]
    model = cnn()
    average = model[0].weight.detach().clone()
    config = replace(PLAIN_RECIPE, model_ema=True, model_ema_decay=0.8)
    trained(model, config, batches(24, 8, 8), callbacks=(watch,))
    assert len(weights) == STEPS
    for t, weight in enumerate(weights):
        decay = min(0.8, 1 - (t + 1) ** (-2 / 3))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(model[0].weight.detach(), average)
    assert not torch.allclose(model[0].weight, weights[-1])


def test_accumulated_batches_are_one_step() -> None:
    """Without batch norm a step of 4 + 4 images is one of 8, but for rounding."""

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 2)).double()

    config, ends = replace(PLAIN_RECIPE, clip_grad=0.1, opt="sgd"), []
    for accumulate in (1, 2, 4):
        model = net()
        engine = replace(QUIET, precision="64", accumulate=accumulate)
        trained(model, config, batches(24, 8, 8, accumulate=accumulate), engine)
        ends.append(model[1].weight.detach())
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-14)


def test_clipping_bounds_a_step() -> None:
    model = cnn()
    start = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    config = TrainConfig(
        epochs=1, batch_size=16, lr=1.0, opt="momentum", momentum=0, weight_decay=0, clip_grad=0.01
    )
    trained(model, config, batches(16, 8))
    end = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (end - start).norm() == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("options", [{"channels_last": True}, {"precision": "bf16-mixed"}])
def test_other_engines_learn_too(options: dict[str, Any]) -> None:
    model = hybrid()
    config = TrainConfig(epochs=4, batch_size=16, lr=2e-2)
    result = trained(model, config, engine=replace(QUIET, **options))
    assert result.last.val_top1 > 0.9
    assert model[0].weight.is_contiguous()
    assert model[0].weight.dtype == torch.float32


def test_tensorboard_has_one_value_for_each_epoch_after_a_resume(tmp_path: Path) -> None:
    engine = replace(ENGINE, tensorboard=True)
    # The figures of the first epoch are told, then everything since its last checkpoint is lost.
    begin_and_resume(tmp_path, engine, At("on_validation_batch_start", 1, cut), LastCut())
    _, result = run(tmp_path, engine, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("train_loss", "train_top1", "val_loss", "val_top1", "content_share/3"):
        assert [event.step for event in events.Scalars(name)] == [1, 2], name
    told = [event.value for event in events.Scalars("val_loss")]
    assert told == pytest.approx([epoch.val_loss for epoch in result.history])


class LastCut(ModelCheckpoint):
    """Cuts between the telling of an epoch's figures and its checkpoint."""

    def on_train_epoch_end(self, trainer: Any, *_: object) -> None:
        record = next(c for c in trainer.callbacks if type(c).__name__ == "Record")
        record.on_train_epoch_end(trainer, trainer.lightning_module)
        raise Cut


def test_somebody_elses_checkpoints_are_left_alone(tmp_path: Path) -> None:
    theirs = ModelCheckpoint(tmp_path / "theirs", filename="{epoch}", save_top_k=-1)
    config = replace(PLAIN_RECIPE, epochs=2)
    trained(cnn(), config, batches(16, 8, 8), out=tmp_path, callbacks=(theirs,))
    saved = torch.load(tmp_path / "theirs" / "epoch=1.ckpt", weights_only=True)
    assert "loops" in saved
    assert "tcnn" not in saved
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["tcnn"]["epoch"] == 2


@pytest.mark.parametrize(
    ("config", "engine", "words"),
    [
        ({}, {"accumulate": 3}, "divide over 1 processes x 3 accumulations, but got 16"),
        ({"mixup": 0.1}, {"accumulate": 16}, "even batch .* give 1"),
        ({}, {"accelerator": "gpu", "devices": 16}, "Expected 16 GPUs, but this machine has"),
    ],
)
def test_engines_that_do_not_fit(
    config: dict[str, Any], engine: dict[str, Any], words: str
) -> None:
    recipe = replace(TrainConfig(batch_size=16), **config)
    with pytest.raises(TrainingError, match=words):
        trained(cnn(), recipe, batches(), replace(QUIET, **engine))


def test_wandb_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcnn.engine.find_spec", lambda name: None)
    with pytest.raises(TCNNError, match=r"wandb to be installed .*: pip install wandb"):
        trained(cnn(), PLAIN_RECIPE, engine=replace(QUIET, wandb="x"), out=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "`devices` to be a whole number from 1 up, but got 0"),
        ({"num_nodes": 1.5}, "`num_nodes`"),
        ({"accumulate": -1}, "`accumulate`"),
        ({"checkpoint_every": 0}, "`checkpoint_every`"),
        ({"accelerator": "tpu"}, "`accelerator` to be one of auto, cpu, gpu, but got 'tpu'"),
        ({"strategy": "fsdp"}, "`strategy` to be one of"),
        ({"precision": "16"}, "`precision` to be one of 32, bf16-mixed, 16-mixed, 64"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**options)
