"""One arm of a study with one seed: train it, test it, and keep what came of it in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from tcnn import checkpoint, sources
from tcnn.corruptions import STANDARD
from tcnn.engine import fit
from tcnn.equivalence import check_equivalence, random_images
from tcnn.errors import TCNNError
from tcnn.evaluate_config import InferenceConfig
from tcnn.files import make_folder, write_json, write_whole
from tcnn.finetune import for_classes, heads_left
from tcnn.images import Images, take
from tcnn.layers import gpsa_layers
from tcnn.loaders import ImageData, open_data
from tcnn.models import load_model
from tcnn.processes import make_fabric
from tcnn.provenance import provenance
from tcnn.robustness_result import PartScore, RobustnessResult
from tcnn.scoring import AttackConfig, Part, score
from tcnn.study_setting import Setting
from tcnn.suites import attacked, clean, corrupted
from tcnn.surgery import recast
from tcnn.train_config import TrainConfig
from tcnn.view import View

_RESULT, _SCORES = "result.json", "scores.safetensors"


@dataclass(frozen=True)
class RunResult:
    """What came of one arm with one seed.

    Attributes:
        arm, seed: which.
        figures: all that was measured, as plain data.
        scores: "clean", "corrupted" and "fgsm ε": for each image whether it was classified rightly,
            or in which share of its corrupted versions.
    """

    arm: str
    seed: int
    figures: dict[str, Any]
    scores: dict[str, np.ndarray[Any, Any]]


def read_result(folder: Path, identity: dict[str, Any]) -> RunResult | None:
    """The result in a folder; None where there is none yet.

    Raises:
        TCNNError: it is of another setting.
    """
    figures = _read_figures(folder, identity)
    if figures is None:
        return None
    return RunResult(figures["arm"], figures["seed"], figures, load_file(folder / _SCORES))


def _read_figures(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    if not (folder / _RESULT).is_file():
        return None
    figures: dict[str, Any] = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(identity))
    differs = [key for key in wanted if wanted[key] != figures["identity"].get(key)]
    if differs:
        key = differs[0]
        raise TCNNError(
            f"Expected the result in {str(folder)!r} to be of this study, but {', '.join(differs)} "
            f"differ ({key}: {str(figures['identity'].get(key))[:90]} then, "
            f"{str(wanted[key])[:90]} now): give another --out, or remove that folder."
        )
    return figures


def identity_of(setting: Setting, arm: str, seed: int) -> dict[str, Any]:
    """What a result was made with, as plain data."""
    chosen = setting.arms[arm]
    return {
        **start_identity(setting),
        "arm": asdict(chosen),
        "recipe": asdict(setting.recipe(arm, seed)),
        "budget": setting.budget if chosen.start != "pretrained" else None,
        "targets": setting.targets_of(arm) if chosen.hybrid else None,
        "gpsa": asdict(setting.layers(arm)) if chosen.hybrid else None,
        "measure": {**asdict(setting.measure), "corruptions": _corruptions(setting)},
    }


def _corruptions(setting: Setting) -> list[str]:
    chosen = setting.measure.corruptions
    return list(STANDARD) if chosen is None else chosen


def start_identity(setting: Setting) -> dict[str, Any]:
    """What the CNN that the arms start from was made with, as plain data."""
    return {
        "model": [setting.model, setting.model_settings, setting.pretrained, setting.weights],
        "pretrain": asdict(setting.pretrain) if setting.pretrain else None,
        "data": {k: v for k, v in asdict(setting.data).items() if k != "workers"},
        "precision": setting.engine.precision,
        "accumulate": setting.engine.accumulate,
    }


def run_arm(setting: Setting, arm: str, seed: int, say: Callable[[str], None]) -> RunResult:
    """Train and test one arm with one seed, or read what came of it before."""
    folder, identity = setting.folder(arm, seed), identity_of(setting, arm, seed)
    if (found := read_result(folder, identity)) is not None:
        say("done before")
        return found
    make_folder(folder)
    model, images = _start(setting, arm, seed)
    chosen, recipe = setting.arms[arm], setting.recipe(arm, seed)
    before = sum(p.numel() for p in model.parameters())
    equivalence = None
    if chosen.hybrid:
        size = View.of(model, setting.data).input_size
        torch.manual_seed(seed)  # of queries and keys
        cnn, model = model, recast(model, setting.targets_of(arm), setting.layers(arm), size)
        equivalence = check_equivalence(cnn, model, random_images(size)).to_json()
    fitted = None
    if chosen.epochs != 0:
        callbacks = _snapshots(setting, arm, folder)
        fitted = _fit(setting, model, recipe, images, folder, identity, say, callbacks)
    figures, scores = _test(setting, model, images[1])
    figures = {
        "arm": arm,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_of_the_cnn": before,
        "recast": list(gpsa_layers(model)),
        "equivalence": equivalence,
        "images": [len(images[0]), len(images[1])],
        "fit": fitted,
        **figures,
        "heads_left": heads_left(model),
        "identity": identity,
        **provenance(),
    }
    checkpoint.save(model, folder / "model", classes=images[0].classes)
    write_whole(folder / _SCORES, lambda file: save_file(scores, file))
    write_json(folder / _RESULT, figures)
    say(f"top-1 {figures['clean']['top1']:.2%}")
    return RunResult(arm, seed, figures, scores)


def pretrain(setting: Setting, seed: int, say: Callable[[str], None]) -> None:
    """Train the CNN that arms start from, unless it is there already."""
    folder = setting.pretrained_folder(seed)
    if setting.pretrain is None:
        return
    recipe = replace(setting.pretrain, seed=seed)
    identity = {**start_identity(setting), "recipe": asdict(recipe)}
    if _read_figures(folder, identity) is not None:
        say("done before")
        return
    make_folder(folder)
    model, images = _cnn(setting, seed)
    fitted = _fit(setting, model, recipe, images, folder, identity, say, ())
    checkpoint.save(model, folder / "model", classes=images[0].classes)
    write_json(folder / _RESULT, {"fit": fitted, "identity": identity, **provenance()})


def _fit(
    setting: Setting,
    model: nn.Module,
    recipe: TrainConfig,
    images: tuple[Images, Images],
    folder: Path,
    identity: dict[str, Any],
    say: Callable[[str], None],
    callbacks: tuple[lightning.Callback, ...],
) -> dict[str, Any]:
    view = View.of(model, setting.data)
    engine = setting.engine
    data = ImageData(*images, view, setting.data, recipe.batch_size, recipe.seed, engine.accumulate)
    result = fit(
        model,
        data,
        recipe,
        engine,
        out=folder,
        resume=True,
        identity={"study": identity},
        progress=say,
        callbacks=callbacks,
    )
    return result.to_json()


def _start(setting: Setting, arm: str, seed: int) -> tuple[nn.Module, tuple[Images, Images]]:
    """The CNN that an arm starts from, and the images, of its classes."""
    start = setting.arms[arm].start
    if start == "scratch" or (start == "pretrained" and setting.pretrain is None):
        return _cnn(setting, seed)
    if start == "pretrained":
        folder = setting.pretrained_folder(seed) / "model"
    else:
        whole = setting.scratch_arm()
        assert whole is not None and isinstance(start, float)  # `study` has seen to it
        snapshots = setting.folder(whole, seed) / "snapshots"
        folder = snapshots / f"epoch{setting.epochs_before(start)}"
        if not folder.is_dir():
            raise TCNNError(
                f"Expected arm {whole!r} to have kept the network of arm {arm!r}'s start, but it "
                f"was done before that was asked for: remove {str(setting.folder(whole, seed))!r}, "
                "and it is trained again."
            )
    model = checkpoint.load(folder)
    return model, open_data(setting.data, sources.origin(model).classes)


def _cnn(setting: Setting, seed: int) -> tuple[nn.Module, tuple[Images, Images]]:
    """The CNN as it comes, with random weights where the study trains it; and the images."""
    torch.manual_seed(seed)
    model = build_cnn(setting)
    images = open_data(setting.data, sources.origin(model).classes)
    view = View.of(model, setting.data)
    model, _ = for_classes(model, len(images[0].classes), view, False, seed)
    return model, images


def build_cnn(setting: Setting) -> nn.Module:
    """The CNN of a study, as it is given."""
    return load_model(
        setting.model, setting.pretrained, weights=setting.weights, **setting.model_settings
    )


def _snapshots(setting: Setting, arm: str, folder: Path) -> tuple[lightning.Callback, ...]:
    if arm != setting.scratch_arm():
        return ()
    shares = [a.start for a in setting.arms.values() if isinstance(a.start, float)]
    return (_Snapshots(folder / "snapshots", {setting.epochs_before(share) for share in shares}),)


class _Snapshots(Checkpoint):
    """Saves the network after some of the epochs."""

    def __init__(self, folder: Path, epochs: set[int]) -> None:
        self.folder, self.epochs, self.done = folder, epochs, 0

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = state_dict["done"]

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.done += 1
        if self.done in self.epochs:
            checkpoint.save(pl_module.result, self.folder / f"epoch{self.done}")


def _test(
    setting: Setting, model: nn.Module, images: Images
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Clean accuracy on all validation images; corrupted and attacked on some of them."""
    measure, view = setting.measure, View.of(model, setting.data)
    config = InferenceConfig(accelerator=setting.engine.accelerator, batch_size=measure.batch_size)
    fabric = make_fabric(config)

    def scored(part: Part) -> PartScore:
        return PartScore.of(part, score({"": (model, view)}, part, setting.data, config, fabric))

    whole = scored(clean(images)).scores[""].result
    figures: dict[str, Any] = {"clean": whole.to_json()}
    scores: dict[str, Tensor] = {"clean": whole.correct}
    some = take(images, measure.images, seed=0)
    if measure.severities:
        parts = corrupted(some, _corruptions(setting), measure.severities, 0)
        found = RobustnessResult(("",), tuple(scored(part) for part in parts))
        group = found.corrupted()
        figures["corrupted"] = {
            "images": group.images,
            "top1": group.top1(""),
            "by_corruption": {g.title: g.top1("") for g in found.by_corruption()},
            "source": "generated",
        }
        scores["corrupted"] = group.scores("")
    figures["fgsm"] = []
    tested = len(some)
    for part in attacked(some, [AttackConfig("fgsm", size) for size in measure.fgsm]):
        attack = scored(part).scores[""]
        figures["fgsm"].append(
            {
                "grey_levels": part.level,
                **attack.result.to_json(),
                "masked": int(attack.masked.sum()),
            }
        )
        scores[f"fgsm {part.level:g}"] = attack.result.correct
        tested = attack.result.images
    figures["tested"] = {"clean": whole.images, "corrupted and attacked": tested}
    model.cpu()
    return figures, {name: score.numpy() for name, score in scores.items()}
