"""Metrics against hand-computed values, loops, published tables and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tcnn import metrics
from tcnn.errors import TCNNError

# Top-1 in per cent of torchvision's ResNet-50 (v1) and of a ResNet-50 trained on adversarial noise
# and stylised images, on the published ImageNet-C, each the mean over severities 1 to 5; from
# github.com/bethgelab/game-of-noise, Results/clean_results.txt at f220bd4 and
# Results/ANT-SIN_results.txt at 82423a1 (Rusak et al. 2020, arXiv 2001.06057). The same files give
# the corruption errors and the mCE: 76.70 and 61.20.
RESNET50 = {
    "gaussian_noise": 29.29, "shot_noise": 27.03, "impulse_noise": 23.81, "defocus_blur": 38.75,
    "glass_blur": 26.79, "motion_blur": 38.67, "zoom_blur": 36.24, "snow": 32.53, "frost": 38.14,
    "fog": 45.83, "brightness": 68.02, "contrast": 39.06, "elastic_transform": 45.25,
    "pixelate": 44.79, "jpeg_compression": 53.41,
}  # fmt: skip
RESNET50_CE = {
    "gaussian_noise": 79.77, "shot_noise": 81.58, "impulse_noise": 82.58, "defocus_blur": 74.71,
    "glass_blur": 88.61, "motion_blur": 78.03, "zoom_blur": 79.86, "snow": 77.83, "frost": 74.84,
    "fog": 66.11, "brightness": 56.64, "contrast": 71.43, "elastic_transform": 84.75,
    "pixelate": 76.92, "jpeg_compression": 76.82,
}  # fmt: skip
ANT_SIN = {
    "gaussian_noise": 64.45, "shot_noise": 64.99, "impulse_noise": 63.45, "defocus_blur": 46.47,
    "glass_blur": 37.54, "motion_blur": 45.84, "zoom_blur": 39.25, "snow": 42.07, "frost": 46.86,
    "fog": 48.98, "brightness": 68.91, "contrast": 46.51, "elastic_transform": 50.23,
    "pixelate": 57.41, "jpeg_compression": 60.09,
}  # fmt: skip


def errors_of(top1: dict[str, float]) -> dict[str, float]:
    return {name: 1 - value / 100 for name, value in top1.items()}


def test_correct() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 1.0], [0.0, 0.0, -1.0]])
    assert metrics.correct(logits, torch.tensor([1, 2, 0])).tolist() == [True, False, True]


@pytest.mark.parametrize(("top1", "published"), [(RESNET50, 76.70), (ANT_SIN, 61.20)])
def test_published_errors_give_the_published_mce(top1: dict[str, float], published: float) -> None:
    # The table is rounded to 0.01 points of top-1, the mCE to 0.01.
    mce = metrics.mean_corruption_error(errors_of(top1))
    assert 100 * mce == pytest.approx(published, abs=0.013)


@pytest.mark.parametrize("name", RESNET50)
def test_published_corruption_errors_one_by_one(name: str) -> None:
    ce = 100 * errors_of(RESNET50)[name] / metrics.ALEXNET[name]
    assert ce == pytest.approx(RESNET50_CE[name], abs=0.015)


def test_published_relative_mce() -> None:
    """ResNet-50's is 105.0 in Hendrycks & Dietterich 2019; its clean top-1 is 76.13 %."""
    relative = metrics.relative_mean_corruption_error(errors_of(RESNET50), 1 - 0.7613)
    assert 100 * relative == pytest.approx(105.0, abs=0.1)


def test_alexnet_is_one() -> None:
    assert metrics.mean_corruption_error(metrics.ALEXNET) == 1
    clean = metrics.ALEXNET_CLEAN
    assert metrics.relative_mean_corruption_error(metrics.ALEXNET, clean) == pytest.approx(1)


def test_extra_corruptions_never_enter() -> None:
    errors = errors_of(RESNET50)
    extra = {"speckle_noise": 0.0, **errors, "saturate": 1.0}
    assert metrics.mean_corruption_error(extra) == metrics.mean_corruption_error(errors)
    assert metrics.relative_mean_corruption_error(
        extra, 0.2
    ) == metrics.relative_mean_corruption_error(errors, 0.2)


def test_missing_corruptions_are_named() -> None:
    errors = errors_of(RESNET50)
    del errors["frost"], errors["fog"]
    with pytest.raises(TCNNError, match="frost, fog are missing"):
        metrics.mean_corruption_error(errors)
    with pytest.raises(TCNNError, match="frost, fog are missing"):
        metrics.relative_mean_corruption_error(errors, 0.2)


def test_calibration_by_hand() -> None:
    # Bins of 0.5: {0.3 wrong, 0.5 right} and {0.6 right, 0.8 right, 1.0 wrong}; edges belong below.
    confidence = torch.tensor([0.3, 0.5, 0.6, 0.8, 1.0], dtype=torch.float64)
    correct = torch.tensor([False, True, True, True, False])
    expected = 2 / 5 * abs(1 / 2 - 0.4) + 3 / 5 * abs(2 / 3 - 0.8)
    ece = metrics.expected_calibration_error(confidence, correct, bins=2)
    assert ece.item() == pytest.approx(expected)
    assert ece.dtype == torch.float64


@pytest.mark.parametrize("sure", [0.0, 1.0])
def test_calibration_at_the_ends(sure: float) -> None:
    confidence, right = torch.full((4,), sure), torch.full((4,), bool(sure))
    assert metrics.expected_calibration_error(confidence, right) == 0
    assert metrics.expected_calibration_error(confidence, ~right) == 1


@given(st.integers(1, 20), st.integers(1, 200), st.integers(0, 2**31))
def test_calibration_against_a_loop(bins: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Half on a grid that has all the edges of the bins.
    grid = rng.integers(0, bins + 1, n) / bins
    confidence = np.where(rng.random(n) < 0.5, grid, rng.random(n))
    correct = rng.random(n) < confidence
    edges = [b / bins for b in range(bins + 1)]
    expected = 0.0
    for b in range(bins):
        inside = (confidence > edges[b]) & (confidence <= edges[b + 1])
        inside |= (b == 0) & (confidence == 0)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += inside.sum() / n * gap
    ece = metrics.expected_calibration_error(
        torch.from_numpy(confidence), torch.from_numpy(correct), bins
    )
    assert ece.item() == pytest.approx(expected, abs=1e-12)


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


def test_bootstrap_against_one_of_indices() -> None:
    """Shares of 3 versions: 7 distinct differences over 60 images."""
    rng = np.random.default_rng(1)
    difference = rng.integers(-3, 4, 60) / 3
    means = difference[rng.integers(0, 60, (40_000, 60))].mean(axis=1)
    expected = np.quantile(means, [0.05, 0.95])
    got = metrics.paired_bootstrap(torch.from_numpy(difference), level=0.9, resamples=40_000)
    # A quantile's standard error is √(q (1 - q) / resamples) / density, about 0.0006 here.
    assert got == pytest.approx(tuple(expected), abs=0.003)


def test_bootstrap_of_many_images_is_normal() -> None:
    difference = torch.from_numpy(np.random.default_rng(2).choice([-1.0, 0, 1], 50_000))
    low, high = metrics.paired_bootstrap(difference)
    error = metrics.standard_error(difference).item()
    mean = difference.mean().item()
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)


def test_bootstrap_of_distinct_scores_in_parts() -> None:
    """More values than one part holds at once."""
    difference = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    low, high = metrics.paired_bootstrap(difference, resamples=3000)
    error = metrics.standard_error(difference).item()
    mean = difference.double().mean().item()
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.2 * error)


def test_bootstrap_is_the_same_each_time_and_grows_with_the_level() -> None:
    difference = torch.tensor([1.0, 0, 0, -1, 1, 1, 0, 0])
    first = metrics.paired_bootstrap(difference)
    assert metrics.paired_bootstrap(difference) == first
    assert metrics.paired_bootstrap(difference, seed=1, resamples=100) != first
    wide = metrics.paired_bootstrap(difference, level=0.99)
    assert wide[0] <= first[0] <= difference.mean().item() <= first[1] <= wide[1]


def test_bootstrap_of_the_same_is_zero() -> None:
    assert metrics.paired_bootstrap(torch.zeros(10)) == (0, 0)


def discordant(only_a: int, only_b: int, both: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    a = torch.tensor([True] * (only_a + both) + [False] * (only_b + both))
    b = torch.tensor([False] * only_a + [True] * (both + only_b) + [False] * both)
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 9), (9, 1), (5, 5), (0, 6), (12, 5)])
def test_mcnemar_by_hand(only_a: int, only_b: int) -> None:
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n
    assert metrics.mcnemar(*discordant(only_a, only_b)) == pytest.approx(min(1, 2 * tail))


def test_mcnemar_of_one_version_as_a_cluster_is_uncorrected() -> None:
    a, b = discordant(25, 10)
    expected = stats.chi2.sf((25 - 10) ** 2 / (25 + 10), 1)
    assert metrics.mcnemar(a[:, None], b[:, None]) == pytest.approx(expected)


def test_clustered_mcnemar_by_hand() -> None:
    a = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]]).bool()
    b = torch.tensor([[0, 0, 1], [1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]]).bool()
    # d = 2, 1, -1, 2, 0: (Σ d)² / Σ d² = 16 / 10
    assert metrics.mcnemar(a, b) == pytest.approx(math.erfc((1.6 / 2) ** 0.5))


def test_copies_of_an_image_say_nothing_new() -> None:
    a, b = discordant(25, 10)
    once = metrics.mcnemar(a[:, None], b[:, None])
    assert metrics.mcnemar(a[:, None].repeat(1, 7), b[:, None].repeat(1, 7)) == pytest.approx(once)


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
def test_mcnemar_of_the_same_is_one(shape: tuple[int, ...]) -> None:
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert metrics.mcnemar(scores, scores) == 1


def test_mcnemar_of_other_shapes() -> None:
    for a, b in ((torch.ones(3), torch.ones(3, 2)), (torch.ones(1, 3, 2), torch.ones(1, 3, 2))):
        with pytest.raises(TCNNError, match=r"\(N,\) or \(N, V\)"):
            metrics.mcnemar(a.bool(), b.bool())


@pytest.mark.parametrize("versions", [None, 1, 15])
def test_one_in_twenty_is_rejected_by_chance(versions: int | None) -> None:
    """Equal networks: p <= 0.05 in about 5 % of samples, though versions of an image go along."""
    rng, rejected, samples = np.random.default_rng(3), 0, 1000
    for _ in range(samples):
        ease = rng.normal(size=(400, 1))
        own = rng.normal(size=(2, 400, 1))  # what one network finds hard in all versions
        noise = rng.normal(size=(2, 400, versions or 1))
        a, b = torch.from_numpy(ease + own + noise > 0)
        if versions is None:
            a, b = a[:, 0], b[:, 0]
        rejected += metrics.mcnemar(a, b) <= 0.05
    # Standard error 0.007; the exact test holds its level by staying below it.
    assert (0.015 if versions is None else 0.03) < rejected / samples < 0.07
