"""Small things to train, for the tests of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import nn

from tcnn import GPSAConfig, recast
from tcnn.data import ArrayImages, ImageSet
from tcnn.data_config import DataConfig
from tcnn.engine import fit
from tcnn.loaders import ImageData
from tcnn.run_record import FitResult
from tcnn.train_config import EngineConfig, TrainConfig
from tcnn.view import View

VIEW = View((1, 8, 8), (0.5,), (0.5,), "bilinear", 1.0)
PLAIN = DataConfig(crop="none", hflip=0, workers=0)
QUIET = EngineConfig(accelerator="cpu", tensorboard=False)


def bars(n: int = 96) -> ImageSet:
    """Noisy images with one bright bar, across or upright: two classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (n, 8, 8, 1)).astype(np.uint8)
    labels = np.arange(n) % 2
    for image, label, at in zip(images, labels, rng.integers(0, 8, n), strict=True):
        image[at if label else slice(None), slice(None) if label else at] = 255
    return ImageSet(images, labels, ("upright", "across"))


def batches(
    train: int = 96, val: int = 32, batch_size: int = 16, *, accumulate: int = 1, **data: Any
) -> ImageData:
    """Bars in batches, pixels from -1 to 1; the first of `train` and of `val` are the same."""
    sets = [ArrayImages(bars(n), name) for n, name in ((train, "train"), (val, "val"))]
    config = replace(PLAIN, **data)
    return ImageData(sets[0], sets[1], VIEW, config, batch_size, 0, accumulate)


def cnn(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Dropout(dropout),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip


def hybrid(config: GPSAConfig | None = None, dropout: float = 0.0) -> nn.Module:
    return recast(cnn(dropout), "3", config, input_size=(1, 8, 8))


def trained(
    model: nn.Module,
    config: TrainConfig,
    data: ImageData | None = None,
    engine: EngineConfig = QUIET,
    **options: Any,
) -> FitResult:
    """`fit` on bars."""
    data = data or batches(batch_size=config.batch_size, accumulate=engine.accumulate)
    return fit(model, data, config, engine, **options)


class At(lightning.Callback):
    """Does something once, at the `count`-th call of a hook from 1 on."""

    def __init__(self, hook: str, count: int, what: Any) -> None:
        self.left, self.what = count, what
        setattr(self, hook, self._called)

    def _called(self, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.what(*args)


def same(a: Any, b: Any, path: str = "") -> None:
    """Assert that two nests of plain data and tensors are equal to the bit."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}/{index}")
    else:
        assert a == b, path


def kept(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run, but for times and for what Lightning counted since a resume."""
    content: dict[str, Any] = torch.load(folder / "last.ckpt", weights_only=True)
    del content["epoch"], content["global_step"]
    del content["tcnn"]["seconds"], content["tcnn"]["record"]["training_seconds"]
    return content
