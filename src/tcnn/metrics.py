"""Arithmetic on predictions and error rates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tcnn.errors import TCNNError

# AlexNet's top-1 error rates on the published ImageNet-C, the mean over severities 1 to 5, as
# https://github.com/hendrycks/robustness gives them. What these leave out is no part of the mCE.
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
# On clean images: torchvision's acc@1 of the same weights is 56.522 %, and the paper, which tells
# no more digits, has an error of 43.5 %.
ALEXNET_CLEAN = 0.43478


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each image's highest score is its label's: (N, K) and (N,) to (N,) of bool."""
    return logits.argmax(dim=1) == labels


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> Tensor:
    r"""How far confidence is from the accuracy that it promises.

    .. math::
        ECE = \sum_{b=1}^{M} \frac{|B_b|}{N} |acc(B_b) - conf(B_b)|

    B_b holds the images with a confidence in ((b - 1)/M, b/M]; one of 0 is in the first.

    Args:
        confidence: probability of the predicted class, in [0, 1], (N,).
        correct: whether the prediction was right, (N,).
        bins: M, all of the same width.

    Returns:
        Scalar, float64.

    Source: Guo, Pleiss, Sun, Weinberger 2017 (arXiv 1706.04599) eq. 3.
    """
    confidence = confidence.double()
    inner = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    # |B_b| (acc - conf) is the sum of (correct - confidence) over the bin.
    gaps = torch.bincount(
        torch.bucketize(confidence, inner), correct.double() - confidence, minlength=bins
    )
    return gaps.abs().sum() / len(confidence)


def mean_corruption_error(errors: Mapping[str, float]) -> float:
    """mCE = (1/15) Σ_c E_c / E_c^AlexNet, over exactly the 15 corruptions of `ALEXNET`.

    0.767 is what is published as 76.7. Both errors are means over severities 1 to 5. It can be
    set beside published figures only if the images are the published files.

    Args:
        errors: corruption → mean top-1 error rate, from 0 to 1. Other names than the 15, such as
            those of the four extra corruptions, never enter.

    Raises:
        TCNNError: one of the 15 is missing.

    Source: Hendrycks & Dietterich 2019 (arXiv 1903.12261) §3.2.
    """
    _check_all_standard(errors)
    return sum(errors[name] / alexnet for name, alexnet in ALEXNET.items()) / len(ALEXNET)


def relative_mean_corruption_error(errors: Mapping[str, float], clean: float) -> float:
    """(1/15) Σ_c (E_c - E_clean) / (E_c^AlexNet - E_clean^AlexNet): what corruption adds.

    Args:
        errors: as of `mean_corruption_error`.
        clean: top-1 error rate on clean images, from 0 to 1.

    Raises:
        TCNNError: as from `mean_corruption_error`.

    Source: as of `mean_corruption_error`.
    """
    _check_all_standard(errors)
    ratios = [(errors[name] - clean) / (ALEXNET[name] - ALEXNET_CLEAN) for name in ALEXNET]
    return sum(ratios) / len(ratios)


def _check_all_standard(errors: Mapping[str, float]) -> None:
    missing = [name for name in ALEXNET if name not in errors]
    if missing:
        raise TCNNError(
            f"Expected errors of all {len(ALEXNET)} standard corruptions, for no mean over fewer "
            f"is an mCE, but {', '.join(missing)} are missing."
        )


def standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean of values (N,), one per image: s/√N, with s over N - 1.

    For values of 0 and 1 this is the binomial √(p (1 - p) / (N - 1)). NaN for one value.
    """
    values = values.double()
    if len(values) < 2:
        return values.new_tensor(float("nan"))
    error: Tensor = values.std() / len(values) ** 0.5
    return error


def paired_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of a - b over images, and its standard error.

    Two networks tend to fail on the same images, so the difference on the same images is known more
    closely than either accuracy.

    Args:
        a, b: score of each image, (N,): correct or not, or the share correct of its variants.
    """
    difference = a.double() - b.double()
    return difference.mean(), standard_error(difference)


def paired_bootstrap(
    difference: Tensor, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over images, drawn with replacement.

    The mean of a resample depends on how often each distinct value was drawn, and on nothing else.
    How often is multinomial, with the values' shares of the images as probabilities: that is drawn,
    a few counts in place of N indices, and the means have the very same distribution.

    Args:
        difference: of two networks' scores, one for each image, (N,).
        level: share of intervals that hold the mean.
        resamples: how many means are drawn.
        seed: of the draws; equal seeds give equal intervals.

    Returns:
        Its ends: the (1 - level)/2 and (1 + level)/2 quantiles of the means.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, §13.3.
    """
    distinct, counts = np.unique(difference.double().cpu().numpy(), return_counts=True)
    rng, total = np.random.default_rng(seed), len(difference)
    rows = max(1, 2**22 // len(distinct))  # in parts, for scores that are all distinct
    means = np.concatenate(
        [
            rng.multinomial(total, counts / total, min(rows, resamples - done)) @ distinct / total
            for done in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(a: Tensor, b: Tensor) -> float:
    r"""p-value for two networks being right equally often, from the same images.

    Each image once, (N,): the exact two-sided binomial test, on the images that one network alone
    gets right. Several versions of each image, (N, V): versions of one image are not independent,
    images are, so with d_k the sum of (a - b) over the versions of image k, the statistic

    .. math::
        \Bigl(\sum_k d_k\Bigr)^2 \Big/ \sum_k d_k^2

    is held against χ² with one degree of freedom. With V = 1 it is McNemar's (n_a - n_b)² /
    (n_a + n_b), without a correction for continuity.

    Args:
        a, b: whether each network was right, of bool, (N,) or (N, V).

    Returns:
        p; 1 where the networks never differ.

    Raises:
        TCNNError: the shapes are others, or not the same.

    Source: McNemar 1947; Durkalski, Palesch, Lipsitz, Rust 2003, Statistics in Medicine 22, where
        all images have equally many versions.
    """
    # Not at the top: `import tcnn` does without scipy.
    from scipy import stats

    if a.shape != b.shape or a.ndim not in (1, 2):
        raise TCNNError(
            f"Expected `a` and `b` of one shape, (N,) or (N, V), but got {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    if a.ndim == 1:
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        if only_a + only_b == 0:
            return 1.0
        return float(stats.binomtest(only_a, only_a + only_b).pvalue)
    d = (a.double() - b.double()).sum(dim=1)
    spread = d.square().sum()
    return 1.0 if spread == 0 else float(stats.chi2.sf((d.sum().square() / spread).item(), 1))
