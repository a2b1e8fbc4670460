"""The fine-tuning task and `fit`, on networks that train in a second."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import warnings
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tcnn import GPSAConfig, recast
from tcnn.data import ImageSet, loader
from tcnn.layers import GPSA2d
from tcnn.train import (
    FinetuneTask,
    TrainConfig,
    fit,
    learning_rate_factor,
    parameter_groups,
    reproducible,
)


def bars(n: int = 96) -> ImageSet:
    """Noisy images with one bright bar, across or upright: two classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (n, 8, 8, 1)).astype(np.uint8)
    labels = np.arange(n) % 2
    for image, label, at in zip(images, labels, rng.integers(0, 8, n), strict=True):
        image[at if label else slice(None), slice(None) if label else at] = 255
    return ImageSet(images, labels, ("upright", "across"))


def loaders() -> tuple[DataLoader[object], DataLoader[object]]:
    return loader(bars(), 16, shuffle_seed=1), loader(bars(), 32)


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip


def hybrid(config: GPSAConfig | None = None) -> nn.Module:
    return recast(cnn(), "3", config, input_size=(1, 8, 8))


def test_it_learns_and_says_what_it_measured(tmp_path: Path) -> None:
    model, lines = hybrid(), []
    config = TrainConfig(epochs=4, batch_size=16, lr=2e-2, gate_lr_scale=3, warmup_epochs=1)
    result = fit(model, *loaders(), config, out=tmp_path / "new", progress=lines.append)
    assert [e.epoch for e in result.history] == [1, 2, 3, 4]
    assert result.last.train_loss < result.history[0].train_loss
    assert not model.training
    # The figures are those of the weights that the model ends with.
    x, y = bars().tensors()
    with torch.no_grad():
        scores = model(x)
    assert result.last.val_top1 == pytest.approx((scores.argmax(1) == y).float().mean().item())
    loss = nn.functional.cross_entropy(scores, y).item()
    assert result.last.val_loss == pytest.approx(loss, rel=1e-4)
    assert result.last.val_top1 > 0.9
    assert len(lines) == 4
    assert lines[-1].startswith("epoch 4/4: train loss ")
    assert "epoch" in result.table().splitlines()[0]
    written = json.loads((tmp_path / "new" / "history.json").read_text())
    assert written == json.loads(json.dumps(result.to_json()))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["history.json"]
    assert model[3].content_share.abs().min() > 0


def test_same_numbers_twice_and_state_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    start, config = hybrid(), TrainConfig(epochs=2, lr=1e-2)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, second = copy.deepcopy(start), copy.deepcopy(start)
    results = [fit(first, *loaders(), config), None]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)  # a second run starts from its own seed, not from wherever the state is
    results[1] = fit(second, *loaders(), config)
    assert results[0].history == results[1].history
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert list(tmp_path.iterdir()) == []


def test_it_is_quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("lightning.pytorch").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(cnn(), *loaders(), TrainConfig(epochs=1))
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []
    assert logging.getLogger("lightning.pytorch").level == level


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


def test_one_step_against_adamw_by_hand() -> None:
    """After one step from rest AdamW has moved each parameter by lr · sign of its gradient."""
    model = hybrid(GPSAConfig(positions="learned", locality_strength=1.0))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = loader(bars(16), 16, shuffle_seed=0)
    config = TrainConfig(epochs=1, lr=1e-3, weight_decay=0.1, gate_lr_scale=7)
    twin = copy.deepcopy(model).train()
    (images, labels), *_ = loader(bars(16), 16, shuffle_seed=0)
    nn.functional.cross_entropy(twin(images), labels).backward()
    fit(model, data, loader(bars(16), 16), config)
    gradients = {name: p.grad for name, p in twin.named_parameters()}
    for name, parameter in model.named_parameters():
        decays = name in ("0.weight", "3.weight", "3.qk.weight", "7.weight")
        rate = config.lr * (7 if name == "3.gating_param" else 1)
        kept = start[name] * (1 - rate * 0.1 * decays)
        sure = gradients[name].abs() > 1e-6  # far above Adam's ε
        expected = (kept - rate * gradients[name].sign())[sure]
        torch.testing.assert_close(parameter.detach()[sure], expected, rtol=1e-3, atol=1e-5)
    assert gradients["3.gating_param"].abs().min() > 1e-6


def test_every_trainable_parameter_is_in_one_group() -> None:
    model = hybrid(GPSAConfig(positions="learned"))
    model[0].weight.requires_grad_(False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        g["name"]: {names[p] for p in g["params"]} for g in parameter_groups(model, TrainConfig())
    }
    assert found == {
        "decayed": {"3.weight", "3.qk.weight", "7.weight"},
        "plain": {"0.bias", "1.weight", "1.bias", "3.bias", "3.v_pos", "7.bias"},
        "gates": {"3.gating_param"},
    }
    assert [g["name"] for g in parameter_groups(cnn(), TrainConfig())] == ["decayed", "plain"]


def test_schedule_by_hand() -> None:
    rates = [learning_rate_factor(step, 12, 4) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert rates[12] == pytest.approx(0)
    assert learning_rate_factor(0, 5, 0) == 1
    assert learning_rate_factor(5, 5, 5) == 1  # all warm-up


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`")
def test_the_task_in_a_trainer_of_ones_own() -> None:
    rates: list[float] = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Watch()],
    )  # fmt: skip
    # Half of the recipe's run is warm-up, and so is half of this trainer's.
    task = FinetuneTask(hybrid(), TrainConfig(epochs=10, warmup_epochs=5, lr=1e-2))
    trainer.fit(task, *loaders())
    assert {"train_loss", "train_top1", "val_loss", "val_top1"} <= set(trainer.callback_metrics)
    assert len(rates) == 12
    assert rates[4] == pytest.approx(1e-2)  # the rate of the next step
    assert rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0)
    assert isinstance(task.model[3], GPSA2d)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opt": "sgd"}, "`opt` to be 'adamw', but got 'sgd'"),
        ({"sched": "step"}, "`sched`"),
        ({"epochs": 0}, "`epochs` to be a whole number from 1 up, but got 0"),
        ({"batch_size": 1.5}, "`batch_size`"),
        ({"lr": 0.0}, "`lr` to be above 0"),
        ({"weight_decay": -1.0}, "`weight_decay`"),
        ({"gate_lr_scale": math.nan}, "`gate_lr_scale`"),
        ({"epochs": 3, "warmup_epochs": 4}, r"from 0 to epochs \(3\), but got 4"),
        ({"smoothing": 1.0}, "`smoothing`"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)  # type: ignore[arg-type]
