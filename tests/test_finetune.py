"""`tcnn finetune`, by its real door, on images of a few pixels."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tcnn
from tcnn import sources
from tcnn.__main__ import main
from tcnn.data_config import DataConfig
from tcnn.finetune import heads_left
from tcnn.loaders import open_data
from tcnn.view import View

CLASSES = ("cat", "dog", "owl")
FAST = [
    "--data.workers", "0", "--data.crop", "pad", "--train.epochs", "2", "--train.batch_size", "8",
    "--engine.accelerator", "cpu",
]  # fmt: skip
TIMM = [
    "--model", "timm:resnet18", "--pretrained", "false", "--data.input_size", "[3,32,32]",
    "--data.mean", "[0.5,0.5,0.5]", "--data.std", "[0.5,0.5,0.5]",
]  # fmt: skip
FILES = {
    "best", "curves.png", "gates.csv", "history.csv", "last.ckpt", "model.safetensors",
    "report.html", "run.json", "tcnn.json", "tensorboard",
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def coloured(label: int, index: int) -> Image.Image:
    """Red, green or blue, with noise: three classes that are learned at once."""
    pixels = np.random.default_rng([label, index]).integers(0, 90, (20, 24, 3))
    pixels[..., label] += 150
    return Image.fromarray(pixels.astype(np.uint8))


def folders(root: Path, classes: tuple[str, ...] = CLASSES, train: int = 8, val: int = 4) -> Path:
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                coloured(label, index).save(root / split / name / f"{index}.png")
    return root


def parquet(root: Path) -> Path:
    import datasets

    root.mkdir()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    for split, count in (("train", 8), ("val", 4)):
        rows = [(coloured(k, i), k) for k in range(3) for i in range(count)]
        columns = {"image": [r[0] for r in rows], "label": [r[1] for r in rows]}
        datasets.Dataset.from_dict(columns, features).to_parquet(root / f"{split}-0.parquet")
    return root


@pytest.fixture
def saved() -> Path:
    """A hybrid of three classes that have names."""
    torch.manual_seed(0)
    settings = {"depth": 8, "num_classes": 3, "widths": [4, 4, 8]}
    cnn = tcnn.load_model("tcnn.networks:cifar_resnet", **settings)
    tcnn.save(tcnn.recast(cnn), "hybrid", classes=CLASSES)
    return Path("hybrid")


def fails(capsys: pytest.CaptureFixture[str], *args: str, code: int = 1) -> str:
    capsys.readouterr()
    assert main(["finetune", *args]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert err.startswith("tcnn finetune: ")
    return err


def measured(out: str, data: DataConfig) -> float:
    """Accuracy of a saved network on the validation images, one by one."""
    model = tcnn.load(out)
    view, images = View.of(model, data), open_data(data, sources.origin(model).classes)[1]
    transform, hits = view.transform(), 0
    with torch.no_grad():
        for index in range(len(images)):
            scores = model(transform(view.channels(images.read(index)))[None])
            hits += int(scores.argmax() == images.labels[index])
    return hits / len(images)


@pytest.mark.parametrize("layout", ["folders", "parquet"])
def test_a_saved_hybrid(layout: str, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(Path("data")) if layout == "folders" else parquet(Path("data"))
    words = ["--model", str(saved), "--data.root", str(root), "--out", "run", *FAST]
    words += ["--train.lr", "1e-2", "--train.gate_lr_scale", "30", "--train.distill", "0.1"]
    assert main(["finetune", *words]) == 0
    said = capsys.readouterr().out
    assert "24 training and 12 validation images of 3 classes in 'data'\n" in said
    assert "epoch 2/2: train loss" in said
    assert "layer3.0.conv1: " in said
    assert {path.name for path in Path("run").iterdir()} == FILES
    run = json.loads(Path("run/run.json").read_text())
    history = run["result"]["history"]
    data = DataConfig(root=str(root))
    assert measured("run", data) == pytest.approx(history[-1]["val_top1"])
    assert measured("run/best", data) == pytest.approx(max(e["val_top1"] for e in history))
    assert json.loads(Path("run/tcnn.json").read_text())["classes"] == list(CLASSES)
    assert run["new_parameters"] == []
    assert run["train"]["gate_lr_scale"] == 30
    assert run["heads_left"] == json.loads(json.dumps(heads_left(tcnn.load("run"))))
    rows = list(csv.DictReader(Path("run/history.csv").read_text().splitlines()))
    assert [float(row["val_loss"]) for row in rows] == [e["val_loss"] for e in history]
    assert Path("run/curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(Path("run/tensorboard").glob("events.*"))


def test_a_network_of_timms_recast_on_the_fly(capsys: pytest.CaptureFixture[str]) -> None:
    folders(Path("data"))
    words = [*TIMM, "--data.root", "data", "--out", "run", *FAST, "--train.epochs", "1"]
    assert main(["finetune", *words]) == 0
    said = capsys.readouterr().out
    assert "layer3.0.conv2" in said or "layer4.0.conv1" in said
    assert "a new classifier: fc.weight, fc.bias" in said
    assert {path.name for path in Path("run").iterdir()} == FILES
    model = tcnn.load("run")
    assert model.fc.out_features == 3
    assert any(isinstance(m, tcnn.GPSA2d) for m in model.modules())
    run = json.loads(Path("run/run.json").read_text())
    half = (0.5, 0.5, 0.5)
    data = DataConfig(root="data", input_size=(3, 32, 32), mean=half, std=half)
    assert measured("run", data) == pytest.approx(run["result"]["history"][-1]["val_top1"])
    assert run["new_parameters"] == ["fc.weight", "fc.bias"]


def test_the_cnn_as_it_is(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network of torchvision's does not say how many classes it has: that is measured."""
    folders(Path("data"))
    words = [
        "--model", "torchvision:resnet18", "--pretrained", "false", "--data.input_size",
        "[3,32,32]", "--data.root", "data", "--recast", "false", "--out", "run", *FAST,
        "--train.epochs", "1",
    ]  # fmt: skip
    assert main(["finetune", *words]) == 0
    assert "a new classifier: fc.weight, fc.bias" in capsys.readouterr().out
    model = tcnn.load("run")
    assert model.fc.out_features == 3
    assert not any(isinstance(m, tcnn.GPSA2d) for m in model.modules())
    assert len(Path("run/gates.csv").read_text().splitlines()) == 1


def test_a_run_is_not_written_over_but_resumed(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders(Path("data"))
    words = ["--model", str(saved), "--data.root", "data", "--out", "run", *FAST]
    assert main(["finetune", *words]) == 0
    weights = Path("run/model.safetensors").read_bytes()
    assert "holds one: go on with it with --resume" in fails(capsys, *words)
    (Path("run/best/.saving-x")).mkdir()
    Path("run/model.safetensors").unlink()
    assert main(["finetune", "--resume", *words]) == 0  # without a value
    assert Path("run/model.safetensors").read_bytes() == weights
    assert not Path("run/best/.saving-x").exists()
    line = fails(capsys, *words, "--resume", "true", "--train.lr", "1e-3")
    assert "train.lr (0.0005 then, 0.001 now)" in line


def odd_pictures(folder: Path) -> None:
    """Those that folders of pictures really hold."""
    image, jpeg = coloured(0, 0), io.BytesIO()
    image.save(jpeg, "jpeg")
    (folder / "cut.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.jpg").touch()
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(folder / "deep.png")
    image.convert("P").save(folder / "palette.png")
    image.putalpha(90)
    image.save(folder / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    coloured(0, 1).save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1), "red").save(folder / "dot.png")


def test_odd_pictures_are_read_or_named(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders(Path("data"), train=5)
    odd_pictures(Path("data/train/cat"))
    words = ["--model", str(saved), "--data.root", "data", *FAST]
    assert main(["finetune", *words, "--out", "run"]) == 0
    rows = list(csv.DictReader(Path("run/unreadable.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == [
        f"train/cat/{name}.jpg" for name in ("cut", "empty", "text")
    ]
    assert all(row["reason"] for row in rows)
    run = json.loads(Path("run/run.json").read_text())
    assert sorted(run["result"]["unreadable"]) == [row["image"] for row in rows]
    assert "3 images could not be read; others took their place" in capsys.readouterr().out
    line = fails(
        capsys, *words, "--out", "other", "--data.unreadable", "fail", "--data.workers", "1"
    )
    assert "Expected an image that can be read, but 'train/cat/" in line


def test_classes(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders(Path("data"), ("ant", *CLASSES[1:]))
    words = ["--model", str(saved), "--data.root", "data", "--out", "run", *FAST]
    line = fails(capsys, *words)
    assert "1 are missing ('cat') and 1 are foreign ('ant')" in line
    assert not Path("run/last.ckpt").exists()
    assert main(["finetune", *words, "--new_head", "--train.epochs", "1"]) == 0
    assert "a new classifier: linear.weight, linear.bias" in capsys.readouterr().out
    assert sources.origin(tcnn.load("run")).classes == ("ant", "dog", "owl")
    shutil.rmtree("run")
    line = fails(capsys, *words, "--new_head", "--train.distill", "0.5")
    assert "a classifier to distil from" in line
    shutil.rmtree("data/val/owl")
    Path("data/val/owl").mkdir()
    assert "empty class" in fails(capsys, *words, "--new_head")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.root", "nowhere"], "nowhere"),
        (["--train.batch_size", "64"], "at least one batch of 64 training images, but got 24"),
        (["--engine.accumulate", "3"], "divide over 1 processes x 3 accumulations"),
        (["--engine.wandb", "project"], "pip install wandb"),
        (["--train.opt", "adamm"], "an optimiser of timm"),
        (["--out", "file/below"], "can be written to"),
        (["--data.input_size", "[1,32,32]"], "images of 1×32×32"),
        (["--train.lr", "1e30"], "Expected training to stay finite"),
        (["--train.drop_path", "0.1"], "no block of"),
    ],
)
def test_failures(
    saved: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    folders(Path("data"))
    Path("file").touch()
    base = ["--model", str(saved), "--data.root", "data", "--out", "run", *FAST]
    assert said in fails(capsys, *base, *words)
    assert not Path("run/run.json").exists()


def test_the_seed_fixes_a_network_made_on_the_fly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights, queries and keys too; and what a launcher calls a lone process is nothing."""
    folders(Path("data"))
    words = [*TIMM, "--data.root", "data", *FAST, "--train.epochs", "1"]
    assert main(["finetune", *words, "--out", "a"]) == 0
    torch.rand(7)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert main(["finetune", *words, "--out", "b"]) == 0
    first, second = (Path(out, "model.safetensors").read_bytes() for out in "ab")
    assert first == second
    start = json.loads(Path("b/run.json").read_text())["start"]
    assert start["model"] == "timm:resnet18" and start["recast"] is True


def test_the_folder_of_a_network_is_not_written_over(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders(Path("data"))
    before = Path(saved, "model.safetensors").read_bytes()
    words = ["--model", str(saved), "--data.root", "data", "--out", str(saved), *FAST]
    assert "would be overwritten" in fails(capsys, *words)
    assert Path(saved, "model.safetensors").read_bytes() == before


def test_a_data_folder_that_has_moved(saved: Path) -> None:
    folders(Path("data"))
    words = ["--model", str(saved), "--out", "run", *FAST, "--train.epochs", "1"]
    assert main(["finetune", *words, "--data.root", "data"]) == 0
    Path("data").rename("moved")
    assert main(["finetune", *words, "--data.root", "moved", "--resume"]) == 0
