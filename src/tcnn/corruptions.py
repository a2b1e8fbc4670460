"""Common image corruptions of Hendrycks & Dietterich 2019, as functions on uint8 images.

Formulas and severities are those of ImageNet-C (arXiv 1903.12261 and its public code). Images made
here are *generated*: they follow the published recipe, but are not the published files, and results
on them are not to be set beside published ImageNet-C figures.

With x the image in [0, 1], the result is clip(y, 0, 1)·255, rounded down, as in the reference:

| name | y | parameter at severities 1 to 5 |
|---|---|---|
| gaussian_noise | x + c n, n standard normal for each value | c = .08 .12 .18 .26 .38 |
| impulse_noise | each value becomes 0 or 1, evenly, with probability c | c = .03 .06 .09 .17 .27 |
| defocus_blur | x blurred by a disk of radius r (its edge softened) | r = 3 4 6 8 10 |
| brightness | x with c added to its value V (HSV) | c = .1 .2 .3 .4 .5 |
| contrast | (x - m) c + m, m the mean of each channel | c = .4 .3 .2 .1 .05 |
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(image: Image, name: str, severity: int, rng: np.random.Generator) -> Image:
    """One corrupted image, of the shape that came in.

    Args:
        image: uint8, (H, W) or (H, W, C).
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5.
        rng: source of all randomness; equal states give equal images.

    Raises:
        ValueError: an argument is none of these.
    """
    _check(name, severity)
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(
            f"Expected `image` as uint8 (H, W) or (H, W, C), but got {image.dtype} {image.shape}."
        )
    x = image.astype(np.float64).reshape(*image.shape[:2], -1) / 255
    y = _FUNCTIONS[name](x, severity - 1, rng)
    return (np.clip(y, 0, 1) * 255).astype(np.uint8).reshape(image.shape)


def corrupt_all(images: Image, name: str, severity: int, seed: int) -> Image:
    """Every image of (N, H, W, C) corrupted.

    The randomness of an image follows from the seed, the corruption, the severity and the image's
    place in `images`, and from nothing else: neither from other images nor from earlier calls.
    """
    _check(name, severity)
    key = zlib.crc32(name.encode())  # by name, so that a new corruption changes no other
    results = [
        corrupt(image, name, severity, np.random.default_rng([seed, key, severity, index]))
        for index, image in enumerate(images)
    ]
    return np.stack(results) if results else images.copy()


def gaussian_noise(x: Array, level: int, rng: np.random.Generator) -> Array:
    """x + c n, n standard normal."""
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * rng.standard_normal(x.shape)


def impulse_noise(x: Array, level: int, rng: np.random.Generator) -> Array:
    """Salt and pepper: each value of each channel is replaced with probability c by 0 or 1."""
    hit = rng.random(x.shape) < (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    return np.where(hit, rng.random(x.shape) < 0.5, x)


def defocus_blur(x: Array, level: int, rng: np.random.Generator) -> Array:
    """x blurred by a disk; the border is mirrored (its last pixel not repeated)."""
    radius, sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]
    kernel = _disk(radius, sigma)
    reach = len(kernel) // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    windows = sliding_window_view(padded, kernel.shape, axis=(0, 1))
    blurred: Array = np.tensordot(windows, kernel, axes=2)
    return blurred


def brightness(x: Array, level: int, rng: np.random.Generator) -> Array:
    """c added to the value V = max(R, G, B); hue and saturation stay, so all channels scale."""
    value = x.max(axis=2, keepdims=True)
    brighter = np.clip(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 0, 1)
    # Black has no hue: it turns grey.
    y: Array = np.where(value > 0, x / np.where(value > 0, value, 1) * brighter, brighter)
    return y


def contrast(x: Array, level: int, rng: np.random.Generator) -> Array:
    """(x - m) c + m, m the mean of each channel."""
    mean: Array = x.mean(axis=(0, 1), keepdims=True)
    y: Array = (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean
    return y


_FUNCTIONS: dict[str, Callable[[Array, int, np.random.Generator], Array]] = {
    function.__name__: function
    for function in (gaussian_noise, impulse_noise, defocus_blur, brightness, contrast)
}
CORRUPTIONS = tuple(_FUNCTIONS)


def _disk(radius: int, sigma: float) -> Array:
    """A disk of weights that sum to 1, then softened by a Gaussian of 3 taps (5 from radius 9 up).

    As the reference, the grid ends at the disk's edge for radius 8 and 10 and is mirrored there.
    """
    reach, taps = (8, 1) if radius <= 8 else (radius, 2)
    axis = np.arange(-reach, reach + 1)
    disk = (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2).astype(np.float64)
    gauss = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * sigma**2))
    gauss /= gauss.sum()
    padded = np.pad(disk / disk.sum(), taps, mode="reflect")
    softened: Array = sliding_window_view(padded, (2 * taps + 1,) * 2) @ gauss @ gauss
    return softened


def _check(name: str, severity: int) -> None:
    if name not in CORRUPTIONS:
        raise ValueError(f"Expected `name` to be one of {CORRUPTIONS}, but got {name!r}.")
    if severity not in SEVERITIES:
        raise ValueError(f"Expected `severity` to be 1, 2, 3, 4 or 5, but got {severity!r}.")
