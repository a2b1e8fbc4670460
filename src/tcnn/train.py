"""The fine-tuning task: `FinetuneTask`, a Lightning module for any `Trainer`, that obeys a
`TrainConfig`."""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcnn import metrics
from tcnn.errors import TCNNError
from tcnn.layers import gpsa_layers
from tcnn.running import undisturbed
from tcnn.train_config import TrainConfig


class FinetuneTask(lightning.LightningModule):
    """Classification with a `TrainConfig`, for any Lightning `Trainer`.

    Batches are (images, labels, …); what follows the labels is left alone, and an image with a
    negative label is not counted in validation. Logs train_loss, train_top1, val_loss and val_top1
    by epoch, each over all images of all processes.

    The loss is the cross-entropy with label smoothing, or with `distill` = w

        (1 - w) CE + w T² KL(softmax(z⁰ / T) ‖ softmax(z / T)),

    z⁰ the scores of the network as it was before fine-tuning (Hinton et al. 2015, arXiv
    1503.02531), which for a recast network are those of its CNN.

    Args:
        model: maps (B, C, H, W) to class scores (B, K); trained in place.
        config: the recipe.
        steps: steps of the optimiser in the whole run, over which the schedule spans; None takes
            the run of the trainer. The warm-up keeps its share of it.

    Raises:
        TCNNError: the network has no stochastic depth, or no gradient checkpointing, to turn on.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, *, steps: int | None = None) -> None:
        super().__init__()
        self.model = model.train()
        self.config = config
        self.steps = steps
        # Kept out of the modules, so that no checkpoint holds it.
        self._teacher = (
            [copy.deepcopy(model).eval().requires_grad_(False)] if config.distill else []
        )
        if config.drop_path:
            set_drop_path(model, config.drop_path)
        if config.grad_checkpointing:
            checkpoint_gradients(model)
        self.ema = _average(model, config) if config.model_ema else None
        self.ema_updates = 0
        self._tally: dict[str, Tensor] = {}
        self._outputs: int | None = None

    @property
    def result(self) -> nn.Module:
        """The network to validate and to save: the averaged one, where there is an average."""
        return self.model if self.ema is None else self.ema.module

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch[0], batch[1]
        smoothing, targets = self.config.smoothing, labels
        if self.config.mixup or self.config.cutmix:
            images, targets = self._mixed(images, labels)
            smoothing = 0.0  # Mixup's targets are smoothed already
        logits = self(images)
        if not isinstance(logits, Tensor):
            raise TCNNError(
                f"Expected {type(self.model).__name__} to give scores alone in training, but got "
                f"{type(logits).__name__}: build it without auxiliary outputs (aux_logits: false)."
            )
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        if self._teacher:
            loss = self._distilled(loss, logits, images)
        self._count("train", logits, labels, loss.detach() * len(labels))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch[0], batch[1]
        kept = labels >= 0
        logits, labels = self.result(images)[kept], labels[kept]
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(exact, labels, reduction="sum")
        self._count("val", logits, labels, losses)

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from timm.data import Mixup

        if len(images) % 2:
            raise TCNNError(
                f"Expected an even batch for Mixup and CutMix, but got {len(images)} images: "
                "change batch_size."
            )
        if self._outputs is None:
            self._outputs = output_width(self.model, images[:1])
        mix: Any = Mixup(
            mixup_alpha=self.config.mixup,
            cutmix_alpha=self.config.cutmix,
            label_smoothing=self.config.smoothing,
            num_classes=self._outputs,
        )
        mixed, targets = mix(images.clone(), labels)
        return mixed, targets.to(images.dtype)

    def _distilled(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        share, temperature = self.config.distill, self.config.distill_temperature
        self._teacher[0].to(images.device, images.dtype)
        with torch.no_grad():
            wanted = self._teacher[0](images)
        wanted, found = (
            (z.to(torch.promote_types(z.dtype, torch.float32)) / temperature).log_softmax(dim=1)
            for z in (wanted, logits)
        )
        divergence = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return (1 - share) * loss + share * temperature**2 * divergence

    # Figures of an epoch

    def _count(self, stage: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch to the sums of an epoch, in this process: loss, correct, images."""
        exact = torch.float32 if logits.device.type == "mps" else torch.float64
        hits = metrics.correct(logits, labels).sum()
        count = torch.tensor(len(labels), device=logits.device)
        sums = torch.stack([part.detach().to(exact) for part in (loss, hits, count)])
        so_far = self._tally.get(stage)
        self._tally[stage] = sums if so_far is None else so_far.to(sums) + sums

    def _total(self, stage: str) -> Tensor:
        """The sums of an epoch over all processes; from then on the first process holds them."""
        sums = self._tally.get(stage, torch.zeros(3))
        total: Any = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")
        self._tally[stage] = total * int(self.trainer.is_global_zero)
        return total  # type: ignore[no-any-return]

    def _log_epoch(self, stage: str) -> None:
        loss, hits, count = self._total(stage).tolist()
        self._tally.pop(stage)
        if count:
            figures = {f"{stage}_loss": loss / count, f"{stage}_top1": hits / count}
            self.log_dict(figures, on_epoch=True, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        self._log_epoch("train")

    def on_validation_epoch_start(self) -> None:
        self._tally.pop("val", None)

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val")

    # Steps and checkpoints

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema_updates += 1
            self.ema.update(self.model, step=self.ema_updates)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema_updates"] = self.ema_updates
        checkpoint["train_tally"] = self._total("train").cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema_updates = checkpoint["ema_updates"]
        if self.trainer.is_global_zero:
            self._tally["train"] = checkpoint["train_tally"]

    def configure_optimizers(self) -> Any:
        optimizer = _optimizer(self.model, self.config)
        steps = self.steps or int(self.trainer.estimated_stepping_batches)
        warmup = round(steps * self.config.warmup_epochs / self.config.epochs)
        floor = self.config.min_lr / self.config.lr
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, warmup, floor)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def output_width(model: nn.Module, images: Tensor) -> int:
    """K, the number of a network's class scores, measured on images (B, C, H, W)."""
    with undisturbed(model):
        scores = model(images)
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        raise TCNNError(
            f"Expected {type(model).__name__} to give class scores (B, K), but got "
            f"{tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__}: wrap "
            "it in a module that returns the scores alone."
        )
    return int(scores.shape[1])


def learning_rate_factor(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Linear from 1/`warmup` to 1, then f + (1 - f) ½ (1 + cos πt), t from 0 to 1 at the end.

    Args:
        step: steps taken so far.
        steps: steps of the run.
        warmup: steps of the warm-up.
        floor: f, the factor at the end.
    """
    if step < warmup:
        return (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Trainable parameters in groups, for an optimiser.

    "decayed": weights of more than one dimension. "plain": biases, norms, and what the network
    itself names in `no_weight_decay()`; no weight decay. Of every `GPSA2d`, "qk" (decayed), "gates"
    (with temperatures) and "positions" (not decayed), at `lr` times their own factors. With
    `layer_decay` below 1 each of these splits by depth. Empty groups are left out.
    """
    layers = gpsa_layers(model).values()
    kinds: dict[Tensor, str] = {layer.gating_param: "gates" for layer in layers}
    kinds |= {layer.qk.weight: "qk" for layer in layers}
    kinds |= {x.logit_scale: "gates" for x in layers if x.config.content == "cosine"}
    kinds |= {layer.v_pos: "positions" for layer in layers if layer.config.positions == "learned"}
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    rates = {
        "gates": config.gate_lr_scale,
        "positions": config.position_lr_scale,
        "qk": config.qk_lr_scale,
    }
    depths = _depth_factors(model, config.layer_decay)
    order = ("decayed", "plain", "qk", "gates", "positions")
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.dim() < 2 or name in spared
        kind = kinds.get(parameter, "plain" if plain else "decayed")
        depth = depths.get(name, 1.0)
        group = groups.setdefault(
            (order.index(kind), depth),
            {
                "name": kind if depth == 1 else f"{kind} x {depth:.3g}",
                "params": [],
                "lr": config.lr * rates.get(kind, 1.0) * depth,
                "weight_decay": config.weight_decay if kind in ("decayed", "qk") else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], -key[1]))]


def _depth_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Factor on the learning rate of each parameter by its depth, as timm's `layer_decay`."""
    if decay == 1:
        return {}
    from timm.models import group_parameters
    from timm.optim._param_groups import auto_group_layers

    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        layers = auto_group_layers(model)
    else:
        layers = group_parameters(model, matcher(coarse=False), reverse=True)
    last = max(layers.values())
    if last == min(layers.values()):
        raise TCNNError(
            f"Expected a network whose layers timm can order for layer_decay={decay}, but "
            f"{type(model).__name__} has no group_matcher(): leave layer_decay at 1."
        )
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def _optimizer(model: nn.Module, config: TrainConfig) -> Any:
    from timm.optim import create_optimizer_v2, list_optimizers

    if config.opt.lower().removeprefix("lookahead_") not in list_optimizers():
        import difflib

        near = difflib.get_close_matches(config.opt, list_optimizers(), 3, 0.0)
        raise TCNNError(
            f"Expected `opt` to be an optimiser of timm, but got {config.opt!r}; "
            f"nearest: {', '.join(near)}."
        )
    try:
        return create_optimizer_v2(
            parameter_groups(model, config),
            opt=config.opt,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise TCNNError(
            f"Expected options that {config.opt!r} takes, but it says: {error}."
        ) from error


def _average(model: nn.Module, config: TrainConfig) -> Any:
    from timm.utils import ModelEmaV3

    average = ModelEmaV3(model, decay=config.model_ema_decay, use_warmup=True)
    return average.requires_grad_(False)


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Stochastic depth from 0 at the first residual block to `rate` at the last, in place.

    It is put where timm's blocks (`drop_path`) and torchvision's (`stochastic_depth`) have a place
    for it.

    Raises:
        TCNNError: no block has one.

    Source: Huang et al. 2016 (arXiv 1603.09382).
    """
    from timm.layers import DropPath

    blocks: list[Any] = [m for m in model.modules() if hasattr(m, "drop_path")]
    theirs: list[Any] = [
        m.stochastic_depth for m in model.modules() if hasattr(m, "stochastic_depth")
    ]
    if not blocks and not theirs:
        raise TCNNError(
            f"Expected a network with stochastic depth for drop_path={rate}, but no block of "
            f"{type(model).__name__} has a place for it: leave drop_path at 0."
        )
    for index, block in enumerate(blocks):
        block.drop_path = DropPath(rate * index / max(1, len(blocks) - 1))
    for index, depth in enumerate(theirs):
        depth.p = rate * index / max(1, len(theirs) - 1)


def checkpoint_gradients(model: nn.Module) -> None:
    """Have a network compute activations again in its backward pass, in place.

    Raises:
        TCNNError: it cannot.
    """
    switch: Any = getattr(model, "set_grad_checkpointing", None)
    try:
        if switch is None:
            raise AttributeError("it has no set_grad_checkpointing")
        switch(True)
    except (AttributeError, AssertionError) as error:
        raise TCNNError(
            f"Expected a network of timm's for grad_checkpointing, but {type(model).__name__} "
            f"cannot do it ({error}): turn it off."
        ) from error
