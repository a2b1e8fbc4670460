"""Weather: snow, frost, fog, light, and what is splashed on the lens."""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt
import torch

from tcnn.corruptions.blur import move, zoom
from tcnn.corruptions.pixels import SLACK, Array, Image, as_floats, quantise, smooth

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_WATER = np.array([175, 238, 238], np.float32)  # pale turquoise
_MUD = np.array([63, 42, 20], np.float32)
_GREY = np.array([0.2989, 0.5870, 0.1140], np.float32)  # of the two colours above

_FROST_SIDE = 96  # least side that frost is drawn at
_STEMS = 22  # feathers of frost on a square
_FRACTION = 4  # bits of a pixel that its lines are placed by


def snow(image: Image, level: int, rng: np.random.Generator) -> Image:
    """x bleached, with flakes s and the same flakes turned by 180° added.

    y = b x + (1 - b) max(x, 1.5 g + .5) + s + s', g the grey of x. The flakes are normal noise of
    mean m and deviation .3, enlarged z times about its middle, 0 below t, and drawn out along an
    angle uniform in -135° to -45° as by `motion_blur` with (r, σ):

    (m, z, t, r, σ, b) = (.1, 3, .5, 10, 4, .8) (.2, 2, .5, 12, 4, .7) (.55, 4, .9, 12, 8, .7)
    (.55, 4.5, .85, 12, 8, .65) (.55, 2.5, .85, 12, 12, .55).

    Source: ImageNet-C, `snow`; drawn out as `imagecorruptions` does without ImageMagick.
    """
    mean, factor, threshold, radius, sigma, keep = (
        (0.1, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    height, width, channels = image.shape
    noise = rng.standard_normal((height, width))
    noise *= 0.3
    noise += mean
    # float64 up to the rounding, which is to fall as the reference's does.
    flakes = zoom(torch.from_numpy(noise)[None, None], factor)[0, 0].numpy()
    flakes = np.where(flakes < threshold, 0, np.minimum(flakes, 1))
    flakes = move(flakes, radius, sigma, rng.uniform(-135, -45))[:height, :width]
    flakes = np.round(flakes * 255).astype(np.float32)

    x = image.astype(np.float32)
    grey = x @ _LUMA[:, None] if channels == 3 else x
    y = keep * x + (1 - keep) * np.maximum(x, 1.5 * grey + 127.5)
    y += (flakes + flakes[::-1, ::-1])[..., None]
    return quantise(y + np.float32(SLACK))


def frost(image: Image, level: int, rng: np.random.Generator) -> Image:
    """y = a x + b f, f a picture of frost; (a, b) = (1, .4) (.8, .6) (.7, .7) (.65, .7) (.6, .75).

    Source: ImageNet-C, `frost`, but for f. The reference crops f out of five photographs; here it
    is generated (`_frosted`), with about their mean and deviation, so that results on it are of the
    same kind, but are not the reference's.
    """
    keep, add = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    height, width, channels = image.shape
    ice = _frosted(height, width, rng)
    # Means by channel of the photographs, so thin ice is bluer than thick.
    tint = np.array([146, 167, 179], np.float32)
    y = ice[..., None] + (tint if channels == 3 else tint @ _LUMA)
    np.clip(y, 0, 255, out=y)
    y *= add
    y += keep * image
    return quantise(y)


def fog(image: Image, level: int, rng: np.random.Generator) -> Image:
    """y = (x + c p) m / (m + c), p a plasma fractal in [0, 1] and m the greatest value of x.

    (c, d) = (1.5, 2) (2, 2) (2.5, 1.7) (2.5, 1.5) (3, 1.4); d is how much the fractal's detail
    decays from one scale to the next.

    Source: ImageNet-C, `fog`; the fractal is the smallest that covers the image, as in
    `imagecorruptions`.
    """
    c, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    height, width, _ = image.shape
    haze = _plasma(1 << (max(height, width) - 1).bit_length(), decay, rng)[:height, :width]
    brightest = int(image.max()) / 255
    share = brightest / (brightest + c)
    y = image * np.float32(share)
    y += (haze * (255 * c * share)).astype(np.float32)[..., None]
    return quantise(y + np.float32(SLACK))


def brightness(image: Image, level: int, rng: np.random.Generator) -> Image:
    """c added to the value V = max(R, G, B), up to 1; hue and saturation stay; c = .1 .2 .3 .4 .5.

    All channels scale as V does; black, which has no hue, turns grey.

    Source: ImageNet-C, `brightness`.
    """
    table = _brightened((0.1, 0.2, 0.3, 0.4, 0.5)[level])
    if image.shape[2] == 1:
        return table[image, image]
    red, green, blue = cv2.split(image)
    value = np.maximum(np.maximum(red, green), blue)
    return table[value[..., None], image]


def spatter(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Drops of water (severities 1 to 3) or of mud (4 and 5) on the lens.

    A liquid is normal noise of mean m and deviation s, smoothed by a Gaussian of deviation σ, and 0
    below t. Water adds a p times pale turquoise, p the liquid weighted by the equalised and
    embossed distance to its edges, its greatest value 1. Mud replaces a share p of x, p the
    liquid's place (1 where it is, else 0) smoothed by a Gaussian of deviation a, and 0 below .8.

    (m, s, σ, t, a) = (.65, .3, 4, .69, .6) (.65, .3, 3, .68, .6) (.65, .3, 2, .68, .5)
    (.65, .3, 1, .65, 1.5) (.67, .4, 1, .65, 1.5).

    Source: ImageNet-C, `spatter`, one of the extra four. Where no liquid is left the image stays;
    the reference divides by 0 there.
    """
    mean, deviation, sigma, threshold, amount = (
        (0.65, 0.3, 4, 0.69, 0.6),
        (0.65, 0.3, 3, 0.68, 0.6),
        (0.65, 0.3, 2, 0.68, 0.5),
        (0.65, 0.3, 1, 0.65, 1.5),
        (0.67, 0.4, 1, 0.65, 1.5),
    )[level]
    noise = rng.standard_normal(image.shape[:2])
    noise *= deviation
    noise += mean
    # float64: edges and thresholds are to fall as the reference's do.
    liquid = smooth(noise, sigma)
    liquid[liquid < threshold] = 0
    water = level < 3
    colour = _WATER if water else _MUD
    if image.shape[2] == 1:
        colour = colour @ _GREY[:, None]
    if water:
        depth = _depth((liquid * 255).astype(np.uint8))
        share = (depth * (amount / max(depth.max(), 1)))[..., None]
        y = image + share * colour
    else:
        share = smooth((liquid > threshold).astype(np.float32), amount)[..., None]
        share[share < 0.8] = 0
        y = image + share * (colour - image)
    return quantise(y + np.float32(SLACK))


def _depth(liquid: Image) -> Array:
    """Liquid times the embossed distance to its edges, as the reference computes it."""
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    near = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    relief = cv2.filter2D(cv2.equalizeHist(near), cv2.CV_8U, emboss)
    return as_floats(liquid * cv2.blur(relief, (3, 3)).astype(np.float32))


def _plasma(side: int, decay: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Fractal heights in [0, 1] by diamond and square on a torus, (side, side), a power of two.

    Each point is the mean of its four neighbours on the present grid plus uniform noise, which
    falls by `decay` squared whenever the grid doubles.
    """
    heights = np.zeros((side, side))
    step, reach = side, 100.0
    while step >= 2:
        half = step // 2
        corners, middles = heights[::step, ::step], heights[half::step, half::step]
        shape = corners.shape
        rows = corners + np.roll(corners, -1, 0)
        middles[:] = (rows + np.roll(rows, -1, 1)) / 4 + reach * rng.uniform(-reach, reach, shape)
        across = middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = across / 4 + reach * rng.uniform(-reach, reach, shape)
        down = middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0)
        heights[half::step, ::step] = down / 4 + reach * rng.uniform(-reach, reach, shape)
        step, reach = half, reach / decay
    heights -= heights.min()
    heights /= heights.max()
    return heights


def _frosted(height: int, width: int, rng: np.random.Generator) -> Array:
    """Frost on a pane: feathers of ice over a veil of uneven thickness.

    A feather is a bent stem with barbs on both sides, about 60° from it, and smaller barbs on
    those. Lengths are in shares of the shorter side, so frost looks alike at any size.

    Returns:
        (H, W) of float32: mean 0, deviation 36 grey levels.
    """
    # Lines are a pixel wide at least, so small images are drawn larger.
    scale = max(1.0, _FROST_SIDE / min(height, width))
    tall, wide = math.ceil(height * scale), math.ceil(width * scale)
    side = min(tall, wide)
    feathers = np.zeros((tall, wide), np.uint8)
    levels = _feather_lines(tall / side, wide / side, rng)
    # The least barbs are shorter than a pixel of a small image, and most of the work.
    for shade, start, end in reversed(levels if scale == 1 else levels[:2]):
        ends = np.stack([start, end], axis=1)
        points = np.stack([ends.real, ends.imag], axis=2) * (side << _FRACTION)
        cv2.polylines(
            feathers,
            list(points.astype(np.int32)),
            isClosed=False,
            color=shade,
            thickness=max(1, side // 224),
            lineType=cv2.LINE_AA,
            shift=_FRACTION,
        )
    lines = feathers.astype(np.float32)
    glow = cv2.GaussianBlur(lines, (0, 0), side / 90)
    thickness = _veil(tall, wide, 3, rng) + 0.6 * _veil(tall, wide, 9, rng)
    grain = _veil(tall, wide, 90, rng)
    ice = lines * (1 + 0.25 * grain) + 0.9 * glow + 22 * thickness + 9 * grain
    ice = as_floats(cv2.resize(ice, (width, height), interpolation=cv2.INTER_AREA))
    ice -= ice.mean()
    ice *= 36 / ice.std()
    return ice


def _feather_lines(
    height: float, width: float, rng: np.random.Generator
) -> list[tuple[int, npt.NDArray[np.complex128], npt.NDArray[np.complex128]]]:
    """Stems, barbs and barbs of barbs: (shade, starts, ends), a point being x + i y."""
    area = height * width
    stems, joints, twigs = max(4, round(_STEMS * area)), 22, 4
    base = rng.uniform(0, width, stems) + 1j * rng.uniform(0, height, stems)
    length = rng.uniform(0.25, 0.7, stems)
    along = (np.arange(joints + 1) + rng.uniform(-0.2, 0.2, (stems, joints + 1))) / joints
    heading = rng.uniform(0, 2 * np.pi, (stems, 1)) + rng.uniform(-0.9, 0.9, (stems, 1)) * along
    path = base[:, None] + np.cumsum(length[:, None] / joints * np.exp(1j * heading), axis=1)
    levels = [(235, path[:, :-1].ravel(), path[:, 1:].ravel())]

    root, direction = path[:, :-1, None], heading[:, :-1, None]
    reach = (
        length[:, None, None] * 0.32 * np.sin(np.pi * (0.12 + 0.86 * along[:, :-1, None])) ** 0.7
    )
    both = np.array([-1.0, 1.0])
    angle = direction + both * rng.uniform(0.85, 1.15, (stems, joints, 2))
    barb = reach * rng.uniform(0.35, 1, (stems, joints, 2)) * np.exp(1j * angle)
    levels.append((165, (root + 0 * barb).ravel(), (root + barb).ravel()))

    at = np.linspace(0.25, 0.85, twigs)[:, None]
    root = (root + 0 * barb)[..., None, None] + at * barb[..., None, None]
    twig = barb[..., None, None] * 0.35 * (1.1 - at) * np.exp(1j * both)
    twig = twig * rng.uniform(0.5, 1.2, twig.shape)
    levels.append((100, (root + 0 * twig).ravel(), (root + twig).ravel()))
    return levels


def _veil(height: int, width: int, cells: int, rng: np.random.Generator) -> Array:
    """Smooth noise of deviation about 1 with `cells` bumps along the shorter side."""
    side = min(height, width)
    shape = (cells * height // side + 2, cells * width // side + 2)
    coarse = rng.standard_normal(shape).astype(np.float32)
    return as_floats(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


@cache
def _brightened(c: float) -> Image:
    """The result by V and by a channel's value, (256, 256)."""
    value = np.arange(256)[:, None] / 255
    brighter = np.clip(value + c, 0, 1)
    x = np.arange(256) / 255
    y = np.where(value > 0, x / np.where(value > 0, value, 1) * brighter, brighter)
    return quantise(np.minimum(y, 1) * 255)
