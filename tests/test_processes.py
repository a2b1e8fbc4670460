"""Two gloo processes with half of each batch, against one process with all of it.

Run as a program, the file is one of the processes.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from tcnn import GPSAConfig
from tcnn.data import ArrayImages
from tcnn.decoding import UnreadableImage
from tcnn.engine import fit
from tcnn.loaders import ImageData
from tcnn.train_config import TrainConfig
from training import PLAIN, QUIET, VIEW, bars, hybrid

pytestmark = pytest.mark.slow

EPOCHS, STEPS = 3, 4
CASES = {
    "synchronised": {"sync_bn": True},
    "plain": {"sync_bn": False},
    "single precision": {"sync_bn": True, "precision": "32"},
}


class Watch(lightning.Callback):
    """The gradients of the first step, and the loss of every one over all processes."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, *_: Any) -> None:
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in module.model.named_parameters()}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"].double() / trainer.world_size
        self.losses.append(float(trainer.strategy.reduce(loss, reduce_op="sum")))


class Holed(ArrayImages):
    """Some cannot be read."""

    def read(self, index: int) -> Any:
        if index % 10 == 3:
            raise UnreadableImage(self.name(index), "a hole")
        return super().read(index)


def data() -> ImageData:
    """Steps of 16 images; 101 validation images, ten of which cannot be read."""
    train, val = (Holed(bars(n), name) for n, name in ((16 * STEPS + 3, "train"), (101, "val")))
    config = replace(PLAIN, crop="pad", hflip=0.5)
    return ImageData(train, val, VIEW, config, 16, 0)


def work(devices: int, folder: Path) -> None:
    found = {}
    for case, options in CASES.items():
        watch = Watch()
        engine = replace(QUIET, **{"precision": "64", "devices": devices, **options})
        config = TrainConfig(epochs=EPOCHS, batch_size=16, lr=1e-2, gate_lr_scale=5)
        model = hybrid(GPSAConfig(gate_init=0.7))
        out = folder / f"{devices} {case}"
        result = fit(model, data(), config, engine, out=out, callbacks=(watch,))
        found[case] = {
            "gradients": watch.gradients,
            "losses": watch.losses,
            "val_top1": [epoch.val_top1 for epoch in result.history],
            "val_loss": [epoch.val_loss for epoch in result.history],
            "unreadable": result.unreadable,
            "batch_norm": result.batch_norm,
        }
    if os.environ.get("LOCAL_RANK", "0") == "0":
        torch.save(found, folder / f"{devices}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process found, and what two did."""
    folder = tmp_path_factory.mktemp("processes")
    for devices in (1, 2):
        subprocess.run(
            [sys.executable, __file__, str(devices), str(folder)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
            timeout=300,
        )
    return [torch.load(folder / f"{devices}.pt") for devices in (1, 2)]


def distance(found: list[dict[str, Any]], case: str) -> tuple[float, list[float]]:
    """Of the first gradients, in parts of the largest; of the loss after each step."""
    one, two = (part[case] for part in found)
    largest = max(g.abs().max().item() for g in one["gradients"].values())
    gradients = max(
        (one["gradients"][n] - two["gradients"][n]).abs().max().item() for n in one["gradients"]
    )
    assert one["gradients"].keys() == two["gradients"].keys()
    assert len(one["losses"]) == len(two["losses"]) == EPOCHS * STEPS
    assert max(one["losses"]) - min(one["losses"]) > 1e-2  # it is a curve
    losses = zip(one["losses"], two["losses"], strict=True)
    return gradients / largest, [abs(a - b) for a, b in losses]


def test_synchronised_they_agree(
    found: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    gradients, losses = distance(found, "synchronised")
    single, single_losses = distance(found, "single precision")
    with capsys.disabled():
        print(
            f"\nfloat64: first gradients {gradients:.1e}, losses {losses[0]:.1e} at first, "
            f"{max(losses):.1e} at most in {len(losses)} steps; float32: {single:.1e}, "
            f"{single_losses[0]:.1e}, {max(single_losses):.1e}"
        )
    assert gradients < 1e-12
    assert max(losses) < 1e-9
    assert single < 1e-5
    assert [part["synchronised"]["batch_norm"] for part in found] == ["synchronised"] * 2


def test_with_plain_batch_norm_they_differ(found: list[dict[str, Any]]) -> None:
    assert distance(found, "plain")[0] > 1e-3
    names = [part["plain"]["batch_norm"] for part in found]
    assert names == ["of one process", "of each process"]


def test_validation_is_counted_to_the_image(found: list[dict[str, Any]]) -> None:
    """101 images in batches of 16, or of 8 + 8, less the ten that cannot be read."""
    one, two = (part["synchronised"] for part in found)
    for epoch in range(EPOCHS):
        hits = [part["val_top1"][epoch] * 91 for part in (one, two)]
        assert hits[0] == pytest.approx(round(hits[0]), abs=1e-4)
        assert round(hits[0]) == round(hits[1])
        assert one["val_loss"][epoch] == pytest.approx(two["val_loss"][epoch], rel=1e-9)
        assert not math.isnan(one["val_loss"][epoch])


def test_each_image_that_cannot_be_read_is_named(found: list[dict[str, Any]]) -> None:
    expected = {f"val {index}": "a hole" for index in range(3, 101, 10)}
    for part in found:
        names = part["plain"]["unreadable"]
        assert {n: why for n, why in names.items() if n.startswith("val")} == expected
        assert len(names) > len(expected)
    assert found[0]["plain"]["unreadable"] == found[1]["plain"]["unreadable"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(int(sys.argv[1]), Path(sys.argv[2]))
