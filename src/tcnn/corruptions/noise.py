"""Noise that hits each value of each channel by itself."""

from __future__ import annotations

import numpy as np

from tcnn.corruptions.pixels import Image, quantise


def gaussian_noise(image: Image, level: int, rng: np.random.Generator) -> Image:
    """y = x + c n, n standard normal; c = .08 .12 .18 .26 .38.

    Source: ImageNet-C, `gaussian_noise`.
    """
    y = rng.standard_normal(image.shape)
    y *= 255 * (0.08, 0.12, 0.18, 0.26, 0.38)[level]
    y += image
    return quantise(y)


def shot_noise(image: Image, level: int, rng: np.random.Generator) -> Image:
    """y = n / c, n of the Poisson distribution of mean c x; c = 60 25 12 5 3.

    Source: ImageNet-C, `shot_noise`.
    """
    c = (60, 25, 12, 5, 3)[level]
    # A table per grey level would draw faster, but would no longer draw as the reference does.
    counts = rng.poisson((np.arange(256) / 255 * c)[image])
    table = (np.minimum(np.arange(c + 1) / c, 1) * 255).astype(np.uint8)
    return table[np.minimum(counts, c)]


def impulse_noise(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Salt and pepper: with probability c a value becomes 0 or 1, evenly; c = .03 .06 .09 .17 .27.

    Source: ImageNet-C, `impulse_noise`; drawn as skimage.util.random_noise draws.
    """
    hit = rng.random(image.shape) < (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    salt = (rng.random(image.shape) < 0.5).view(np.uint8)
    salt *= 255
    return np.where(hit, salt, image)


def speckle_noise(image: Image, level: int, rng: np.random.Generator) -> Image:
    """y = x + c x n, n standard normal; c = .15 .2 .35 .45 .6.

    Source: ImageNet-C, `speckle_noise`, one of the extra four.
    """
    y = rng.standard_normal(image.shape)
    y *= (0.15, 0.2, 0.35, 0.45, 0.6)[level]
    y += 1
    y *= image
    return quantise(y)
