"""Every recipe is run, cut short: on tiny images of its own kind, with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import tcnn
from tcnn import study
from tcnn.__main__ import main
from tcnn.networks import cifar_resnet20

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
# What makes a recipe short, on top of what it says.
SHORT: dict[str, list[str]] = {
    "finetune_cifar10": ["--train.epochs", "1", "--train.batch_size", "4"],
    "finetune_digits": ["--train.epochs", "1", "--data.max_train", "64", "--data.max_val", "20"],
    "resnetrs50_imagenet": [
        *("--model", "timm:resnet18", "--pretrained", "false"),
        *("--train.epochs", "1", "--train.batch_size", "4", "--train.warmup_epochs", "0"),
        *("--data.input_size", "[3, 64, 64]", "--data.workers", "0", "--engine.precision", "32"),
    ],
    "robustness_cifar10": [
        *("--engine.devices", "1", "--data.workers", "0", "--measure.severities", "[3]"),
        *("--measure.corruptions", "[contrast, saturate]", "--measure.pgd_steps", "1"),
    ],
    "study_cifar10": [
        *("--seeds", "[0]", "--data.max_train", "8", "--train.batch_size", "4"),
        *("--arms", "{cnn: {epochs: 0}, control: {}, hybrid: {hybrid: true}}"),
        *("--train.epochs", "1", "--measure.images", "4"),
    ],
    "study_demo": [
        *("--seeds", "[0]", "--jobs", "1", "--data.max_train", "64", "--data.max_val", "20"),
        *("--pretrain.epochs", "1", "--train.epochs", "1", "--measure.images", "20"),
    ],
    "study_tinyimagenet50": [
        *("--seeds", "[0]", "--data.max_train", "8", "--measure.images", "4"),
        *("--arms", "{control: {}, two: {hybrid: true, targets: ['layer3.1.*', 'layer4.*']}}"),
        *("--pretrain.epochs", "1", "--pretrain.batch_size", "4", "--train.epochs", "1"),
        *("--train.batch_size", "4"),
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as the recipes name them, each with two classes of noise."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, side in (("cifar10", 32), ("tinyimagenet50", 64), ("imagenet", 80)):
        for split, count in (("train", 4), ("val", 2)):
            for label in ("a", "b"):
                place = folder / "data" / name / split / label
                place.mkdir(parents=True)
                for index in range(count):
                    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{index}.png")
    (folder / "data" / "weights").mkdir()
    state = {f"module.{name}": value for name, value in cifar_resnet20().state_dict().items()}
    torch.save({"state_dict": state}, folder / "data" / "weights" / "resnet20-12fca82f.th")
    return folder


def test_all_recipes_are_known() -> None:
    assert {path.stem for path in RECIPES} == set(SHORT)


@pytest.mark.parametrize("name", [name for name in SHORT if name.startswith("study")])
def test_arms_of_a_study_can_all_be(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every arm, as the recipe has it, passes what is looked at before the first is trained."""
    shutil.copytree(data / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    looked = []
    monkeypatch.setattr(study, "_waves", lambda setting, seeds: looked.append(setting) or [])
    recipe = next(path for path in RECIPES if path.stem == name)
    with pytest.raises(KeyError):  # there are no results
        main(["study", "--config", str(recipe)])
    assert list(looked[0].arms) == list(yaml.safe_load(recipe.read_text())["arms"])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe(recipe: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(data / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    content: dict[str, Any] = yaml.safe_load(recipe.read_text())
    command = "study" if "arms" in content else "robustness" if "suite" in content else "finetune"
    if command == "robustness":
        network = tcnn.load_model("tcnn.networks:cifar_resnet20", num_classes=2)
        for place in (content["model"], content["compare"]):
            tcnn.save(network, place, classes=["a", "b"])
    assert main([command, "--config", str(recipe), *SHORT[recipe.stem]]) == 0
    out = tmp_path / content["out"]
    if command == "study":
        assert (out / "study.md").is_file()
        saved = next(out.glob("arms/*/seed0/model"))
    elif command == "robustness":
        assert (out / "robustness.md").is_file()
        return
    else:
        saved = out
    assert not tcnn.load(saved).training
