"""Evaluation against loops, and what it leaves as it was."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from tcnn import evaluate as evaluation
from tcnn.corruptions import corrupt
from tcnn.data import ImageSet
from tcnn.evaluate import evaluate, evaluate_corrupted


class Brightness(nn.Module):
    """Class 1 for images that are bright on average, with a certainty that grows with it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.drop = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = self.drop(x).mean(dim=(1, 2, 3)) * self.scale
        return torch.stack([5 * torch.ones_like(score), score], dim=1)


def images(n: int = 12) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 9, 9, 1)).astype(np.uint8)
    return ImageSet(pixels, np.arange(n) % 2, ("dark", "bright"))


def test_against_a_loop() -> None:
    x, y = images().tensors()
    model = Brightness().eval()
    hits, loss = 0, 0.0
    for image, label in zip(x, y, strict=True):
        scores = model(image[None])[0].tolist()
        hits += (scores[1] > scores[0]) == bool(label)
        loss += math.log(sum(math.exp(s) for s in scores)) - scores[int(label)]
    for batches in ([(x, y)], list(zip(x.split(5), y.split(5), strict=True))):
        result = evaluate(model, batches)
        assert result.images == 12
        assert result.top1 == pytest.approx(hits / 12)
        assert result.loss == pytest.approx(loss / 12, rel=1e-5)
        assert result.correct.sum().item() == hits


def test_modes_return_even_after_an_error() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.BatchNorm1d(4)).train()
    model[1].eval()
    evaluate(model, [(torch.randn(3, 1, 2, 2), torch.zeros(3, dtype=torch.long))])
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert model[2].num_batches_tracked.item() == 0
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.randn(3, 1, 5, 5), torch.zeros(3, dtype=torch.long))])
    assert [m.training for m in model.modules()] == [True, True, False, True]


def test_no_images() -> None:
    with pytest.raises(ValueError, match="holds none"):
        evaluate(Brightness(), [])


def test_corrupted_against_a_loop() -> None:
    model, data = Brightness().eval(), images()
    names, severities = ("contrast", "gaussian_noise", "brightness"), (1, 5)
    lines: list[str] = []
    result = evaluate_corrupted(
        model, data, 3, corruptions=names, severities=severities, progress=lines.append
    )
    assert [(r.corruption, r.severity) for r in result.corrupted] == [
        (name, severity) for name in names for severity in severities
    ]
    for row in result.corrupted:
        if row.corruption == "gaussian_noise":
            continue
        pixels = [
            corrupt(i, row.corruption, row.severity, np.random.default_rng()) for i in data.images
        ]
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
        expected = model(x).argmax(1) == torch.from_numpy(data.labels)
        assert row.result.correct.tolist() == expected.tolist()
    table = torch.tensor([r.result.top1 for r in result.corrupted]).view(3, 2)
    assert torch.allclose(1 - result.errors, table.double())
    assert list(result.by_corruption()) == list(names)
    assert list(result.by_corruption().values()) == pytest.approx(table.mean(1).tolist())
    assert result.top1 == pytest.approx(table.mean().item())
    assert result.scores().mean().item() == pytest.approx(result.top1)
    assert result.scores("contrast").tolist() == [
        (int(a) + int(b)) / 2
        for a, b in zip(
            result.corrupted[0].result.correct, result.corrupted[1].result.correct, strict=True
        )
    ]
    assert len(lines) == 3
    again = evaluate_corrupted(model, data, 3, corruptions=names, severities=severities)
    assert again.to_json() == result.to_json()


def test_output() -> None:
    result = evaluate_corrupted(
        Brightness(), images(), 0, corruptions=("contrast",), severities=(2, 4)
    )
    table = result.table().splitlines()
    assert table[0].split("  ")[0] == "top-1 %"
    assert "severity 2" in table[0]
    assert "generated" in table[-1]
    plain = json.loads(json.dumps(result.to_json()))
    assert plain["corruptions"] == "generated"
    assert plain["clean"]["images"] == 12
    assert "images" in evaluation.evaluate(Brightness(), [images().tensors()]).table()
