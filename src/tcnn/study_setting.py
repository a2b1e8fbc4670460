"""What all arms of a study have in common, and what follows from it for each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tcnn.data_config import DataConfig
from tcnn.errors import TCNNError
from tcnn.gpsa_config import GPSAConfig
from tcnn.study_config import ArmConfig, MeasureConfig
from tcnn.train_config import EngineConfig, TrainConfig


@dataclass(frozen=True)
class Setting:
    """What all arms of a study have in common.

    Attributes:
        out: folder of the study.
        model: name of the CNN, as `load_model` takes it.
        model_settings, pretrained, weights: how to build it.
        targets, gpsa: what to recast, and how.
        data, engine, measure: the images, what to run on, what to measure.
        train: recipe of the fine-tuning.
        pretrain: recipe of the CNN's training, if the study trains it; None takes it as it comes.
        arms: the arms by name.
    """

    out: Path
    model: str
    model_settings: dict[str, Any]
    pretrained: bool
    weights: str | None
    targets: str | list[str] | None
    gpsa: GPSAConfig
    data: DataConfig
    engine: EngineConfig
    measure: MeasureConfig
    train: TrainConfig
    pretrain: TrainConfig | None
    arms: dict[str, ArmConfig]

    @property
    def budget(self) -> int:
        """Epochs of pretraining and fine-tuning together."""
        return self.train.epochs + (self.pretrain.epochs if self.pretrain else 0)

    def recipe(self, arm: str, seed: int) -> TrainConfig:
        """What an arm is trained with; 0 epochs are the recipe's own number, not trained."""
        chosen = self.arms[arm]
        base = self.train if chosen.start == "pretrained" else self._pretrain(arm)
        epochs = base.epochs
        if chosen.start == "scratch":
            epochs = self.budget
        elif isinstance(chosen.start, float):
            epochs = self.budget - self.epochs_before(chosen.start)
        epochs = chosen.epochs or epochs
        warmup = min(base.warmup_epochs, epochs)
        try:
            changes = {"epochs": epochs, "warmup_epochs": warmup, "seed": seed, **chosen.train}
            return replace(base, **changes)
        except (TypeError, ValueError) as error:
            raise TCNNError(f"Expected options of a recipe in arm {arm!r}, but: {error}") from error

    def layers(self, arm: str) -> GPSAConfig:
        """Options of an arm's recast layers."""
        try:
            return replace(self.gpsa, **self.arms[arm].gpsa)
        except (TypeError, ValueError) as error:
            raise TCNNError(f"Expected options of layers in arm {arm!r}, but: {error}") from error

    def targets_of(self, arm: str) -> str | list[str] | None:
        """What is recast in an arm."""
        own = self.arms[arm].targets
        return self.targets if own is None else own

    def epochs_before(self, share: float) -> int:
        """Epochs that a share of the whole budget is, at least one, with one left."""
        return min(max(1, round(share * self.budget)), self.budget - 1)

    def _pretrain(self, arm: str) -> TrainConfig:
        if self.pretrain is None:
            raise TCNNError(
                f"Expected `pretrain`, a recipe of the CNN's training, for arm {arm!r}, which "
                f"starts from {self.arms[arm].start}, but it is null."
            )
        return self.pretrain

    def folder(self, arm: str, seed: int) -> Path:
        """Where an arm with one seed is kept."""
        return self.out / "arms" / arm / f"seed{seed}"

    def pretrained_folder(self, seed: int) -> Path:
        """Where the CNN that the study trains first is kept."""
        return self.out / "pretrained" / f"seed{seed}"

    def scratch_arm(self) -> str | None:
        """The arm that trains the CNN from scratch, whose snapshots others start from."""
        for name, arm in self.arms.items():
            plain = not arm.hybrid and not arm.train and arm.epochs is None
            if arm.start == "scratch" and plain:
                return name
        return None
