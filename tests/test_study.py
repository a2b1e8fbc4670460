"""Studies: the statistics by hand, and a small one from the command line to the page."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import tcnn
from tcnn.__main__ import main
from tcnn.data_config import DataConfig
from tcnn.keeping import Stopped
from tcnn.loaders import open_data
from tcnn.study_config import ArmConfig, MeasureConfig
from tcnn.study_result import Difference, paired

RECIPE: dict[str, Any] = {
    "model": "tcnn.networks:cifar_resnet",
    "model_settings": {"depth": 8, "in_channels": 1, "widths": [4, 4, 8]},
    "seeds": [0, 1],
    "data": {
        "root": "digits",
        "input_size": [1, 16, 16],
        "mean": [0.0],
        "std": [1.0],
        "crop": "pad",
        "hflip": 0.0,
        "workers": 0,
        "max_train": 128,
        "max_val": 60,
    },
    "pretrain": {"epochs": 2, "batch_size": 64, "lr": 5.0e-3},
    "train": {"epochs": 1, "batch_size": 64, "lr": 2.0e-3, "gate_lr_scale": 20},
    "arms": {
        "cnn": {"epochs": 0},
        "control": {},
        "hybrid": {"hybrid": True},
        "whole": {"start": "scratch"},
        "third": {"hybrid": True, "start": 0.33},
        "held": {"hybrid": True, "train": {"gate_lr_scale": 0}, "gpsa": {"qk_dim": 4}},
    },
    "engine": {"tensorboard": False},
    "measure": {"severities": [2], "corruptions": ["contrast"], "images": 40, "fgsm": [2.0]},
}


def run(folder: Path, changes: dict[str, Any] | None = None) -> int:
    recipe = {**RECIPE, "out": str(folder / "out"), **(changes or {})}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return main(["study", "--config", str(folder / "recipe.yaml")])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    assert run(folder) == 0
    return folder, json.loads((folder / "out" / "study.json").read_text())


def test_interval_against_the_formula_by_hand() -> None:
    arm = np.array([[1, 1, 0, 1], [1, 0, 1, 1]], dtype=bool)
    control = np.array([[1, 0, 0, 1], [0, 0, 1, 0]], dtype=bool)
    found = paired(arm, control)
    # By seed: +25 and +50 points; by image: 50, 50, 0, 50. Student's t at 97.5 %, from a table.
    assert found.mean == 37.5
    reach = math.sqrt(12.706**2 * 312.5 / 2 + 3.182**2 * 625 / 4)
    assert found.high == pytest.approx(37.5 + reach, rel=1e-3)
    assert found.low == pytest.approx(37.5 - reach, rel=1e-3)
    assert found.verdict == "no difference shown"


@pytest.mark.parametrize(
    ("seeds", "images", "of_seed", "of_image", "of_both"),
    [(2, 1000, 0.03, 0.3, 0.1), (2, 1000, 0.0, 0.3, 0.3), (3, 1000, 0.02, 0.25, 0.1),
     (3, 200, 0.1, 0.3, 0.3), (5, 300, 0.0, 0.01, 0.3)],
)  # fmt: skip
def test_interval_covers_the_truth_as_often_as_it_says(
    seeds: int, images: int, of_seed: float, of_image: float, of_both: float
) -> None:
    """Random arms whose difference is 10 points: 95 % or more of 600 intervals hold it."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        effect = rng.normal(0.1, of_seed, (seeds, 1)) + rng.normal(0, of_image, images)
        arm = effect + rng.normal(0, of_both, (seeds, images))
        found = paired(arm, np.zeros((seeds, images)))
        assert found.low is not None and found.high is not None
        hits += found.low <= 10 <= found.high
    assert hits >= 600 * 0.95 - 3 * math.sqrt(600 * 0.95 * 0.05)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 2.0, "gain"), (-2.0, -0.1, "loss"), (-0.1, 2.0, "no difference shown"),
     (None, None, "one seed: not known")],
)  # fmt: skip
def test_verdicts(low: float | None, high: float | None, verdict: str) -> None:
    assert Difference(1.0, low, high, 3).verdict == verdict


def test_one_seed_and_no_difference_at_all() -> None:
    one = np.ones((1, 5))
    assert paired(one, one).low is None
    two = np.ones((2, 5))
    assert paired(two, two) == Difference(0, 0, 0, 2)
    assert paired(two, two).verdict == "no difference shown"


def test_what_a_study_writes(done: tuple[Path, dict[str, Any]]) -> None:
    folder, content = done
    out = folder / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {
        "arms",
        "curves.png",
        "differences.png",
        "pretrained",
        "report.html",
        "study.json",
        "study.md",
    }
    assert list(content["arms"]) == list(RECIPE["arms"])
    assert list(content["arms"]["control"]) == ["clean", "corrupted", "fgsm 2"]
    page = (out / "study.md").read_text()
    assert page.count("\n| ") == 2 + len(RECIPE["arms"])
    assert "paired over seeds" in page and "no published files" in page
    assert "tcnn" in content["command"]


def test_epochs_are_those_of_the_budget(done: tuple[Path, dict[str, Any]]) -> None:
    _, content = done
    epochs = {
        run["arm"]: len(run["fit"]["history"]) if run["fit"] else 0 for run in content["runs"]
    }
    assert epochs == {"cnn": 0, "control": 1, "hybrid": 1, "whole": 3, "third": 2, "held": 1}


def test_arms_start_from_one_network(done: tuple[Path, dict[str, Any]]) -> None:
    folder, content = done
    out = folder / "out"
    # The CNN as it is, is the pretrained one; every seed has its own.
    for seed in (0, 1):
        cnn = tcnn.load(out / "arms" / "cnn" / f"seed{seed}" / "model")
        first = tcnn.load(out / "pretrained" / f"seed{seed}" / "model")
        for a, b in zip(cnn.state_dict().values(), first.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    runs = {(run["arm"], run["seed"]): run for run in content["runs"]}
    assert runs["cnn", 0]["clean"] != runs["cnn", 1]["clean"]
    assert runs["hybrid", 0]["recast"] == ["layer3.0.conv1", "layer3.0.conv2"]
    assert runs["held", 0]["fit"]["history"][-1]["mean_content_share"] == 0
    assert runs["hybrid", 0]["fit"]["history"][-1]["mean_content_share"] > 0.01
    layer = tcnn.load(out / "arms" / "held" / "seed1" / "model").get_submodule("layer3.0.conv2")
    assert layer.config.qk_dim == 4
    assert (out / "arms" / "whole" / "seed0" / "snapshots" / "epoch1").is_dir()


def test_figures_are_those_of_the_saved_networks(done: tuple[Path, dict[str, Any]]) -> None:
    """Clean accuracy, measured again on the saved network without the package's loaders."""
    folder, content = done
    test = open_data(DataConfig(root="digits", max_val=60))[1]
    pictures = [
        test.read(i).convert("L").resize((16, 16), Image.Resampling.BICUBIC) for i in range(60)
    ]
    x = torch.tensor(np.stack([np.asarray(p) for p in pictures])).float()[:, None] / 255
    y = torch.tensor(test.labels)
    for arm in ("control", "hybrid"):
        run = next(r for r in content["runs"] if (r["arm"], r["seed"]) == (arm, 1))
        model = tcnn.load(folder / "out" / "arms" / arm / "seed1" / "model")
        assert run["clean"]["top1"] == pytest.approx(
            (model(x).argmax(1) == y).float().mean().item()
        )
    # The table's figures are those of the runs.
    for arm, measures in content["arms"].items():
        runs = [run for run in content["runs"] if run["arm"] == arm]
        assert measures["corrupted"]["top1"] == pytest.approx(
            [r["corrupted"]["top1"] for r in runs]
        )
        assert measures["fgsm 2"]["top1"] == pytest.approx([r["fgsm"][0]["top1"] for r in runs])


def test_again_does_nothing_anew_and_grows(
    done: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, content = done
    result = folder / "out" / "arms" / "hybrid" / "seed0" / "result.json"
    before = result.stat().st_mtime_ns
    arms = {**RECIPE["arms"], "sigmoid": {"hybrid": True, "gpsa": {"gate": "sigmoid"}}}
    assert run(folder, {"arms": arms, "seeds": [0]}) == 0
    assert result.stat().st_mtime_ns == before
    said = capsys.readouterr().out
    assert said.count("done before") == len(RECIPE["arms"]) + 1  # and the pretraining
    assert "one seed: not known" in said
    assert run(folder) == 0  # the page of before comes back from the same results
    again = json.loads((folder / "out" / "study.json").read_text())
    assert again["arms"] == content["arms"]


def test_another_recipe_in_the_same_folder(
    done: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = done
    assert run(folder, {"train": {**RECIPE["train"], "lr": 1.0e-3}}) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "recipe" in said and "another --out" in said


def test_a_stale_pretrained_network_is_not_taken(
    done: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = done
    changes = {"pretrain": {**RECIPE["pretrain"], "lr": 1.0e-5}, "arms": {"control": {}, "new": {}}}
    assert run(folder, changes) == 1
    assert "pretrain" in capsys.readouterr().err


def test_a_share_that_was_not_kept(
    done: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = done
    arms = {**RECIPE["arms"], "late": {"hybrid": True, "start": 0.7}}
    assert run(folder, {"arms": arms}) == 1
    said = capsys.readouterr().err
    assert "is trained again" in said and said.count("\n") == 1


def test_classes_in_another_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cnn = tcnn.load_model("tcnn.networks:cifar_resnet", **RECIPE["model_settings"])
    tcnn.save(cnn, tmp_path / "cnn", classes=list("9876543210"))
    changes = {"model": str(tmp_path / "cnn"), "model_settings": {}, "pretrain": None}
    assert run(tmp_path, {**changes, "arms": {"control": {}}}) == 1
    assert "saved with" in capsys.readouterr().err


def test_stopped_comes_out_of_a_process_whole() -> None:
    stopped = pickle.loads(pickle.dumps(Stopped(15, Path("last.ckpt"))))
    assert str(stopped) == "stopped by SIGTERM; the run is kept in last.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_side_by_side(tmp_path: Path, number: signal.Signals) -> None:
    """Nothing hangs and nothing goes on alone; asked again, the study ends."""
    arms = {name: RECIPE["arms"][name] for name in ("control", "hybrid")}
    train = {**RECIPE["train"], "epochs": 200}
    recipe = {**RECIPE, "out": str(tmp_path / "out"), "arms": arms, "train": train, "jobs": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    words = [sys.executable, "-m", "tcnn", "study", "--config", str(tmp_path / "recipe.yaml")]
    asked = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("out/arms/*/*/last.ckpt"))) < 2:
        assert asked.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(asked.pid, number)  # as a terminal sends it
    else:
        asked.send_signal(number)
    _, said = asked.communicate(timeout=120)
    assert asked.returncode == 128 + number
    assert "Traceback" not in said
    time.sleep(2)
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        os.killpg(asked.pid, 0)


@pytest.mark.slow
def test_side_by_side_is_the_same(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, content = done
    arms = {name: RECIPE["arms"][name] for name in ("control", "hybrid")}
    assert run(tmp_path, {"arms": arms, "jobs": 2}) == 0
    again = json.loads((tmp_path / "out" / "study.json").read_text())
    for arm in arms:
        for measure, found in again["arms"][arm].items():
            # Another number of threads rounds otherwise; a toy's accuracy may feel it.
            assert found["top1"] == pytest.approx(content["arms"][arm][measure]["top1"], abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": "none"}, "to be one of the arms"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"seeds": [0, -1]}, "from 0 up"),
        ({"jobs": 0}, "`jobs` from 1 up"),
        ({"measure": {"corruptions": ["gausian_noise"]}}, "gausian_noise"),
        ({"arms": {"control": {}, "..": {}}}, "can be folders"),
        ({"arms": {"control": {}, "a": {"hybrid": True, "targets": "layer9.*"}}}, "layer9"),
        ({"weights": "nowhere.pth"}, "leave one out"),
        ({"engine": {"devices": 2}}, "--jobs"),
        ({"arms": {"control": {}, "a": {"start": 0.5}}}, "start: scratch"),
        ({"arms": {"control": {"train": {"lrr": 1}}}}, "in arm 'control'"),
        ({"arms": {"control": {}, "a": {"start": "scratch"}}, "pretrain": None}, "`pretrain`"),
    ],
)
def test_studies_that_cannot_be(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, changes) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="`start`"):
        ArmConfig(start=1.5)
    with pytest.raises(ValueError, match="`epochs`"):
        ArmConfig(epochs=-1)
    with pytest.raises(ValueError, match="`train`"):
        ArmConfig(train={"seed": 7})
    with pytest.raises(ValueError, match="`gpsa`"):
        ArmConfig(gpsa={"gate": "sigmoid"})
    with pytest.raises(ValueError, match="`severities`"):
        MeasureConfig(severities=[6])
    with pytest.raises(ValueError, match="`images`"):
        MeasureConfig(images=1)
    with pytest.raises(ValueError, match="`fgsm`"):
        MeasureConfig(fgsm=[-1])
