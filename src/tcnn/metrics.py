"""Arithmetic on predictions and error rates: tensors in, tensors out."""

from __future__ import annotations

from torch import Tensor


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each image's highest score is its label's: (N, K) and (N,) to (N,) of bool."""
    return logits.argmax(dim=1) == labels


def corruption_error(errors: Tensor, baseline: Tensor) -> Tensor:
    """CE_c = Σ_s E_{s,c} / Σ_s E⁰_{s,c}, the errors of a network relative to a baseline's.

    The mean over corruptions is the mCE. In published figures the baseline is AlexNet.

    Args:
        errors: error rates E, (corruptions, severities).
        baseline: those of the baseline, E⁰, in the same order.

    Returns:
        (corruptions,).

    Source: Hendrycks & Dietterich 2019 (arXiv 1903.12261) §3.2.
    """
    return errors.sum(dim=1) / baseline.sum(dim=1)


def relative_corruption_error(
    errors: Tensor, clean: Tensor, baseline: Tensor, baseline_clean: Tensor
) -> Tensor:
    """Σ_s (E_{s,c} - E_clean) / Σ_s (E⁰_{s,c} - E⁰_clean): what corruption adds to the error.

    Args:
        errors, baseline: as in `corruption_error`.
        clean, baseline_clean: error rates on clean images, scalars.

    Returns:
        (corruptions,).
    """
    return (errors - clean).sum(dim=1) / (baseline - baseline_clean).sum(dim=1)


def standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean of values (N,), one per image: s/√N, with s over N - 1.

    For values of 0 and 1 this is the binomial √(p (1 - p) / (N - 1)).
    """
    values = values.double()
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
