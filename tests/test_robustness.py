"""The tests of networks, by the command line's real door and from Python: files against loops,
runs that are cut, several processes, published sets with known answers, and every bad input."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import tcnn
from published_trees import Tree, standard
from tcnn import imagenet
from tcnn.__main__ import main
from tcnn.data_config import ImagesConfig
from tcnn.errors import TCNNError
from tcnn.evaluate_config import InferenceConfig, RobustnessConfig
from tcnn.evaluation import evaluate_images, measure_robustness
from tcnn.processes import make_fabric
from tcnn.robustness import robustness, weights_checksum
from tcnn.robustness_result import RobustnessResult
from tcnn.suites import parts_of

NET = "tcnn.networks:cifar_resnet"
SETTINGS = ["--model_settings", "{depth: 8, widths: [4, 4, 8], in_channels: 1}"]
COMMON = ["--data.root", "digits", "--data.workers", "0", "--engine.accelerator", "cpu"]
WNIDS = tuple(sorted(standard()))
CPU = InferenceConfig(accelerator="cpu", batch_size=64)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A network that was trained a little on digits, and one of other weights."""
    root = tmp_path_factory.mktemp("networks")
    names = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = tcnn.load_model(NET, depth=8, widths=[4, 4, 8], in_channels=1)
        with torch.no_grad():  # so that it does not answer one class to all
            model.get_submodule("linear").weight.mul_(4)
            model.get_submodule("linear").bias.zero_()
        hybrid = tcnn.recast(model, "layer3.*", input_size=(1, 32, 32))
        tcnn.save(hybrid, root / str(seed))
        names.append(str(root / str(seed)))
    return names[0], names[1]


def fails(capsys: pytest.CaptureFixture[str], code: int, *args: object) -> str:
    """The one line on stderr of a command that ends with this exit code."""
    capsys.readouterr()
    try:
        found = main([str(word) for word in args])
    except SystemExit as end:
        found = end.code
    captured = capsys.readouterr()
    assert found == code, captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith(f"tcnn {args[0]}: error: ")
    return captured.err


def table(file: str | Path) -> list[dict[str, str]]:
    with Path(file).open(newline="") as stream:
        return list(csv.DictReader(stream))


def plain(file: str | Path) -> Any:
    """The JSON of a file, which must be JSON in the strict sense."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(Path(file).read_text(), parse_constant=refuse)


# evaluate


def test_the_files_of_evaluate_agree(
    networks: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.max_val", "90", "--engine.batch_size", "32", "--out", "deep/found"]
    assert main(["evaluate", networks[0], *COMMON, *words]) == 0
    out = capsys.readouterr().out
    assert sorted(os.listdir("deep/found")) == [
        "classes.csv", "confusions.csv", "evaluation.json", "predictions.csv",
    ]  # fmt: skip
    rows = table("deep/found/predictions.csv")
    hits: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    sure: Counter[str] = Counter()
    wrong: Counter[tuple[str, str]] = Counter()
    bins, loss = [0.0] * 15, 0.0
    for row in rows:
        right = row["class"] == row["predicted"]
        confidence = float(row["confidence"])
        totals[row["class"]] += 1
        hits[row["class"]] += right
        sure[row["class"]] += confidence
        loss += float(row["loss"])
        bins[math.ceil(confidence * 15) - 1] += right - confidence
        if not right:
            wrong[row["class"], row["predicted"]] += 1
        else:
            assert float(row["loss"]) == pytest.approx(-math.log(confidence), rel=1e-4, abs=1e-5)
    found = plain("deep/found/evaluation.json")
    assert found["images"] == len(rows) == len({row["image"] for row in rows}) == 90
    top1 = sum(hits.values()) / 90
    assert 0 < top1 < 1
    assert found["top1"] == pytest.approx(top1)
    assert found["top1_standard_error"] == pytest.approx(math.sqrt(top1 * (1 - top1) / 89))
    assert found["loss"] == pytest.approx(loss / 90, rel=1e-5)
    assert found["expected_calibration_error"] == pytest.approx(sum(map(abs, bins)) / 90)
    classes = table("deep/found/classes.csv")
    assert [row["class"] for row in classes] == [str(digit) for digit in range(10)]
    for row in classes:
        name, count = row["class"], totals[row["class"]]
        assert int(row["images"]) == count
        assert float(row["top1"]) == pytest.approx(hits[name] / count)
        assert float(row["confidence"]) == pytest.approx(sure[name] / count, rel=1e-6)
    top5 = sum(float(row["top5"]) * int(row["images"]) for row in classes) / 90
    assert found["top5"] == pytest.approx(top5)
    pairs = table("deep/found/confusions.csv")
    assert {(r["class"], r["taken_for"]): int(r["images"]) for r in pairs} == wrong
    assert [int(r["images"]) for r in pairs] == sorted(wrong.values(), reverse=True)
    for row in pairs:
        share = int(row["images"]) / totals[row["class"]]
        assert float(row["share"]) == pytest.approx(share)
    assert f"{100 * top1:.2f}%" in out
    assert "images/s" in out and "Hardest classes" in out and "Most confused" in out
    assert found["processes"] == 1
    assert found["images_per_second"] == pytest.approx(90 / found["seconds"]["clock"])
    assert found["data"]["max_val"] == 90 and found["engine"]["batch_size"] == 32
    assert re.fullmatch(r"[0-9a-f]{8}", found["pixels"])
    assert found["versions"]["torch"] in torch.__version__


def test_evaluate_against_a_loop_over_the_digits(networks: tuple[str, str]) -> None:
    from tcnn.data import digits, split

    test = split(digits(), seed=0).test
    model = tcnn.load(networks[0])
    x, y = test.tensors()
    # One channel has the mean of three.
    x = (x - np.mean([0.485, 0.456, 0.406])) / np.mean([0.229, 0.224, 0.225])
    with torch.no_grad():
        right = [bool(model(a[None].float()).argmax() == b) for a, b in zip(x, y, strict=True)]
    found = evaluate_images(model, ImagesConfig(root="digits", workers=0), CPU)
    assert found is not None
    assert found.score.result.correct.tolist() == right


def test_random_weights_are_the_same_in_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("a", "b"):
        words = [*SETTINGS, *COMMON, "--data.max_val", "20", "--out", out]
        assert main(["evaluate", NET, *words]) == 0
    assert Path("a/predictions.csv").read_bytes() == Path("b/predictions.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.input_size", "[3, 32, 32]"], "runs on images of 3×32×32 (its input), but"),
        (["--data.input_size", "[1, -1, 0]"], "`input_size` to be 1 or more, but got (1, -1, 0)"),
        (["--data.interpolation", "cubic"], "one of nearest, bilinear, bicubic, box, hamming"),
        (["--data.crop_pct", "-1"], "`crop_pct` to be above 0, but got -1.0"),
        (["--data.std", "[0]"], "`std` to be above 0, but got (0.0,)"),
        (["--data.input_size", "[2, 8, 8]"], "1 or 3 channels for pictures, but it takes 2"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--data.root", ""], "Expected images, but got none: give --data.root"),
        (["--out", "file"], "folder that can be written to, but 'file' says"),
        (["--out", ""], "--out to be a folder, but it is empty"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_evaluate_refuses(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    Path("file").touch()
    assert said in fails(capsys, 1, "evaluate", NET, *SETTINGS, *COMMON, *words)


def folder_of_pictures(root: Path, classes: Sequence[str], each: int = 3) -> None:
    """Class folders of noise in colour, below val."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / "val" / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "val" / name / f"{number}.png")


def test_two_classes_and_pictures_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder_of_pictures(Path("set"), ("cat", "dog"))
    Path("set/val/cat/1.png").write_bytes(b"no picture")
    net = [NET, "--model_settings", "{depth: 8, widths: [4, 4, 4], num_classes: 2}"]
    words = ["--data.root", "set", "--data.workers", "0", "--engine.accelerator", "cpu"]
    assert main(["evaluate", *net, *words, "--out", "found"]) == 0
    assert "1 images could not be read and were left out" in capsys.readouterr().out
    found = plain("found/evaluation.json")
    assert (found["images"], found["top5"]) == (5, 1.0)
    assert [Path(name).name for name in found["unreadable"]] == ["1.png"]
    assert len(table("found/predictions.csv")) == 5

    measure = ["--suite", "corruptions", "--measure.corruptions", "[contrast]"]
    measure += ["--measure.severities", "[1, 5]", "--out", "hard"]
    assert main(["robustness", *net, *words, *measure]) == 0
    assert "1 images could not be read and were left out" in capsys.readouterr().out
    assert {row["images"] for row in table("hard/robustness.csv")} == {"5"}
    assert {row["unread"] for row in table("hard/robustness.csv")} == {"1"}

    line = fails(capsys, 1, "evaluate", *net, *words, "--data.unreadable", "fail")
    assert "1.png" in line and "cannot" in line
    line = fails(capsys, 1, "evaluate", NET, *SETTINGS[:1], "{depth: 8}", *words)
    assert "Expected images of 10 classes" in line and "'set' has 2" in line


def test_the_classes_of_the_network_are_those_of_the_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder_of_pictures(Path("set"), ("cat", "dog"))
    model = tcnn.load_model(NET, depth=8, widths=[4, 4, 4], num_classes=2)
    tcnn.save(model, "net", classes=["dog", "cow"])
    words = ["--data.root", "set", "--data.workers", "0"]
    line = fails(capsys, 1, "evaluate", "net", *words)
    assert "cat" in line and "cow" in line
    tcnn.save(model, "net", classes=["dog", "cat"])
    assert main(["evaluate", "net", *words, "--out", "found"]) == 0
    names = {row["image"]: row["class"] for row in table("found/predictions.csv")}
    assert all(f"/{name}/" in image for image, name in names.items())


def test_one_picture() -> None:
    words = [*SETTINGS, *COMMON, "--data.max_val", "1"]
    assert main(["evaluate", NET, *words, "--out", "found"]) == 0
    assert plain("found/evaluation.json")["top1_standard_error"] is None
    suites = ["--suite", "fgsm", "--measure.epsilons", "[0]", "--compare", NET]
    assert main(["robustness", NET, *words, *suites, "--out", "hard"]) == 0
    assert {g["images"] for g in plain("hard/robustness.json")["groups"]} == {1}


# robustness: the figures of a result

SMALL = [
    "--suite", "corruptions", "--suite", "fgsm", "--suite", "patch-shuffle",
    "--measure.corruptions", "[gaussian_noise, contrast, saturate]",
    "--measure.severities", "[1, 4]", "--measure.epsilons", "[0, 2]",
    "--measure.shuffle_grids", "[4]", "--data.max_val", "40",
]  # fmt: skip


@pytest.fixture(scope="module")
def compared(networks: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two networks; for reading alone."""
    out = tmp_path_factory.mktemp("compared") / "run"
    names = ["--compare", networks[1], "--names", "[first, second]"]
    assert main(["robustness", networks[0], *COMMON, *SMALL, *names, "--out", str(out)]) == 0
    return out


def right_of(out: Path, model: str) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Which images were right, by the names of parts' files."""
    return {
        file.stem: load_file(file)["correct"].numpy()
        for file in sorted((out / "parts" / model).iterdir())
    }


TITLES = {
    "clean": ["clean"],
    "corruptions, 2 standard": [
        f"corruptions-{name}-{s}" for name in ("gaussian_noise", "contrast") for s in (1, 4)
    ],
    "corruptions, 1 extra": ["corruptions-saturate-1", "corruptions-saturate-4"],
    "fgsm 0": ["fgsm-0"],
    "fgsm 2": ["fgsm-2"],
    "patch-shuffle 4": ["patch-shuffle-4"],
}


def test_the_figures_follow_from_the_parts(compared: Path) -> None:
    right = {model: right_of(compared, model) for model in ("first", "second")}
    files = [name for names in TITLES.values() for name in names]
    assert sorted(right["first"]) == sorted(right["second"]) == sorted(files)
    found = plain(compared / "robustness.json")
    assert [group["title"] for group in found["groups"]] == list(TITLES)
    for group in found["groups"]:
        names = TITLES[group["title"]]
        assert (group["images"], group["sets"]) == (40, len(names))
        shares = {}
        for model in ("first", "second"):
            hits = [[bool(right[model][name][i]) for name in names] for i in range(40)]
            shares[model] = [sum(row) / len(row) for row in hits]
            mean = sum(shares[model]) / 40
            spread = sum((share - mean) ** 2 for share in shares[model]) / 39
            assert group["top1"][model] == pytest.approx(mean)
            assert group["top1_standard_error"][model] == pytest.approx(math.sqrt(spread / 40))
        difference = sum(a - b for a, b in zip(*shares.values(), strict=True)) / 40
        told = group["comparison"]
        assert told["difference"] == pytest.approx(difference)
        assert told["low"] <= told["difference"] <= told["high"]
        if len(names) == 1:
            only = [sum(a > b for a, b in zip(*order, strict=True)) for order in (
                (shares["first"], shares["second"]), (shares["second"], shares["first"]),
            )]  # fmt: skip
            n, k = sum(only), min(only)
            tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
            assert told["mcnemar_p"] == pytest.approx(min(1.0, 2 * tail))
    differences = [group["comparison"]["difference"] for group in found["groups"]]
    assert any(differences)
    corruption = {row["corruption"]: row for row in found["by_corruption"]["corruptions"]}
    for name, row in corruption.items():
        for model in ("first", "second"):
            both = [right[model][f"corruptions-{name}-{s}"].mean() for s in (1, 4)]
            assert row["top1"][model] == pytest.approx(sum(both) / 2)
    assert found["corruption_errors"]["corruptions"]["first"] == {"mean_error": None}
    assert found["measure"]["severities"] == [1, 4]
    assert found["networks"]["first"] != found["networks"]["second"]


def test_the_csv_has_a_row_for_each_part_and_network(compared: Path) -> None:
    rows = table(compared / "robustness.csv")
    assert len(rows) == 2 * sum(map(len, TITLES.values()))
    for row in rows:
        words = [row["suite"], row["name"], f"{float(row['level']):g}" if row["level"] else ""]
        file = compared / "parts" / row["model"] / f"{'-'.join(filter(None, words))}.safetensors"
        columns = load_file(file)
        assert int(row["images"]) == len(columns["correct"]) == 40
        assert float(row["top1"]) == pytest.approx(columns["correct"].double().mean().item())
        assert float(row["top5"]) == pytest.approx(columns["in_top5"].double().mean().item())
        assert float(row["loss"]) == pytest.approx(columns["losses"].double().mean().item())
        assert int(row["masked"]) == columns["masked"].sum()
        assert int(row["unread"]) == 0
    pixels = {(row["suite"], row["name"], row["level"]): set() for row in rows}
    for row in rows:
        pixels[row["suite"], row["name"], row["level"]].add(row["pixels"])
    assert all(len(hashes) == 1 for hashes in pixels.values())  # both saw the same images
    # Attacks begin with the clean images, and grey has no saturation: 8 parts less these 2.
    shown = {name[0] + name[1]: min(hashes) for name, hashes in pixels.items()}
    assert shown["fgsm"] == shown["clean"] == shown["corruptionssaturate"]
    assert len({min(hashes) for hashes in pixels.values()}) == 6


def test_an_attack_of_size_0_is_the_clean_images(compared: Path) -> None:
    for model in ("first", "second"):
        columns = [
            load_file(compared / "parts" / model / f"{name}.safetensors")
            for name in ("clean", "fgsm-0")
        ]
        assert torch.equal(columns[0]["confidence"], columns[1]["confidence"])


def test_the_page_and_the_plots(compared: Path) -> None:
    page = (compared / "robustness.md").read_text()
    for title in TITLES:
        assert f"| {title} | 40 |" in page
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert pictures == ["suites.png", "corruptions.png", "scatter.png"]
    for name in pictures:
        with Image.open(compared / name) as picture:
            assert min(picture.size) > 100
    assert "generated here" in page
    assert "saturate (extra)" in page
    assert sorted(os.listdir(compared)) == sorted(
        [*pictures, "parts", "report.html", "robustness.csv", "robustness.json", "robustness.md"]
    )


def test_a_network_held_against_itself(
    networks: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*COMMON, *SMALL, "--compare", networks[0], "--out", "same"]
    assert main(["robustness", networks[0], *words]) == 0
    for group in plain("same/robustness.json")["groups"]:
        assert group["comparison"] == {"difference": 0, "low": 0, "high": 0, "mcnemar_p": 1}
    assert "+0.00 [+0.00, +0.00]" in capsys.readouterr().out


class Fixed(nn.Module):
    """Scores of an image by whether it is dark, whatever its pixels are beside that."""

    def __init__(self, dark: int, bright: int) -> None:
        super().__init__()
        self.register_buffer("answers", torch.tensor([dark, bright]))

    def forward(self, x: Tensor) -> Tensor:
        bright = (x.mean((1, 2, 3)) > 0).long()
        return nn.functional.one_hot(self.answers[bright], 2).float()


def test_the_sign_of_the_difference() -> None:
    """The first is right on all four, the second on the two bright ones: +50 points."""
    for name, level in (("a", 40), ("b", 210)):
        (Path("set/val") / name).mkdir(parents=True)
        for number in range(2):
            picture = Image.new("RGB", (8, 8), (level + number,) * 3)
            picture.save(Path("set/val") / name / f"{number}.png")
    data = ImagesConfig(root="set", workers=0, input_size=(3, 8, 8), mean=(0.5,) * 3)
    models = {"good": Fixed(0, 1), "poor": Fixed(1, 1)}
    found = measure_robustness(models, ["resolution"], "out", data, CPU)
    assert found is not None
    compared = found.groups[0].compare("good", "poor")
    assert compared.difference == 0.5
    assert compared.p == 0.5  # 2 · (1/2)²
    assert str(compared).startswith("+50.00 [")
    back = found.groups[0].compare("poor", "good")
    assert back.difference == -0.5
    assert (compared.low, compared.high) == pytest.approx((-back.high, -back.low), abs=0.26)


# Lists and names

LIST = ["--measure.epsilons", "[1]", "--measure.shuffle_grids", "[2]", "--data.max_val", "5"]


@pytest.mark.parametrize(
    "words",
    [
        ["--suite", "fgsm", "--suite", "patch-shuffle"],
        ["--suite", "[fgsm, patch-shuffle]"],
        ["--suite=fgsm", "--suite=patch-shuffle"],
        ["--suite", "[fgsm]", "--suite", "patch-shuffle"],
        ["--config", "list.yaml"],
        ["--config", "one.yaml", "--suite", "fgsm", "--suite", "patch-shuffle"],
    ],
    ids=" ".join,
)
def test_every_way_to_give_suites(words: list[str]) -> None:
    Path("list.yaml").write_text("suite: [fgsm, patch-shuffle]\n")
    Path("one.yaml").write_text("suite: [occlusion]\n")
    assert main(["robustness", NET, *SETTINGS, *COMMON, *LIST, *words, "--out", "run"]) == 0
    suites = [row["suite"] for row in table("run/robustness.csv")]
    assert suites == ["clean", "fgsm", "patch-shuffle"]


FOG = ["--suite", "corruptions", "--measure.corruptions", "[fog]"]
REFUSED: list[tuple[list[str], int, str]] = [
    (["--suite", "[]"], 1, "Expected a suite, but got none"),
    (["--suite", "corruption"], 1, "suite out of corruptions, fgsm, pgd"),
    (["--suite", "imagenet-b=there"], 1, "but got 'imagenet-b=there'"),
    (["--suite", "fgsm", "--suite", "fgsm"], 1, "each suite once, but got 'fgsm' twice"),
    (["--suite", "imagenet-a"], 1, "folder of imagenet-a, but got none"),
    (["--suite", "imagenet-a=nowhere"], 1, "1000 classes for imagenet-a, but got one with 10"),
    (["--suite", "cifar10-c=nowhere"], 1, "'nowhere' does not exist"),
    (["--suite", "fgsm=there"], 1, "no folder for fgsm"),
    (["--suite", "fgsm", "--data.root", ""], 1, "images for fgsm, which is made of them, but"),
    (["--suite", "fgsm", "--out", "file"], 1, "folder that can be written to, but"),
    (["--suite", "fgsm", "--names", "[a, a]"], 1, "two different words"),
    (["--suite", "fgsm", "--names", "[a, b/c]"], 1, "two different words"),
    (["--suite", "fgsm", "--names", "[a, '']"], 1, "two different words"),
    (["--suite", "fgsm", "--names", "[a, '..']"], 1, "two different words"),
    (["--suite", "fgsm", "--names", "[a]"], 2, "--names to be tuple with 2 elements, but got"),
    (["--suite", "corruptions", "--measure.corruptions", "[fogg]"], 1, "but got 'fogg'"),
    ([*FOG, "--measure.severities", "[0]"], 2, "`severities` to be whole numbers from 1 to 5"),
    ([*FOG, "--measure.severities", "[1, 1]"], 2, "`severities` to be one or more, each once"),
    ([*FOG, "--measure.severities", "[]"], 2, "`severities` to be one or more"),
    (["--suite", "corruptions", "--measure.corruptions", "[]"], 2, "`corruptions` to be one"),
    ([*FOG[:3], "[fog, fog]"], 2, "`corruptions` to be one or more, each once"),
    ([*FOG, "--measure.seed", "-1"], 2, "`seed` to be 0 or more, but got -1"),
    ([*FOG, "--data.input_size", "[1, 4, 4]"], 1, "at least 8 pixels a side for fog"),
    (["--suite", "fgsm", "--measure.epsilons", "[1, 1]"], 2, "`epsilons` to be one or more"),
    (["--suite", "fgsm", "--measure.epsilons", "[1, 1.0000001]"], 1, "but got 'fgsm 1' twice"),
    (["--suite", "fgsm", "--measure.epsilons", "[-1]"], 2, "grey levels from 0 to 255"),
    (["--suite", "fgsm", "--measure.epsilons", "[.nan]"], 2, "grey levels from 0 to 255"),
    (["--suite", "patch-shuffle", "--measure.shuffle_grids", "[64]"], 1, "for 64×64 patches"),
    (["--suite", "occlusion", "--measure.occlusion_grid", "64"], 1, "for 64×64 patches"),
    (["--suite", "resolution", "--measure.scales", "[.inf]"], 2, "`scales` to be above 0"),
    (["--suite", "fgsm", "--compare", "nowhere"], 1, "none of these"),
    (["--suite"], 2, "expected one argument"),
]


@pytest.mark.parametrize(
    ("words", "code", "said"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_robustness_refuses(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    Path("file").touch()
    head = ["robustness", NET, "--out", "run", *SETTINGS, *COMMON, "--data.max_val", "2"]
    assert said in fails(capsys, code, *head, *words)


def test_networks_of_other_outputs_or_classes_are_not_compared(
    networks: tuple[str, str],
) -> None:
    models = {
        name: tcnn.load_model(NET, depth=8, widths=[4, 4, 4], in_channels=1, num_classes=outputs)
        for name, outputs in (("a", 10), ("b", 9))
    }
    data = ImagesConfig(root="digits", workers=0)
    with pytest.raises(TCNNError, match="10 and 9 outputs"):
        measure_robustness(models, ["fgsm"], "out", data, CPU)


def test_networks_of_other_input_sizes_are_compared() -> None:
    """Each sees the images at its own size; they are paired all the same."""
    models = {}
    for name, side in (("large", 32), ("small", 16)):
        models[name] = tcnn.load_model(NET, depth=8, widths=[4, 4, 4], in_channels=1)
        settings: Any = models[name].pretrained_cfg
        settings["input_size"] = (1, side, side)
    data = ImagesConfig(root="digits", workers=0, max_val=10)
    measure = RobustnessConfig(scales=[0.5])
    found = measure_robustness(models, ["resolution"], "out", data, CPU, measure)
    assert found is not None
    for part in found.parts:
        assert part.scores["large"].pixels != part.scores["small"].pixels
        assert [score.result.images for score in part.scores.values()] == [10, 10]
    found.table(), found.to_json(), found.timing()


# Runs that are cut

CUT = RobustnessConfig(corruptions=["gaussian_noise", "fog"], severities=[1, 3], epsilons=[1.0])
DIGITS = ImagesConfig(root="digits", workers=0, max_val=12)
QUICK = InferenceConfig(accelerator="cpu", batch_size=5)  # three batches


def go(
    networks: tuple[str, str],
    out: str,
    counted: Callable[[], object] = lambda: None,
    say: Callable[[str], None] = lambda line: None,
    measure: RobustnessConfig = CUT,
    data: ImagesConfig = DIGITS,
) -> RobustnessResult:
    """A run of 7 parts; `counted` is called before each of a network's answers to a batch."""
    models = {}
    for name, folder in zip(("a", "b"), networks, strict=True):
        models[name] = tcnn.load(folder)
        models[name].register_forward_pre_hook(lambda *_: counted() and None)
    fabric = make_fabric(QUICK)
    from tcnn.loaders import open_validation

    images = open_validation(data)
    parts = parts_of(["corruptions", "fgsm", "occlusion"], measure, images, 10, None)[:7]
    found = robustness(models, parts, Path(out), data, QUICK, fabric, say=say)
    assert found is not None
    return found


def without_times(text: str) -> list[list[str]]:
    return [line.split(",")[:-4] for line in text.splitlines()]


def files_of(out: str) -> dict[str, tuple[bytes, int]]:
    """Content and time of each finished part."""
    return {
        str(file.relative_to(out)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in Path(out).rglob("*.safetensors")
        if ".writing-" not in str(file)
    }


@pytest.fixture(scope="module")
def uncut(networks: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> RobustnessResult:
    return go(networks, str(tmp_path_factory.mktemp("uncut")))


class Cutter:
    """Ctrl-C at the n-th call."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("moment", [1, 4, 6, 7, 9, 21, 38])
def test_interrupted_in_the_middle_of_a_part(
    networks: tuple[str, str], uncut: RobustnessResult, moment: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(networks, "run", counted=Cutter(moment))
    before = files_of("run")
    said: list[str] = []
    found = go(networks, "run", say=said.append)
    after = files_of("run")
    assert {name: after[name] for name in before} == before  # untouched
    assert len(after) == 14
    assert sum(line.endswith("(done before)") for line in said) == len(before) // 2
    assert without_times(found.csv()) == without_times(uncut.csv())
    for one, two in zip(found.parts, uncut.parts, strict=True):
        for name in ("a", "b"):
            a, b = one.scores[name], two.scores[name]
            for column in type(a.result).__dataclass_fields__:
                assert torch.equal(getattr(a.result, column), getattr(b.result, column))
            assert torch.equal(a.checksums, b.checksums)
    assert found.table() == uncut.table()


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_interrupted_between_parts(
    networks: tuple[str, str], uncut: RobustnessResult, parts: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(networks, "run", say=Cutter(parts))
    before = files_of("run")
    assert len(before) == 2 * parts
    found = go(networks, "run")
    after = files_of("run")
    assert {name: after[name] for name in before} == before
    assert without_times(found.csv()) == without_times(uncut.csv())


def test_cut_while_a_part_is_written(
    networks: tuple[str, str], uncut: RobustnessResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first network's score and before the second's: only that one is made again."""
    calls = Cutter(4)
    real = os.fsync

    def fsync(number: int) -> None:
        calls()
        real(number)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(KeyboardInterrupt):
            go(networks, "run")
    before = files_of("run")
    assert len(before) == 3
    Path("run/parts/a/.writing-left").mkdir()
    Path("run/parts/a/.writing-left/half.safetensors").write_bytes(b"half")
    found = go(networks, "run")
    after = files_of("run")
    assert {name: after[name] for name in before} == before
    assert len(after) == 14
    assert not list(Path("run").rglob(".writing-*"))
    assert without_times(found.csv()) == without_times(uncut.csv())


def test_a_finished_run_is_not_made_again(networks: tuple[str, str]) -> None:
    first = go(networks, "run")
    before = files_of("run")
    calls: list[int] = []
    second = go(networks, "run", counted=lambda: calls.append(1))
    assert not calls
    assert files_of("run") == before
    assert second.csv() == first.csv()  # with its times
    assert second.to_json() == first.to_json()


def test_what_differs_is_named(
    networks: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    go(networks, "run")
    before = files_of("run")
    first, second = networks

    def refusal(**other: Any) -> str:
        given = other.pop("networks", networks)
        with pytest.raises(TCNNError) as caught:
            go(given, "run", **other)
        message = str(caught.value)
        assert "\n" not in message and "give another --out, or remove that file" in message
        return message

    assert "`network` was ['CifarResNet'," in refusal(networks=(second, first))
    seed = RobustnessConfig(**{**vars(CUT), "seed": 1})
    message = refusal(measure=seed)
    assert "`change` was Corrupted(name='gaussian_noise', severity=1, seed=0), and is " in message
    assert "Corrupted(name='gaussian_noise', severity=1, seed=1): give" in message
    for name, value, key in (
        ("max_val", 11, "images"), ("unreadable", "fail", "unreadable"),
        ("input_size", (1, 16, 16), "view"), ("mean", (0.1,), "view"),
    ):  # fmt: skip
        other = ImagesConfig(**{**vars(DIGITS), name: value})
        assert f"`{key}` was " in refusal(data=other)
    assert files_of("run") == before


class Odd(nn.Linear):
    """Buffers of odd kinds, and extra state."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        for name, value in (
            ("empty", torch.zeros(0, 3)), ("flag", torch.tensor(True)),
            ("narrow", torch.ones(3).bfloat16()), ("turned", torch.arange(6).view(2, 3).T),
        ):  # fmt: skip
            self.register_buffer(name, value)
        self.state = {"a": 1}

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def test_the_checksum_of_weights_is_of_every_one() -> None:
    model = Odd()
    first = weights_checksum(model)
    assert weights_checksum(model) == first
    changes: list[Callable[[], object]] = [
        lambda: model.weight.data[0, 0].add_(1),
        lambda: model.flag.logical_not_(),
        lambda: model.narrow[2].add_(1),
        lambda: model.turned[2, 1].add_(1),
        lambda: model.set_extra_state({"a": 2}),
    ]
    found = [first]
    for change in changes:
        change()
        found.append(weights_checksum(model))
    assert len(set(found)) == 6


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other"])
def test_a_damaged_score_is_told(
    networks: tuple[str, str], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    from safetensors.torch import save_file

    words = [*COMMON, *LIST, "--suite", "patch-shuffle", "--out", "run"]
    assert main(["robustness", networks[0], *words]) == 0
    file = Path("run/parts/model/patch-shuffle-2.safetensors")
    whole = file.read_bytes()
    if damage == "other":
        save_file({"a": torch.zeros(1)}, file)
    else:
        file.write_bytes(
            {"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"x" * 99}[damage]
        )
    line = fails(capsys, 1, "robustness", networks[0], *words)
    assert "Expected a score, but 'run/parts/model/patch-shuffle-2.safetensors' cannot" in line
    assert "remove it, and it is made again" in line
    file.unlink()
    assert main(["robustness", networks[0], *words]) == 0
    assert load_file(file).keys() >= {"correct", "checksums"}


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
KILLED = [
    *COMMON, "--suite", "corruptions", "--suite", "pgd", "--measure.severities", "[1, 3, 5]",
    "--measure.epsilons", "[1, 2]", "--measure.pgd_steps", "3", "--engine.batch_size", "32",
]  # fmt: skip


def start(network: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tcnn", "robustness", network, *words],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_killed_at_six_moments(
    networks: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["robustness", networks[0], *KILLED, "--out", "uncut"]) == 0
    rng, done = random.Random(0), []
    for _ in range(6):
        run = start(networks[0], *KILLED, "--out", "cut")
        before = len(files_of("cut"))
        deadline = time.monotonic() + 120
        while len(files_of("cut")) == before and time.monotonic() < deadline:
            assert run.poll() is None, run.communicate()[1]
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 1))
        assert run.poll() is None, "the run ended before the kill: give it more to do"
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        done.append(len(files_of("cut")))
    kept = files_of("cut")
    run = start(networks[0], *KILLED, "--out", "cut")
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    with capsys.disabled():
        print(f"\nkilled after {done} of {len(files_of('uncut'))} parts")
    assert done == sorted(done) and 0 < done[0] < done[-1]
    after = files_of("cut")
    assert {name: after[name] for name in kept} == kept
    assert not list(Path("cut").rglob(".writing-*"))
    csvs = [without_times(Path(out, "robustness.csv").read_text()) for out in ("uncut", "cut")]
    assert csvs[0] == csvs[1]
    assert sorted(after) == sorted(files_of("uncut"))


def test_ctrl_c_ends_with_one_line(
    networks: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tcnn import scoring

    monkeypatch.setattr(scoring, "answers", Cutter(3))
    capsys.readouterr()
    words = [*COMMON, *LIST, *FOG, "--engine.batch_size", "1", "--out", "run"]
    found = main(["robustness", networks[0], *words])
    assert found == 130
    assert capsys.readouterr().err == "tcnn robustness: interrupted\n"


# Two processes


def run_two(*words: str, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of a command on two processes."""
    command = [sys.executable, "-m", "tcnn", *words, "--engine.devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_two_processes_count_as_one(networks: tuple[str, str]) -> None:
    """37 images in batches of 5, dealt out: 4 batches to each, the last of 2 images."""
    words = [
        *COMMON, "--data.max_val", "37", "--engine.batch_size", "5", "--compare", networks[1],
        "--suite", "[corruptions, pgd]", "--measure.corruptions", "[gaussian_noise]",
        "--measure.severities", "[2]", "--measure.epsilons", "[2]", "--measure.pgd_steps", "2",
    ]  # fmt: skip
    assert main(["robustness", networks[0], *words, "--out", "one"]) == 0
    out, _ = run_two("robustness", networks[0], *words, "--out", "two")
    assert out.count("Wrote two") == 1
    names = sorted(files_of("one"))
    assert names == sorted(files_of("two")) and len(names) == 6
    for name in names:
        one, two = load_file(Path("one", name)), load_file(Path("two", name))
        assert one.keys() == two.keys()
        for column in one:
            assert len(one[column]) == 37
            assert torch.equal(one[column], two[column]), (name, column)
    csvs = [without_times(Path(out, "robustness.csv").read_text()) for out in ("one", "two")]
    assert csvs[0] == csvs[1]


@pytest.mark.slow
def test_two_processes_evaluate_as_one(networks: tuple[str, str]) -> None:
    words = [*COMMON, "--data.max_val", "37", "--engine.batch_size", "5"]
    assert main(["evaluate", networks[0], *words, "--out", "one"]) == 0
    run_two("evaluate", networks[0], *words, "--out", "two")
    for name in ("predictions.csv", "classes.csv", "confusions.csv"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    found = plain("two/evaluation.json")
    assert found["processes"] == 2 and found["images"] == 37
    # Random weights are the same in both, or half of the answers would be another network's.
    assert main(["evaluate", NET, *SETTINGS, *words, "--out", "one"]) == 0
    run_two("evaluate", NET, *SETTINGS, *words, "--out", "two")
    assert Path("one/predictions.csv").read_bytes() == Path("two/predictions.csv").read_bytes()


@pytest.mark.slow
def test_an_error_of_one_process_ends_both_with_one_line(networks: tuple[str, str]) -> None:
    """A damaged file, which the first alone reads; a picture, which the second alone is dealt."""
    words = [*COMMON, *LIST, "--suite", "patch-shuffle", "--out", "run"]
    assert main(["robustness", networks[0], *words]) == 0
    Path("run/parts/model/clean.safetensors").write_bytes(b"")
    _, err = run_two("robustness", networks[0], *words, code=1)
    lines = [line for line in err.splitlines() if line.startswith("tcnn ")]
    assert len(lines) == 1 and "Expected a score, but" in lines[0]
    assert "Traceback" not in err

    folder_of_pictures(Path("set"), ("cat", "dog"), each=2)
    Path("set/val/dog/1.png").write_bytes(b"no picture")
    net = [NET, "--model_settings", "{depth: 8, widths: [4, 4, 4], num_classes: 2}"]
    words = ["--data.root", "set", "--data.unreadable", "fail", "--data.workers", "0"]
    words += ["--engine.batch_size", "1", "--engine.accelerator", "cpu"]
    _, err = run_two("evaluate", *net, *words, code=1)
    lines = [line for line in err.splitlines() if line.startswith("tcnn ")]
    assert len(lines) == 1 and "1.png" in lines[0]
    assert "Traceback" not in err


# Published sets, end to end


class ColourReader(nn.Module):
    """Answers the class that a picture's colour says, as `published_trees` paints it.

    Args:
        order: the standard place of each output's class; None is that order.
        size: of its input.
    """

    def __init__(self, order: Sequence[int] | None = None, size: int = 6) -> None:
        super().__init__()
        self.pretrained_cfg = {
            "input_size": (3, size, size), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 0.9,
        }  # fmt: skip
        places = torch.arange(1000) if order is None else torch.tensor(order).argsort()
        self.register_buffer("places", places)  # standard place → output

    def forward(self, x: Tensor) -> Tensor:
        levels = ((x * 0.25 + 0.5) * 255).mean((2, 3))
        digits = ((levels - 10) / 25).round().long().clamp(0, 9)
        says = digits @ torch.tensor([100, 10, 1])
        return nn.functional.one_hot(self.places[says], 1000).float()


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Each suite with wrong answers planted; for reading alone."""
    tree = Tree(tmp_path_factory.mktemp("trees"), size=8)
    tree.subset("imagenet-a", wrong=5)
    tree.subset("imagenet-r", wrong=7)
    tree.imagenet_v2(wrong=11)
    tree.imagenet_sketch("sketch", wrong=13)
    # By ReaL, image 2 is 970 or 795, 3 is 230 or 231, 4 is 809, and 1 has no answer.
    tree.imagenet_real({1: 5, 2: 970, 3: 231, 4: 231})
    return tree


SCORES = {
    "imagenet-a": (195, 200),
    "imagenet-r": (193, 200),
    "imagenet-v2": (989, 1000),
    "imagenet-sketch": (987, 1000),
    "imagenet-real": (2, 3),
}
BIG = InferenceConfig(accelerator="cpu", batch_size=500)
NO_IMAGES = ImagesConfig(workers=0)


@pytest.mark.parametrize("shuffle", [False, True], ids=["standard order", "another order"])
def test_published_suites_score_what_their_colours_say(trees: Tree, shuffle: bool) -> None:
    order = np.random.default_rng(0).permutation(1000).tolist() if shuffle else list(range(1000))
    model = ColourReader(order)
    from tcnn.sources import Origin, set_origin

    set_origin(model, Origin(classes=tuple(WNIDS[place] for place in order)))
    suites = [f"{name}={trees.root / name}" for name in SCORES]
    found = measure_robustness({"model": model}, suites, "out", NO_IMAGES, BIG)
    assert found is not None
    assert [part.suite for part in found.parts] == list(SCORES)
    for part in found.parts:
        result = part.scores["model"].result
        right, images = SCORES[part.suite]
        assert (int(result.correct.sum()), result.images) == (right, images), part.suite
        assert result.top1 == right / images
    remarks = "\n".join(found.remarks())
    assert (
        "imagenet-real: 4 images, but 50000 were published; 1 of 4 images have no ReaL" in remarks
    )
    assert "imagenet-a: 200 images, but 7500 were published" in remarks
    plain_json = json.dumps(found.to_json(), allow_nan=False)
    assert '"imagenet-v2"' in plain_json


def test_imagenet_c_with_its_mce(tmp_path: Path) -> None:
    """Two corruptions, s·20 of 1000 wrong at severity s: 6 % wrong on the mean; no mCE of two."""
    tree = Tree(tmp_path / "trees", size=8)
    folder = tree.imagenet_c(["gaussian_noise", "weather/fog"], wrong=20)
    suites = [f"imagenet-c={folder}"]
    found = measure_robustness({"model": ColourReader()}, suites, "out", NO_IMAGES, BIG)
    assert found is not None
    rows = {(p.name, p.level): p.scores["model"].result for p in found.parts}
    assert list(rows) == [(name, s) for name in ("gaussian_noise", "fog") for s in range(1, 6)]
    for (_, severity), result in rows.items():
        assert severity is not None
        assert result.images == 1000
        assert int((~result.correct).sum()) == 20 * severity
    (group,) = found.groups
    assert (group.title, group.images, len(group.parts)) == ("imagenet-c, 2 standard", 1000, 10)
    assert group.top1("model") == pytest.approx(0.94)
    assert found.corruption_errors("model", "imagenet-c") == {
        "mean_error": None, "mce": None, "relative_mce": None,
    }  # fmt: skip
    # An image is wrong in as many of 5 severities as its place says: scores 0, 0.2, … of 20 each.
    shares = [s / 5 for s in range(5) for _ in range(20)] + [1.0] * 900
    mean = sum(shares) / 1000
    spread = sum((share - mean) ** 2 for share in shares) / 999
    assert group.error("model") == pytest.approx(math.sqrt(spread / 1000))


COLOURS = """
import sys
sys.path.insert(0, {tests!r})
from test_robustness import ColourReader


def net():
    return ColourReader()
"""


@pytest.mark.parametrize(
    ("suite", "harm", "said"),
    [
        ("imagenet-a", lambda at: shutil.rmtree(at / "n01498041"), "1 are missing ('n01498041')"),
        ("imagenet-a", lambda at: (at / "zebra").mkdir(), "0 are missing (none) and 1 foreign"),
        ("imagenet-r", lambda at: (at / imagenet.wnids_r()[0]).rename(at / "x"), "1 are missing"),
        ("imagenet-v2", lambda at: shutil.rmtree(at / "999"), "1 are missing ('999')"),
        ("imagenet-v2", lambda at: (at / "1000").mkdir(), "1 foreign ('1000')"),
        ("imagenet-sketch", lambda at: (at / "sketch/extra").mkdir(), "1 foreign ('extra')"),
        ("imagenet-real", lambda at: (at / "cat.jpg").touch(), "but got 'cat.jpg': move it"),
        ("imagenet-a", lambda at: next((at / "n01498041").iterdir()).unlink(), "1 are empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_published_suites_that_are_not_as_published(
    trees: Tree,
    capsys: pytest.CaptureFixture[str],
    suite: str,
    harm: Callable[[Path], object],
    said: str,
) -> None:
    Path("colours.py").write_text(COLOURS.format(tests=str(Path(__file__).parent)))
    shutil.copytree(trees.root / suite, suite, copy_function=os.link)
    harm(Path(suite))
    words = ["--suite", f"{suite}={suite}", "--out", "run", "--engine.accelerator", "cpu"]
    line = fails(capsys, 1, "robustness", "colours:net", *words, "--data.workers", "0")
    assert said in line
    sys.modules.pop("colours", None)


def test_a_published_suite_by_the_command_line(
    trees: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("colours.py").write_text(COLOURS.format(tests=str(Path(__file__).parent)))
    words = ["--suite", f"imagenet-a={trees.root / 'imagenet-a'}", "--engine.accelerator", "cpu"]
    words += ["--data.workers", "0", "--compare", "colours:net", "--out", "run"]
    assert main(["robustness", "colours:net", *words]) == 0
    assert "97.50" in capsys.readouterr().out
    (group,) = plain("run/robustness.json")["groups"]
    assert group["top1"] == {"model": 195 / 200, "other": 195 / 200}
    assert group["comparison"]["mcnemar_p"] == 1
    line = fails(capsys, 1, "robustness", "colours:net", *words, "--suite", "cifar10-c=there")
    assert "CIFAR-10's 10 classes for cifar10-c, but got one with 1000 outputs" in line
    sys.modules.pop("colours", None)
