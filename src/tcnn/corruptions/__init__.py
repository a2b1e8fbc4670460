"""The 19 image corruptions of Hendrycks & Dietterich 2019, as functions on uint8 images.

Formulas and severities are those of ImageNet-C (arXiv 1903.12261 and its public code), for any size
of image as in the package `imagecorruptions`. Images made here are *generated*: they follow the
published recipe, but are not the published files, and results on them are not to be set beside
published ImageNet-C figures.

With x the image in [0, 1], the result is clip(y, 0, 1)·255, rounded down, as in the reference. Each
function gives its formula in full, and docs/corruptions.md how near it is to the reference.

| name | y | parameter at severities 1 to 5 |
|---|---|---|
| gaussian_noise | x + c n, n standard normal for each value | c = .08 .12 .18 .26 .38 |
| shot_noise | Poisson(c x) / c | c = 60 25 12 5 3 |
| impulse_noise | each value becomes 0 or 1, evenly, with probability c | c = .03 .06 .09 .17 .27 |
| defocus_blur | x blurred by a disk of radius r (its edge softened) | r = 3 4 6 8 10 |
| glass_blur | pixels displaced by up to d, n times, amid blurs | d = 1 2 2 3 4, n = 2 1 3 2 2 |
| motion_blur | x drawn out along a line of 2 r pixels at a random angle | r = 10 15 15 15 20 |
| zoom_blur | mean of x enlarged by 1 up to z | z = 1.1 1.15 1.2 1.24 1.3 |
| snow | x bleached, with flakes of mean m added | m = .1 .2 .55 .55 .55 |
| frost | a x + b f, f a generated picture of frost | a = 1 .8 .7 .65 .6, b = .4 .6 .7 .7 .75 |
| fog | (x + c p) m / (m + c), p a fractal, m = max x | c = 1.5 2 2.5 2.5 3 |
| brightness | x with c added to its value V (HSV) | c = .1 .2 .3 .4 .5 |
| contrast | (x - m) c + m, m the mean of each channel | c = .4 .3 .2 .1 .05 |
| elastic_transform | x displaced by a smooth random field, α strong | α = 12.5 16.25 21.25 25 30 |
| pixelate | x reduced to c of its sides and enlarged again | c = .6 .5 .4 .3 .25 |
| jpeg_compression | x through JPEG of quality q | q = 25 18 15 10 7 |
| speckle_noise | x + c x n, n standard normal for each value | c = .15 .2 .35 .45 .6 |
| gaussian_blur | x blurred by a Gaussian of deviation σ pixels | σ = 1 2 3 4 6 |
| spatter | drops of water, then of mud, over x | noise smoothed by 4 3 2 1 1 pixels |
| saturate | x with its saturation S (HSV) made a S + b | a = .3 .1 2 5 20, b = 0 0 0 .1 .2 |
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from tcnn.corruptions import blur, digital, noise, weather
from tcnn.corruptions.pixels import Image

__all__ = [
    "CORRUPTIONS",
    "EXTRA",
    "SEVERITIES",
    "STANDARD",
    "Image",
    "corrupt",
    "corrupt_all",
    "image_rng",
]

_STANDARD = (
    noise.gaussian_noise,
    noise.shot_noise,
    noise.impulse_noise,
    blur.defocus_blur,
    blur.glass_blur,
    blur.motion_blur,
    blur.zoom_blur,
    weather.snow,
    weather.frost,
    weather.fog,
    weather.brightness,
    digital.contrast,
    digital.elastic_transform,
    digital.pixelate,
    digital.jpeg_compression,
)
_EXTRA = (noise.speckle_noise, blur.gaussian_blur, weather.spatter, digital.saturate)
_FUNCTIONS: dict[str, Callable[[Image, int, np.random.Generator], Image]] = {
    function.__name__: function for function in _STANDARD + _EXTRA
}

STANDARD = tuple(function.__name__ for function in _STANDARD)
EXTRA = tuple(function.__name__ for function in _EXTRA)
CORRUPTIONS = STANDARD + EXTRA
SEVERITIES = (1, 2, 3, 4, 5)

# These take each pixel by itself, or the image as a whole; all others look about them.
_ANY_SIZE = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "brightness",
    "contrast",
    "speckle_noise",
    "saturate",
)
_SMALLEST_SIDE = 8


def corrupt(image: Image, name: str, severity: int, rng: np.random.Generator) -> Image:
    """One corrupted image, of the shape that came in.

    Args:
        image: uint8, (H, W), (H, W, 1) or (H, W, 3) in the order R, G, B. One without channels is
            one of a single channel.
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5.
        rng: source of all randomness; equal states give equal images.

    Raises:
        ValueError: an argument is none of these, or the image is too small for the corruption.
    """
    _check(name, severity)
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or (image.ndim == 3 and image.shape[2] not in (1, 3))
    ):
        raise ValueError(
            "Expected `image` as uint8 (H, W), (H, W, 1) or (H, W, 3), but got "
            f"{image.dtype} {image.shape}."
        )
    least = 1 if name in _ANY_SIZE else _SMALLEST_SIDE
    if min(image.shape[:2]) < least:
        raise ValueError(
            f"Expected `image` to have at least {least} pixels a side for {name}, but got "
            f"{image.shape}."
        )
    x = np.ascontiguousarray(image).reshape(*image.shape[:2], -1)
    return _FUNCTIONS[name](x, severity - 1, rng).reshape(image.shape)


def corrupt_all(images: Image, name: str, severity: int, seed: int) -> Image:
    """Every image of (N, H, W, C) corrupted, each with its own `image_rng`."""
    _check(name, severity)
    results = [
        corrupt(image, name, severity, image_rng(seed, name, severity, index))
        for index, image in enumerate(images)
    ]
    return np.stack(results) if results else images.copy()


def image_rng(seed: int, name: str, severity: int, index: int) -> np.random.Generator:
    """The randomness of one image out of many.

    It follows from the seed, the corruption, the severity and the image's place, and from nothing
    else: neither from other images nor from earlier calls, whichever process makes them.
    """
    key = zlib.crc32(name.encode())  # by name, so that a new corruption changes no other
    return np.random.default_rng([seed, key, severity, index])


def _check(name: str, severity: int) -> None:
    if name not in CORRUPTIONS:
        raise ValueError(f"Expected `name` to be one of {CORRUPTIONS}, but got {name!r}.")
    if severity not in SEVERITIES:
        raise ValueError(f"Expected `severity` to be 1, 2, 3, 4 or 5, but got {severity!r}.")
