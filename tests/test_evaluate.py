"""A network's answers: every figure against loops and values made by hand."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
import torch
from torch import Tensor, nn

from tcnn.evaluate import EvaluationResult, answers, evaluate, finite, joined

# Seven classes, so that five are not all; scores that can be ordered by eye.
LOGITS = torch.tensor(
    [
        [9, 1, 2, 3, 4, 5, 6],  # 0 first, then 6 5 4 3
        [9, 1, 2, 3, 4, 5, 6],
        [0, 7, 6, 5, 4, 3, 2],  # 1 first, then 2 3 4 5
        [0, 7, 6, 5, 4, 3, 2],
        [3, 3, 3, 3, 3, 3, 8],
    ],
    dtype=torch.float32,
)
LABELS = torch.tensor([0, 1, 5, 6, 6])
CLASSES = tuple("abcdefg")


def result() -> EvaluationResult:
    return answers(LOGITS, torch.arange(5), LABELS)


def test_answers_by_hand() -> None:
    found = result()
    assert found.index.tolist() == [0, 1, 2, 3, 4]
    assert found.labels.tolist() == [0, 1, 5, 6, 6]
    assert found.predicted.tolist() == [0, 0, 1, 1, 6]
    assert found.correct.tolist() == [True, False, False, False, True]
    assert found.in_top5.tolist() == [True, False, True, False, True]
    for row, (logits, label) in enumerate(zip(LOGITS.tolist(), LABELS.tolist(), strict=True)):
        total = sum(math.exp(score) for score in logits)
        assert found.confidence[row].item() == pytest.approx(math.exp(max(logits)) / total)
        assert found.losses[row].item() == pytest.approx(math.log(total) - logits[label], rel=1e-5)
    assert (found.images, found.top1, found.top5) == (5, 2 / 5, 3 / 5)
    assert found.top1_error == pytest.approx(math.sqrt(0.4 * 0.6 / 4))
    assert found.loss == pytest.approx(found.losses.mean().item())


def test_calibration_error_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    found = answers(
        torch.randn(200, 7, generator=generator) * 2,
        torch.arange(200),
        torch.randint(7, (200,), generator=generator),
    )
    error = 0.0
    for low in range(15):
        inside = [
            (right, sure)
            for right, sure in zip(found.correct.tolist(), found.confidence.tolist(), strict=True)
            if low / 15 < sure <= (low + 1) / 15
        ]
        error += abs(sum(right for right, _ in inside) - sum(sure for _, sure in inside)) / 200
    assert found.ece == pytest.approx(error)
    assert found.ece > 0.1


def test_several_right_answers() -> None:
    accepted = [{0}, {0, 3}, {5}, {6, 4}, {2, 5}]
    found = answers(LOGITS, torch.arange(5), LABELS, accepted)
    assert found.correct.tolist() == [True, True, False, False, False]
    assert found.in_top5.tolist() == [True, True, True, True, True]
    assert found.losses.isnan().all()
    assert math.isnan(found.loss)
    assert found.to_json()["loss"] is None
    with pytest.raises(ValueError, match="shorter"):
        answers(LOGITS, torch.arange(5), LABELS, accepted[:4])


@pytest.mark.parametrize(("classes", "inside"), [(2, 1), (5, 1), (6, 5 / 6)])
def test_top5_of_few_classes(classes: int, inside: float) -> None:
    logits = torch.arange(classes).float().repeat(classes, 1)  # class 0 is the last
    found = answers(logits, torch.arange(classes), torch.arange(classes))
    assert found.top1 == 1 / classes
    assert found.top5 == pytest.approx(inside)


def test_one_image() -> None:
    found = answers(LOGITS[:1], torch.arange(1), LABELS[:1])
    assert math.isnan(found.top1_error)
    plain = found.to_json()
    assert plain["top1_standard_error"] is None
    json.dumps(plain, allow_nan=False)
    assert "nan" in found.table()


def test_what_json_has_no_words_for() -> None:
    assert [finite(x) for x in (1.5, 0.0, math.inf, -math.inf, math.nan)] == [1.5, 0.0, *[None] * 3]


def test_joined_in_the_order_of_places() -> None:
    places = ([3, 0], [4], [2, 1])
    parts = [answers(LOGITS[rows], torch.tensor(rows), LABELS[rows]) for rows in places]
    found, whole = joined(parts), result()
    for name in EvaluationResult.__dataclass_fields__:
        assert torch.equal(getattr(found, name), getattr(whole, name)), name


def test_by_class() -> None:
    rows = result().by_class(CLASSES)
    sure = result().confidence.tolist()
    assert [row[:4] for row in rows] == [
        ("a", 1, 1.0, 1.0),
        ("b", 1, 0.0, 0.0),
        ("f", 1, 0.0, 1.0),
        ("g", 2, 0.5, 0.5),
    ]
    means = [sure[0], sure[1], sure[2], (sure[3] + sure[4]) / 2]
    assert [row[4] for row in rows] == pytest.approx(means)


def test_confusions() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    predicted = torch.tensor([1, 1, 0, 0, 1, 1, 0, 1])
    logits = nn.functional.one_hot(predicted, 3).float()
    found = answers(logits, torch.arange(8), labels)
    assert found.confusions("abc") == [
        ("a", "b", 2, 2 / 3),
        ("c", "b", 2, 2 / 3),
        ("b", "a", 1, 1 / 2),
        ("c", "a", 1, 1 / 3),
    ]
    right = answers(logits, torch.arange(8), predicted)
    assert right.confusions("abc") == []


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv() -> None:
    classes = ('a,"quoted"', *CLASSES[1:])
    rows = rows_of(result().by_class_csv(classes))
    assert [row["class"] for row in rows] == [classes[0], "b", "f", "g"]
    assert [int(row["images"]) for row in rows] == [1, 1, 1, 2]
    assert [float(row["top1"]) for row in rows] == [1, 0, 0, 0.5]
    assert [float(row["top5"]) for row in rows] == [1, 0, 1, 0.5]
    rows = rows_of(result().confusions_csv(classes))
    assert [(row["class"], row["taken_for"], row["images"], row["share"]) for row in rows] == [
        ("b", classes[0], "1", "1.0"),
        ("f", "b", "1", "1.0"),
        ("g", "b", "1", "0.5"),
    ]


def test_json_and_table() -> None:
    plain = result().to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["images"] == 5
    assert (plain["top1"], plain["top5"]) == (2 / 5, 3 / 5)
    assert plain["top1_standard_error"] == pytest.approx(math.sqrt(0.4 * 0.6 / 4))
    heads, _, line = result().table().splitlines()
    assert heads.split()[0] == "images"
    assert line.split()[:4] == ["5", "40.00%", "24.49%", "60.00%"]


class Brightness(nn.Module):
    """Class 1 for images that are bright on average, with a certainty that grows with it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        score = self.drop(x).mean(dim=(1, 2, 3)) * self.scale
        return torch.stack([5 * torch.ones_like(score), score], dim=1)


def images(n: int = 12) -> tuple[Tensor, Tensor]:
    pixels = torch.rand(n, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    return pixels, torch.arange(n) % 2


def test_against_a_loop() -> None:
    x, y = images()
    model = Brightness().train()
    hits, loss = [], 0.0
    for image, label in zip(x, y, strict=True):
        score = 10 * sum(image.flatten().tolist()) / 81  # without the dropout
        hits.append((score > 5) == bool(label))
        loss += math.log(math.exp(5) + math.exp(score)) - (score if label else 5)
    assert 0 < sum(hits) < 12
    for batches in ([(x, y)], list(zip(x.split(5), y.split(5), strict=True))):
        found = evaluate(model, batches)
        assert found.images == 12
        assert found.index.tolist() == list(range(12))
        assert found.correct.tolist() == hits
        assert found.top1 == pytest.approx(sum(hits) / 12)
        assert found.loss == pytest.approx(loss / 12, rel=1e-5)
        assert found.top5 == 1


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
