"""The fine-tuning task: steps, groups and losses against hand-made ones; a trainer of one's own."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tcnn
from tcnn import GPSAConfig
from tcnn.layers import GPSA2d
from tcnn.train import (
    FinetuneTask,
    checkpoint_gradients,
    learning_rate_factor,
    output_width,
    parameter_groups,
    set_drop_path,
)
from tcnn.train_config import TrainConfig
from training import QUIET, bars, batches, cnn, hybrid, trained


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    images = TensorDataset(*bars().tensors())
    return DataLoader(images, 16), DataLoader(images, 32)


def test_one_step_against_adamw_by_hand() -> None:
    """After one step from rest AdamW has moved each parameter by lr · sign of its gradient."""
    model = hybrid(GPSAConfig(positions="learned", locality_strength=1.0))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = batches(16, 8, 16)
    config = TrainConfig(epochs=1, batch_size=16, lr=1e-3, weight_decay=0.1, gate_lr_scale=7)
    twin = copy.deepcopy(model).train()
    (images, labels, _), *_ = data.train_dataloader()
    nn.functional.cross_entropy(twin(images), labels).backward()
    trained(model, config, data)
    gradients = {name: p.grad for name, p in twin.named_parameters()}
    for name, parameter in model.named_parameters():
        decays = name in ("0.weight", "3.weight", "3.qk.weight", "8.weight")
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
        "decayed": {"3.weight", "8.weight"},
        "plain": {"0.bias", "1.weight", "1.bias", "3.bias", "8.bias"},
        "qk": {"3.qk.weight"},
        "gates": {"3.gating_param"},
        "positions": {"3.v_pos"},
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
    floored = [learning_rate_factor(step, 12, 4, floor=0.1) for step in (0, 3, 8, 12, 13)]
    assert floored == pytest.approx([0.25, 1, 0.55, 0.1, 0.1])


def test_factors_of_gates_positions_and_queries() -> None:
    model = hybrid(GPSAConfig(positions="learned"))
    config = TrainConfig(lr=0.1, gate_lr_scale=2, position_lr_scale=3, qk_lr_scale=4)
    groups = {g["name"]: (g["lr"], g["weight_decay"]) for g in parameter_groups(model, config)}
    assert groups == {
        "decayed": (0.1, 0.05), "plain": (0.1, 0.0), "qk": (0.4, 0.05),
        "gates": (0.2, 0.0), "positions": (pytest.approx(0.3), 0.0),
    }  # fmt: skip


def test_layer_decay_of_a_network_of_timms() -> None:
    """ResNet-18: the stem, eight blocks and the classifier, from 0 to 9."""
    model = tcnn.recast(timm.create_model("resnet18"), "layer4.1.conv2", input_size=(3, 64, 64))
    names = {parameter: name for name, parameter in model.named_parameters()}
    config = TrainConfig(lr=1.0, layer_decay=0.5, gate_lr_scale=20)
    found = {
        names[p]: group["lr"] for group in parameter_groups(model, config) for p in group["params"]
    }
    assert found.keys() == dict(model.named_parameters()).keys()
    expected = {
        "conv1.weight": 0, "bn1.bias": 0, "layer1.0.conv1.weight": 1, "layer1.1.bn2.weight": 2,
        "layer2.0.downsample.0.weight": 3, "layer3.1.conv2.weight": 6, "layer4.1.conv1.weight": 8,
        "layer4.1.conv2.weight": 8, "layer4.1.conv2.qk.weight": 8, "fc.weight": 9, "fc.bias": 9,
    }  # fmt: skip
    for name, depth in expected.items():
        assert found[name] == pytest.approx(0.5 ** (9 - depth)), name
    assert found["layer4.1.conv2.gating_param"] == pytest.approx(20 * 0.5)
    assert len({id(p) for g in parameter_groups(model, config) for p in g["params"]}) == len(names)


def test_layer_decay_of_a_plain_network_is_timms() -> None:
    """timm groups layers by twelve tensors, once it knows the classifier."""
    model: Any = nn.Sequential(*(nn.Linear(3, 3) for _ in range(30)))
    model.pretrained_cfg = {"classifier": "29"}
    config = TrainConfig(lr=1.0, layer_decay=0.5)
    theirs = timm.optim.param_groups_layer_decay(model, layer_decay=0.5)
    expected = {id(p): group["lr_scale"] for group in theirs for p in group["params"]}
    found = {id(p): g["lr"] for g in parameter_groups(model, config) for p in g["params"]}
    assert found == expected
    assert len(set(found.values())) > 2


@pytest.mark.parametrize("opt", ["sgd", "lamb", "lookahead_adamw"])
def test_optimisers_by_name(opt: str) -> None:
    model = cnn()
    start = model[0].weight.detach().clone()
    trained(model, TrainConfig(epochs=1, batch_size=16, opt=opt, lr=1e-2))
    assert not torch.equal(model[0].weight, start)


def test_sgd_by_hand() -> None:
    """Two steps with Nesterov momentum on one group: v ← µ v + g; w ← w - r (g + µ v)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    twin, data = copy.deepcopy(model), batches(32, 8, 16)
    config = TrainConfig(
        epochs=1, batch_size=16, opt="sgd", lr=0.1, min_lr=0.1, momentum=0.8, weight_decay=0.01
    )
    velocity = torch.zeros_like(twin[1].weight)
    for images, labels, _ in data.train_dataloader():
        twin.zero_grad()
        F.cross_entropy(twin(images), labels).backward()
        with torch.no_grad():
            gradient = twin[1].weight.grad + 0.01 * twin[1].weight
            velocity = 0.8 * velocity + gradient
            twin[1].weight -= 0.1 * (gradient + 0.8 * velocity)
    trained(model, config, data)
    torch.testing.assert_close(model[1].weight, twin[1].weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"opt": "adamm"}, "`opt` to be an optimiser of timm, but got 'adamm'; nearest: adam"),
        ({"opt": "sgd", "momentum": 0.0}, "options that 'sgd' takes, but it says: Nesterov"),
        ({"drop_path": 0.1}, "no block of Sequential has a place for it: leave drop_path at 0"),
        ({"grad_checkpointing": True}, "Sequential cannot do it"),
        ({"layer_decay": 0.9}, "Sequential has no group_matcher"),
    ],
)
def test_what_a_network_or_an_optimiser_cannot_do(options: dict[str, Any], words: str) -> None:
    with pytest.raises(tcnn.TCNNError, match=words):
        trained(cnn(), TrainConfig(batch_size=16, **options))


def test_stochastic_depth_rises_linearly() -> None:
    model = timm.create_model("resnet18", zero_init_last=False)  # so that branches count
    set_drop_path(model, 0.14)
    rates = [block.drop_path.drop_prob for stage in (model.layer1, model.layer2, model.layer3,
             model.layer4) for block in stage]  # fmt: skip
    assert rates == pytest.approx([0.02 * i for i in range(8)])
    # It is at work in training alone.
    model.train()
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))
    theirs = torchvision.models.convnext_tiny()
    set_drop_path(theirs, 0.17)
    depths = [m.p for m in theirs.modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    assert depths == pytest.approx([0.01 * i for i in range(18)])


def test_checkpointed_gradients_are_the_same() -> None:
    torch.manual_seed(0)
    model = tcnn.recast(timm.create_model("resnet18", num_classes=4), input_size=(3, 64, 64))
    twin, x = copy.deepcopy(model), torch.rand(2, 3, 64, 64)
    checkpoint_gradients(twin)
    assert twin.grad_checkpointing
    for net in (model, twin):
        net.train()
        F.cross_entropy(net(x), torch.tensor([1, 3])).backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7, msg=name)


def loss_of(model: nn.Module, config: TrainConfig, batch: Any) -> Tensor:
    return FinetuneTask(model, config).training_step(batch, 0)


def test_distillation_by_hand() -> None:
    model = cnn()
    images, labels = bars(8).tensors()
    task = FinetuneTask(model, TrainConfig(distill=0.3, distill_temperature=2.0, smoothing=0.1))
    with torch.no_grad():
        model[8].weight.mul_(-1)
        wanted = cnn().eval()(images)
        statistics = copy.deepcopy(model.state_dict())
        found = model(images)
        model.load_state_dict(statistics)
    expected = 0.0
    for scores, goal, label in zip(found.double(), wanted.double(), labels, strict=True):
        log_p = scores - scores.exp().sum().log()
        entropy = -sum((0.95 if k == label else 0.05) * log_p[k] for k in range(2))
        q = (goal / 2).exp() / (goal / 2).exp().sum()
        log_p2 = scores / 2 - (scores / 2).exp().sum().log()
        divergence = sum(q[k] * (q[k].log() - log_p2[k]) for k in range(2))
        expected += float(0.7 * entropy + 0.3 * 4 * divergence) / 8
    assert task.training_step((images, labels), 0).item() == pytest.approx(expected, rel=1e-5)
    assert not any("teacher" in name for name in task.state_dict())


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_have_mixed_labels(kind: str) -> None:
    """Images of one value each: what is mixed is seen in the pixels."""

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return x.mean((2, 3)) * torch.tensor([[1.0, -2.0, 0.5, 0.1]])

    values = torch.arange(4.0)
    images = values.view(4, 1, 1, 1).expand(4, 1, 16, 16)
    model, smoothing = Watch(), 0.1
    config = TrainConfig(**{kind: 1.0}, smoothing=smoothing)  # type: ignore[arg-type]
    np.random.seed(3)
    loss = loss_of(model, config, (images, torch.arange(4)))
    seen = model.seen
    others = values.flip(0)
    shares = ((seen - others.view(4, 1, 1, 1)) / (values - others).view(4, 1, 1, 1)).mean((1, 2, 3))
    assert shares.std() < 1e-5
    share = shares.mean().item()
    assert 0.02 < share < 0.98
    expected = 0.0
    for i in range(4):
        log_p = model(seen)[i].log_softmax(0)
        target = torch.full((4,), smoothing / 4)
        target[i] += share * (1 - smoothing)
        target[3 - i] += (1 - share) * (1 - smoothing)
        expected -= float((target * log_p).sum()) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    if kind == "cutmix":
        assert set(seen.flatten().tolist()) == set(values.tolist())


def test_an_odd_batch_cannot_be_mixed() -> None:
    with pytest.raises(tcnn.TCNNError, match=r"even batch .* 3 images"):
        images, labels = bars(3).tensors()
        loss_of(cnn(), TrainConfig(mixup=0.1), (images, labels))


def test_the_width_of_the_output_is_measured_without_a_trace() -> None:
    model = cnn()
    before = copy.deepcopy(model.state_dict())
    assert output_width(model, torch.rand(2, 1, 8, 8)) == 2
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(),
               strict=True))  # fmt: skip
    assert model.training


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_checkpoints_of_a_trainer_of_ones_own(tmp_path: Path) -> None:
    def go(epochs: int, folder: str, start: str | None = None) -> nn.Module:
        saves = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[saves],
        )  # fmt: skip
        config = TrainConfig(lr=1e-2, epochs=3, model_ema=True, model_ema_decay=0.5)
        task = FinetuneTask(hybrid(), config, steps=18)
        trainer.fit(task, *loaders(), ckpt_path=start, weights_only=start is not None)
        return task.result

    whole = go(3, "whole")
    go(2, "cut")
    resumed = go(3, "resumed", str(tmp_path / "cut" / "epoch=1.ckpt"))
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


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
        ({"sched": "step"}, "`sched`"),
        ({"epochs": 0}, "`epochs` to be a whole number from 1 up, but got 0"),
        ({"batch_size": 1.5}, "`batch_size`"),
        ({"lr": 0.0}, "`lr` to be above 0"),
        ({"weight_decay": -1.0}, "`weight_decay`"),
        ({"gate_lr_scale": math.nan}, "`gate_lr_scale`"),
        ({"epochs": 3, "warmup_epochs": 4}, r"from 0 to epochs \(3\), but got 4"),
        ({"smoothing": 1.0}, "`smoothing`"),
        ({"momentum": 1.0}, "`momentum`"),
        ({"drop_path": -0.1}, "`drop_path`"),
        ({"model_ema_decay": 1.0}, "`model_ema_decay`"),
        ({"position_lr_scale": -1.0}, "`position_lr_scale`"),
        ({"qk_lr_scale": math.inf}, "`qk_lr_scale`"),
        ({"mixup": -0.1}, "`mixup` to be 0 or more"),
        ({"cutmix": math.nan}, "`cutmix`"),
        ({"layer_decay": 0.0}, r"`layer_decay` to be in \(0, 1\]"),
        ({"lr": 1e-3, "min_lr": 1e-2}, r"`min_lr` to be from 0 to lr \(0.001\), but got 0.01"),
        ({"seed": -1}, "`seed` to be 0 or more"),
        ({"clip_grad": 0.0}, "`clip_grad` to be above 0, or null"),
        ({"distill": 1.5}, r"`distill` to be in \[0, 1\]"),
        ({"distill_temperature": 0.0}, "`distill_temperature` to be above 0"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)  # type: ignore[arg-type]


def test_a_network_that_comes_in_eval_mode_trains_all_the_same() -> None:
    assert FinetuneTask(hybrid().eval(), TrainConfig()).model.training


def test_distilling_in_float64() -> None:
    model = hybrid()
    config = TrainConfig(epochs=1, batch_size=16, distill=0.5)
    trained(model, config, engine=replace(QUIET, precision="64"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_outputs_that_are_no_scores() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    with pytest.raises(tcnn.TCNNError, match="scores alone"):
        output_width(Twice(), torch.zeros(1, 2))
    with pytest.raises(tcnn.TCNNError, match="auxiliary outputs"):
        FinetuneTask(Twice(), TrainConfig()).training_step((torch.zeros(1, 2), torch.zeros(1)), 0)
