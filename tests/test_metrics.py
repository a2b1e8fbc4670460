"""Metrics against hand-computed values and loops."""

from __future__ import annotations

import pytest
import torch

from tcnn import metrics


def test_correct() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 1.0], [0.0, 0.0, -1.0]])
    assert metrics.correct(logits, torch.tensor([1, 2, 0])).tolist() == [True, False, True]


def test_corruption_error_by_hand() -> None:
    errors = torch.tensor([[0.1, 0.3], [0.2, 0.2]])
    baseline = torch.tensor([[0.2, 0.6], [0.1, 0.3]])
    assert metrics.corruption_error(errors, baseline).tolist() == pytest.approx([0.5, 1.0])
    relative = metrics.relative_corruption_error(
        errors, torch.tensor(0.05), baseline, torch.tensor(0.1)
    )
    # (0.4 - 0.1) / (0.8 - 0.2) and (0.4 - 0.1) / (0.4 - 0.2)
    assert relative.tolist() == pytest.approx([0.5, 1.5])


def test_standard_error_of_a_share_is_binomial() -> None:
    values = torch.tensor([1, 0, 1, 1, 0])
    assert metrics.standard_error(values).item() == pytest.approx((0.6 * 0.4 / 4) ** 0.5)


def test_paired_difference_by_hand() -> None:
    a = torch.tensor([1.0, 1.0, 0.5, 0.0])
    b = torch.tensor([1.0, 0.0, 0.0, 0.5])
    mean, error = metrics.paired_difference(a, b)
    differences = [0.0, 1.0, 0.5, -0.5]
    variance = sum((d - 0.25) ** 2 for d in differences) / 3
    assert mean.item() == pytest.approx(0.25)
    assert error.item() == pytest.approx((variance / 4) ** 0.5)


def test_paired_difference_of_the_same_is_zero() -> None:
    scores = torch.rand(20)
    assert [v.item() for v in metrics.paired_difference(scores, scores)] == [0, 0]
