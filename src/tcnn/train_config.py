"""`TrainConfig`, the recipe of a fine-tuning, and `EngineConfig`, what it runs on.

In a file without PyTorch, so that the command line's help need not load it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tcnn.errors import check_option


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A recipe; the names are those of timm's `train.py`.

    Raises:
        ValueError: an option is outside its range; the message names it.
    """

    epochs: int = 50
    """Passes over the training images."""

    batch_size: int = 128
    """Images in a step of the optimiser, over all processes and accumulations together."""

    opt: str = "adamw"
    """Optimiser: any that timm knows by name, such as adamw, sgd, lamb."""

    lr: float = 5e-4
    """Highest learning rate."""

    min_lr: float = 0.0
    """Learning rate at the end of the run."""

    momentum: float = 0.9
    """Momentum, for optimisers that have one."""

    weight_decay: float = 0.05
    """Decay of the weights; norms, biases, gates and positions are never decayed."""

    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the one before it, as timm groups them."""

    gate_lr_scale: float = 20.0
    """Learning rate of the gates and temperatures, in units of `lr`; at 1 they hardly move, 0 holds
    them as they are."""

    position_lr_scale: float = 1.0
    """Learning rate of learned positions, in units of `lr`."""

    qk_lr_scale: float = 1.0
    """Learning rate of queries and keys, in units of `lr`."""

    sched: Literal["cosine"] = "cosine"
    """Learning rate after the warm-up: half a cosine down to `min_lr`, step by step."""

    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""

    smoothing: float = 0.0
    """Label smoothing of the training loss."""

    mixup: float = 0.0
    """α of Mixup's Beta(α, α); 0 is none. Needs an even batch in each process."""

    cutmix: float = 0.0
    """α of CutMix; with Mixup beside it each batch takes one of the two."""

    drop_path: float = 0.0
    """Stochastic depth of the last block, rising linearly from 0 at the first."""

    clip_grad: float | None = None
    """Largest norm of the gradient; null does not clip."""

    model_ema: bool = False
    """Validate and save an exponential moving average of the weights."""

    model_ema_decay: float = 0.9998
    """Its decay at each step; in the first steps less, so that it does not lag."""

    grad_checkpointing: bool = False
    """Compute activations again in the backward pass, to save memory (timm's networks)."""

    distill: float = 0.0
    """Weight of distillation from the network as it was at first; the labels have the rest."""

    distill_temperature: float = 1.0
    """Temperature of both softmaxes in the distillation loss."""

    seed: int = 0
    """Of everything random in a run."""

    def __post_init__(self) -> None:
        check_option("sched", self.sched, self.sched == "cosine", "'cosine'")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            check_option(
                name, value, isinstance(value, int) and value >= 1, "a whole number from 1 up"
            )
        check_option("seed", self.seed, isinstance(self.seed, int) and self.seed >= 0, "0 or more")
        check_option("lr", self.lr, 0 < self.lr < math.inf, "above 0")
        check_option(
            "min_lr", self.min_lr, 0 <= self.min_lr <= self.lr, f"from 0 to lr ({self.lr})"
        )
        for name in ("weight_decay", "gate_lr_scale", "position_lr_scale", "qk_lr_scale"):
            value = getattr(self, name)
            check_option(name, value, 0 <= value < math.inf, "0 or more")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            check_option(name, value, 0 <= value < math.inf, "0 or more")
        check_option("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "in (0, 1]")
        fits = 0 <= self.warmup_epochs <= self.epochs
        check_option("warmup_epochs", self.warmup_epochs, fits, f"from 0 to epochs ({self.epochs})")
        for name in ("smoothing", "momentum", "drop_path", "model_ema_decay"):
            value = getattr(self, name)
            check_option(name, value, 0 <= value < 1, "in [0, 1)")
        check_option("distill", self.distill, 0 <= self.distill <= 1, "in [0, 1]")
        warm = 0 < self.distill_temperature < math.inf
        check_option("distill_temperature", self.distill_temperature, warm, "above 0")
        clips = self.clip_grad is None or 0 < self.clip_grad < math.inf
        check_option("clip_grad", self.clip_grad, clips, "above 0, or null")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What a training runs on. It changes what comes out only by rounding, by whose images plain
    batch normalisation sees together, and by what Mixup and dropout draw in each process.

    Raises:
        ValueError: an option is outside its range; the message names it.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device; auto takes GPUs where there are any."""

    devices: int = 1
    """Devices (processes) on each machine."""

    num_nodes: int = 1
    """Machines."""

    strategy: Literal["auto", "ddp"] = "auto"
    """How processes share the work: ddp copies the network to each; auto takes it where there are
    several."""

    precision: Literal["32", "bf16-mixed", "16-mixed", "64"] = "32"
    """Arithmetic."""

    accumulate: int = 1
    """Backward passes for one step of the optimiser; each process takes batch_size / (processes x
    accumulate) images at a time."""

    sync_bn: bool = False
    """Batch normalisation over the images of all processes, not over each process's own."""

    compile: bool = False
    """Compile the network with torch.compile."""

    channels_last: bool = False
    """Keep kernels channel by channel in memory while training, which many CPUs and GPUs like."""

    deterministic: bool = False
    """PyTorch's deterministic algorithms alone; an operation that has none is an error."""

    checkpoint_every: int = 1000
    """Steps between checkpoints within an epoch; each epoch ends with one anyhow."""

    tensorboard: bool = True
    """Write curves for TensorBoard, too."""

    wandb: str | None = None
    """Project of Weights & Biases to log to; null does not."""

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes", "accumulate", "checkpoint_every"):
            value = getattr(self, name)
            check_option(
                name, value, isinstance(value, int) and value >= 1, "a whole number from 1 up"
            )
        for name, known in (
            ("accelerator", ("auto", "cpu", "gpu")),
            ("strategy", ("auto", "ddp")),
            ("precision", ("32", "bf16-mixed", "16-mixed", "64")),
        ):
            value = getattr(self, name)
            check_option(name, value, value in known, f"one of {', '.join(known)}")

    @property
    def processes(self) -> int:
        """How many processes share a step."""
        return self.devices * self.num_nodes
