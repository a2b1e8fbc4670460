"""The command line, by its real door: every command, and every kind of bad input in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tcnn
from tcnn.__main__ import main

NET = "tcnn.networks:cifar_resnet"
SETTINGS = ["--model_settings", "{depth: 8, widths: [4, 8, 8]}"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def fails(capsys: pytest.CaptureFixture[str], code: int, *args: str) -> str:
    """The one line on stderr of a command that ends with this exit code."""
    capsys.readouterr()
    try:
        found = main(args)
    except SystemExit as end:
        found = end.code
    captured = capsys.readouterr()
    assert found == code, captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("tcnn")
    assert ": error: " in captured.err
    return captured.err


# What the commands do


def test_plan_shows_what_recast_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", NET, *SETTINGS, "--json", "deep/plan.json"]) == 0
    out = capsys.readouterr().out
    plan = tcnn.plan(tcnn.load_model(NET, depth=8, widths=[4, 8, 8]))
    assert out == plan.table() + "\n"
    saved = json.loads(Path("deep/plan.json").read_text())
    assert saved == json.loads(json.dumps(plan.to_json()))
    assert saved["input_size"] == [3, 32, 32]
    assert main(["recast", NET, *SETTINGS, "--out", "hybrid"]) == 0
    out = capsys.readouterr().out
    assert plan.table() in out
    assert "EQUIVALENT on 8 images in float32" in out
    record = json.loads(Path("hybrid/recast.json").read_text())
    assert record["plan"] == saved
    assert record["equivalence"]["ok"] is True
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert sorted(os.listdir("hybrid")) == ["model.safetensors", "recast.json", "tcnn.json"]
    names = {n for n, m in tcnn.load("hybrid").named_modules() if isinstance(m, tcnn.GPSA2d)}
    assert names == {row.name for row in plan.taken}


def test_a_recipe_and_options_over_it() -> None:
    Path("recipe.yaml").write_text(
        f"model: {NET}\nmodel_settings: {{depth: 8, widths: [4, 8, 8]}}\nout: hybrid\n"
        "targets: ['layer3.*', conv1]\ngpsa: {gate: sigmoid, window: 5}\n"
    )
    assert main(["recast", "--config", "recipe.yaml", "--gpsa.window", "3"]) == 0
    hybrid = tcnn.load("hybrid")
    layers = {n: m for n, m in hybrid.named_modules() if isinstance(m, tcnn.GPSA2d)}
    assert list(layers) == ["conv1", "layer3.0.conv1", "layer3.0.conv2"]
    assert layers["conv1"].config == tcnn.GPSAConfig(gate="sigmoid", window=3)


def test_verify_and_restore(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    cnn = tcnn.load_model(NET, depth=8, widths=[4, 8, 8])
    tcnn.save(cnn, "cnn")
    assert main(["recast", "cnn", "--out", "hybrid", "--targets", "layer3.*"]) == 0
    assert main(["verify", "cnn", "hybrid", "--json", "same.json", "--dtype", "float64"]) == 0
    assert json.loads(Path("same.json").read_text())["dtype"] == "float64"
    assert main(["restore", "hybrid", "--out", "back"]) == 0
    assert "2 of 2 layers restored" in capsys.readouterr().out
    assert main(["verify", "cnn", "back"]) == 0

    hybrid = tcnn.load("hybrid")
    with torch.no_grad():
        hybrid.get_submodule("layer3.0.conv1").gating_param[3] = 0.2
    tcnn.save(hybrid, "open")
    capsys.readouterr()
    assert main(["verify", "cnn", "open"]) == 1
    assert "NOT EQUIVALENT" in capsys.readouterr().out
    assert main(["restore", "open", "--out", "half"]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 layers restored" in out
    assert "layer3.0.conv1 stays: " in out
    assert main(["verify", "open", "half"]) == 0
    with torch.no_grad():
        hybrid.get_submodule("layer3.0.conv2").gating_param[0] = 0.2
    tcnn.save(hybrid, "open")
    assert "none of its 2 is" in fails(capsys, 1, "restore", "open", "--out", "none")
    assert not Path("none").exists()


def test_a_network_of_the_working_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mynet.py").write_text(
        "from torch import nn\n\n\ndef net():\n    import torch\n\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1))\n"
    )
    size = ["--input_size", "[3, 8, 8]"]
    assert main(["recast", "mynet:net", "--out", "hybrid", *size]) == 0
    assert main(["verify", "mynet:net", "hybrid", *size]) == 0
    assert "--cnn" in fails(capsys, 1, "restore", "hybrid", "--out", "back", *size)
    assert main(["restore", "hybrid", "--cnn", "mynet:net", "--out", "back", *size]) == 0
    assert main(["verify", "hybrid", "back", "--cnn", "mynet:net", *size]) == 0


def test_pictures_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for index in range(5):
        folder = Path("pictures") / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    tail = [*SETTINGS, "--images", "pictures", "--batch", "3"]
    assert main(["recast", NET, "--out", "hybrid", *tail]) == 0
    assert "On 3 pictures of pictures, 3×32×32" in capsys.readouterr().out
    Path("pictures/0/0.png").write_bytes(b"no picture")
    assert "0.png" in fails(capsys, 1, "recast", NET, "--out", "other", *tail)
    assert not Path("other").exists()


def test_open_gates_as_asked_are_written_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recast", NET, *SETTINGS, "--out", "open", "--gpsa.gate_init", "0.7"]) == 0
    out = capsys.readouterr().out
    assert "NOT EQUIVALENT" in out
    assert "ask for a hybrid that starts out different" in out


def test_what_is_not_the_same_is_not_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tcnn import surgery

    recast = surgery.recast

    def spoilt(*args: object) -> torch.nn.Module:
        hybrid = recast(*args)
        with torch.no_grad():
            hybrid.get_submodule("layer3.0.conv1").weight[0] *= 1.001
        return hybrid

    monkeypatch.setattr(surgery, "recast", spoilt)
    line = fails(capsys, 1, "recast", NET, *SETTINGS, "--out", "hybrid")
    assert "nothing was written" in line
    assert not Path("hybrid").exists()


def test_demo_takes_its_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tcnn.demo

    seen = []
    with monkeypatch.context() as patched:
        patched.setattr(tcnn.demo, "run", lambda *args, **_: seen.append(args[:2]))
        assert main(["demo", "--out", "x", "--seed", "4"]) == 0
        assert main(["demo"]) == 0
    assert seen == [(Path("x"), 4), (Path("runs/demo"), 0)]
    Path("file").touch()
    assert "can be written to" in fails(capsys, 1, "demo", "--out", "file/below")


# Bad input: one line, and the right exit code

USAGE = [
    (("plan",), "Expected MODEL"),
    (("recast", NET), "Expected OUT"),
    (("plan", NET, "--tragets", "x"), "There is no option --tragets; the nearest is --targets."),
    (("plan", NET, "--gpsa.gaet", "x"), "the nearest is --gpsa.gate."),
    (
        ("plan", NET, "--gpsa.gate", "x"),
        "--gpsa.gate to be Literal['linear', 'sigmoid'], but got x",
    ),
    (("plan", NET, "--gpsa.gate_init", "4"), "`gate_init` to be a number from 0 to 1, but got 4"),
    (("plan", NET, "--gpsa.qk_dim", "x"), "--gpsa.qk_dim to be one of int, null, but got x"),
    (("plan", NET, "--input_size", "64"), "--input_size to be one of tuple[int, int, int], null"),
    (("demo", "--seed", "x"), "--seed to be int, but got x"),
    (("demo", "x"), "unrecognized arguments: x"),
    (("pln", NET), "choose from"),
    (("plan", NET, "--config", "none.yaml"), "none.yaml"),
    (("plan", NET, "--config", "typo.yaml"), "no option tragets; the nearest is --targets"),
    (("plan", NET, "--config", "broken.yaml"), "parsing config"),
    (("plan", NET, "--config", "binary.yaml"), "decode"),
    (("plan", NET, "--gpsa", "{gate: x}"), "--gpsa.gate to be Literal"),
    (("plan", NET, "--gpsa.window", "1000000000000"), "`window` to be None or a whole number"),
]


@pytest.mark.parametrize(
    ("args", "said"), USAGE, ids=lambda v: v[-1] if isinstance(v, tuple) else ""
)
def test_usage(capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str) -> None:
    Path("typo.yaml").write_text("tragets: x\n")
    Path("broken.yaml").write_text("targets: [\n")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    assert said in fails(capsys, 2, *args)


ODD = """
import torch
from torch import nn


class Net(nn.Sequential):
    def forward(self, x):
        return super().forward(x).to_sparse()


class Extra(nn.Sequential):
    def get_extra_state(self):
        return {"a": 1}


def sparse():
    return Net(nn.Conv2d(3, 3, 3))


def extra():
    return Extra(nn.Conv2d(3, 3, 3))


def meta():
    return nn.Sequential(nn.Conv2d(3, 3, 3, device="meta"))
"""
FAILURES = [
    (("plan", "resnet50"), "none of these"),
    (("plan", "timm:resnet5"), "nearest: resnet50"),
    (("plan", "nowhere.module:net"), "nowhere"),
    (("plan", "raises:net"), "raised RuntimeError: no such thing"),
    (("plan", NET, "--targets", "layer5.*"), "matched none of 7 Conv2d; nearest: layer3.0.conv1"),
    (("plan", NET, "--input_size", "[1, 32, 32]"), "1×32×32"),
    (("plan", NET, "--json", "file/plan.json"), "can be written to"),
    (("recast", NET, "--out", "file"), "Expected to write to the folder"),
    (("recast", NET, "--out", "file/below"), "Expected to write to the folder"),
    (("recast", NET, "--out", ""), "--out to be a folder, but it is empty"),
    (("recast", "odd:sparse", "--out", "x", "--input_size", "[3, 8, 8]"), "can be compared"),
    (("recast", "odd:meta", "--out", "x", "--input_size", "[3, 8, 8]"), "meta"),
    (("recast", "odd:extra", "--out", "x", "--input_size", "[3, 8, 8]"), "that can be saved"),
    (("plan", NET, "--model_settings", "{1: 2}"), "but got 1"),
    (
        ("recast", NET, "--out", "x", "--input_size", "[3, 7, 0]"),
        "each 1 or more, but got (3, 7, 0)",
    ),
    (("recast", NET, "--out", "x", "--batch", "0"), "from 1 up, but got 0"),
    (("plan", "broken:net"), "SyntaxError"),
    (("plan", NET, "--model_settings.pretrained", "true"), "an option of the command"),
    (("verify", "cnn", "cnn", "--input_size", "[1, 32, 32]"), "run on images of 1×32×32"),
    (("verify", "cnn", "cnn", "--input_size", "[3, -1, 2]"), "from 1 up"),
    (("recast", NET, "--out", "x", "--batch", "100000000"), "enough memory"),
    (("recast", NET, "--out", "x", "--weights", "none.pth"), "none.pth"),
    (("recast", NET, "--out", "x", "--weights", "evil.pth"), "would run code"),
    (("recast", NET, "--out", "x", "--images", "nowhere"), "folder of pictures"),
    (("recast", NET, "--out", "x", "--images", "."), "pictures"),
    (("recast", NET, "--out", "x", "--pretrained", "true"), "only timm and torchvision"),
    (("recast", "timm:mixer_s16_224", "--pretrained", "false", "--out", "x"), "patchify"),
    (("restore", "nowhere", "--out", "x"), "not one"),
    (("restore", ".", "--out", "x"), "evil.pth is a pickle, which is refused"),
    (("restore", "cnn", "--out", "x"), "holds no GPSA2d"),
    (("verify", "nowhere", "cnn"), "none of these"),
    (("verify", "cnn", "nowhere"), "not one"),
]


@pytest.mark.parametrize(
    ("args", "said"), FAILURES, ids=lambda v: v[-1] if isinstance(v, tuple) else ""
)
def test_failures(capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str) -> None:
    Path("file").touch()
    Path("raises.py").write_text("def net():\n    raise RuntimeError('no such thing')\n")
    Path("broken.py").write_text("def net(:\n")
    Path("odd.py").write_text(ODD)
    torch.save(torch.nn.Linear(1, 1), "evil.pth")
    tcnn.save(tcnn.load_model(NET, depth=14), "cnn")
    if args[1] == NET and not any("--model_settings" in word for word in args):
        args = (*args, *SETTINGS)
    before = sorted(Path().rglob("*"))
    assert said in fails(capsys, 1, *args)
    assert [p for p in sorted(Path().rglob("*")) if "__pycache__" not in str(p)] == before


def test_a_missing_package_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "[models]" in fails(capsys, 1, "plan", "timm:resnet18")


def test_interrupting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import tcnn.demo

    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tcnn.demo, "run", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "tcnn demo: interrupted\n"


# Help


def test_help_and_version_in_a_process_of_their_own() -> None:
    for args, words in (
        (["--version"], f"tcnn {tcnn.__version__}"),
        (["--help"], "recast"),
        (["recast", "--help"], "--gpsa.locality_strength"),
    ):
        command = [sys.executable, "-X", "importtime", "-m", "tcnn", *args]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert words in done.stdout
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "tcnn.commands" in loaded
        assert not {"torch", "numpy", "timm", "lightning"} & loaded  # what makes help slow


def test_no_words_at_all_give_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "verify" in capsys.readouterr().out


def test_importing_needs_torch_safetensors_and_numpy_alone() -> None:
    heavy = "{'timm', 'torchvision', 'lightning', 'matplotlib', 'sklearn', 'PIL', 'jsonargparse'}"
    code = "import tcnn, sys; [getattr(tcnn, name) for name in dir(tcnn)];"
    code += f"print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
