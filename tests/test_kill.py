"""The command line, killed: what a run that was killed again and again ends with."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import tcnn

pytestmark = pytest.mark.slow

KILLS = 20
EPOCHS = 16
PATIENCE = 300.0  # seconds for what takes ten on an idle machine
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network") / "hybrid"
    torch.manual_seed(0)
    cnn = tcnn.load_model("tcnn.networks:cifar_resnet", depth=8, widths=[4, 4, 8], in_channels=1)
    tcnn.save(tcnn.recast(cnn, input_size=(1, 16, 16)), folder)
    return folder


def start(network: Path, out: Path, devices: int, every: int = 1) -> subprocess.Popen[str]:
    """A run of 16 steps an epoch, resumed if it can be, in a process group of its own."""
    words = [
        "finetune", "--model", network, "--out", out, "--resume", "--data.root", "digits",
        "--data.input_size", "[1,16,16]", "--data.workers", "1", "--data.reprob", "0.3",
        "--train.epochs", EPOCHS, "--train.batch_size", "64", "--train.mixup", "0.2",
        "--train.model_ema", "--train.gate_lr_scale", "20", "--train.lr", "2e-3",
        "--engine.accelerator", "cpu", "--engine.devices", devices,
        "--engine.checkpoint_every", every,
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "tcnn", *map(str, words)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(run: subprocess.Popen[str]) -> str:
    """What a run says that ends by itself."""
    out, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, err
    return out


def place(out: Path) -> tuple[int, int]:
    file = out / "last.ckpt"
    if not file.exists():
        return 0, 0
    found = torch.load(file, weights_only=True)["tcnn"]
    return found["epoch"], found["step"]


def wait_for_training(run: subprocess.Popen[str], file: Path) -> None:
    """Until a new checkpoint is there."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    deadline = time.monotonic() + PATIENCE
    while (file.stat().st_mtime_ns if file.exists() else 0) == before:
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 processes"])
def uncut(
    request: pytest.FixtureRequest, network: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path, float]:
    out = tmp_path_factory.mktemp("uncut") / "run"
    begin = time.monotonic()
    finish(start(network, out, request.param, every=1000))
    assert place(out) == (EPOCHS, 0)
    return request.param, out, time.monotonic() - begin


def test_killed_at_twenty_moments(
    network: Path,
    uncut: tuple[int, Path, float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    devices, expected, seconds = uncut
    out, rng, where = tmp_path / "run", random.Random(devices), Counter[str]()
    places = []
    for kill in range(KILLS):
        run = start(network, out, devices)
        before = place(out)
        if kill % 4 == 0:  # anywhere from the first import on
            time.sleep(rng.uniform(0, seconds / 4))
        else:
            wait_for_training(run, out / "last.ckpt")
            time.sleep(rng.uniform(0, 0.25))
        assert run.poll() is None, "the run ended before the kill: give it more steps"
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        places.append(place(out))
        if places[-1] == before:
            where["before the first new checkpoint"] += 1
        elif any(out.glob(".writing-*")):
            where["while writing"] += 1
        elif places[-1][1] == 0:
            where["right after an epoch"] += 1
        else:
            where["within an epoch"] += 1
    finish(start(network, out, devices))
    with capsys.disabled():
        print(f"\n{devices} processes: {dict(where)}; checkpoints (epoch, step): {places}")
    assert places == sorted(places)
    for name in ("model.safetensors", "best/model.safetensors", "history.csv", "gates.csv"):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    assert not list(out.rglob(".writing-*")) + list(out.rglob(".saving-*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(
    network: Path, uncut: tuple[int, Path, float], tmp_path: Path, number: int, code: int
) -> None:
    devices, expected, _ = uncut
    out = tmp_path / "run"
    run = start(network, out, devices, every=5)
    wait_for_training(run, out / "last.ckpt")
    if number == signal.SIGTERM:  # as `kill` sends it to one process, and a terminal to all
        run.terminate()
    else:
        os.killpg(run.pid, number)
    said, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == code, err
    assert err.count("\n") == 1, err
    assert err == (
        f"tcnn finetune: stopped by {signal.Signals(number).name}; the run is kept in "
        f"{out / 'last.ckpt'}: go on with --resume\n"
    )
    assert "Traceback" not in said
    assert (0, 0) < place(out) < (EPOCHS, 0)
    assert not list(out.rglob(".writing-*"))
    finish(start(network, out, devices))
    assert (out / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
