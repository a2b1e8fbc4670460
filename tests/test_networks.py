"""The CIFAR residual networks, with the published weights where they are at hand."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tcnn

DATA = Path(os.environ.get("TCNN_DATA", Path(__file__).parents[2] / "shared" / "data"))
WEIGHTS = {
    20: "resnet20-12fca82f.th",
    32: "resnet32-d509ac18.th",
    56: "resnet56-4bfd9763.th",
}


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85)])
def test_sizes_are_those_of_the_paper(depth: int, millions: float) -> None:
    """He et al. 2016, table 6."""
    model = tcnn.load_model(f"tcnn.networks:cifar_resnet{depth}")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.fixture(scope="module")
def validation() -> tuple[Tensor, Tensor]:
    """The 5,000 validation images, normalised, and their labels."""
    archive = DATA / "cifar10.tar.xz"
    if not archive.is_file():
        pytest.skip("the CIFAR-10 archive is not here (set TCNN_DATA to its folder)")
    import numpy as np
    from PIL import Image

    found: list[tuple[str, bytes]] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if "/val/" in member.name and member.isfile():
                found.append((member.name, tar.extractfile(member).read()))  # type: ignore[union-attr]
    classes = sorted({name.split("/")[-2] for name, _ in found})
    assert len(found) == 5000 and len(classes) == 10
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(content))) for _, content in found])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (torch.from_numpy(pixels) / 255 - mean) / std
    labels = torch.tensor([classes.index(name.split("/")[-2]) for name, _ in found])
    return images.permute(0, 3, 1, 2).contiguous(), labels


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.81), (32, 0.82), (56, 0.83)])
def test_published_weights_recast_exactly(
    depth: int, accuracy: float, count: int, validation: tuple[Tensor, Tensor]
) -> None:
    """Image by image: with the last stage recast, and with every convolution recast."""
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))[:count]
    images, labels = validation[0][order], validation[1][order]
    cnn = tcnn.load_model(
        f"tcnn.networks:cifar_resnet{depth}", weights=DATA / "weights" / WEIGHTS[depth]
    )
    with torch.inference_mode():
        expected = torch.cat([cnn(batch) for batch in images.split(500)])
    top1 = (expected.argmax(1) == labels).double().mean().item()
    assert top1 == pytest.approx(accuracy, abs=0.02 if count == 5000 else 0.06)
    for targets, layers in ((None, (depth - 2) // 3), ("*", depth - 1)):
        hybrid = tcnn.recast(cnn, targets, input_size=(3, 32, 32))
        assert sum(isinstance(m, tcnn.GPSA2d) for m in hybrid.modules()) == layers
        with torch.inference_mode():
            got = torch.cat([hybrid(batch) for batch in images.split(500)])
        assert torch.equal(got, expected)
        print(f"ResNet-{depth}, {layers} layers recast: top-1 {top1:.2%}, all {count} agree")
