"""Blurs, and the two movements of an image that snow shares with them: zoom and motion."""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from tcnn.corruptions.pixels import SLACK, Array, Image, as_floats, gauss, quantise, smooth

# Below this side the reference takes no images.
_REFERENCE_SIDE = 32


def defocus_blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    """x blurred by a disk of radius r, its edge softened by a Gaussian of deviation σ.

    (r, σ) = (3, .1) (4, .5) (6, .5) (8, .5) (10, .5). The border is mirrored, its last pixel not
    repeated.

    Source: ImageNet-C, `defocus_blur`.
    """
    kernel = _disk(*((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level])
    border = cv2.BORDER_REFLECT_101
    # From float32, not from uint8: OpenCV has a faster way there.
    y = cv2.filter2D(image.astype(np.float32), -1, kernel, delta=SLACK, borderType=border)
    return quantise(as_floats(y).reshape(image.shape))


def gaussian_blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    """x blurred by a Gaussian of deviation σ = 1 2 3 4 6 pixels, the border's last pixel repeated.

    Source: ImageNet-C, `gaussian_blur`, one of the extra four.
    """
    return quantise(smooth(image.astype(np.float32), (1, 2, 3, 4, 6)[level]) + np.float32(SLACK))


def glass_blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    """x blurred, its pixels displaced by up to d, n times over, then blurred again.

    (σ, d, n) = (.7, 1, 2) (.9, 2, 1) (1, 2, 3) (1.1, 3, 2) (1.5, 4, 2). One displacement goes from
    the last pixel to the first, but for a margin, and draws (dx, dy) from -d to d - 1 for each.

    Source: ImageNet-C, `glass_blur`. The paper speaks of an exchange of pixels; in the public code
    the pixel at (y, x) takes the value at (y + dy, x + dx), which itself stays: the exchange is of
    two views of one array, and the second assignment reads what the first has written. So it is
    here. A grey image that is given as such to the reference's own function is truly exchanged.
    """
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    height, width, channels = image.shape
    blurred = quantise(smooth(image.astype(np.float32), sigma) + np.float32(SLACK))
    source = np.arange(height * width)
    for _ in range(rounds):
        source = source[_displacement(height, width, reach, rng)]
    y = np.take(blurred.reshape(-1, channels), source, axis=0).reshape(image.shape)
    return quantise(smooth(y.astype(np.float32), sigma) + np.float32(SLACK))


def motion_blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    """x drawn out along a line: Σ_i w_i x moved by i pixels, for i = 0 to 2 r.

    w is half a Gaussian of deviation σ, its sum 1, and the angle is uniform in -45° to 45°;
    (r, σ) = (10, 3) (15, 5) (15, 8) (15, 12) (20, 15). The border's last pixel is repeated.

    Source: ImageNet-C, `motion_blur`, as `imagecorruptions` has it without ImageMagick. As there,
    moves by a whole side or more are left out, and their light with them (up to .03 of it at 32
    pixels and severity 5). Below 32 pixels, where the reference takes no images, moves are left out
    as at 32, so that small images lose no more.
    """
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    y = move(image.astype(np.float32), radius, sigma, rng.uniform(-45, 45))
    return quantise(y + np.float32(SLACK))


def zoom_blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Mean of x and of x enlarged about its middle by each of the factors 1, 1 + d, ... below e.

    (d, e) = (.01, 1.11) (.01, 1.16) (.02, 1.21) (.02, 1.26) (.03, 1.31).

    Source: ImageNet-C, `zoom_blur`.
    """
    step, end = ((0.01, 1.11), (0.01, 1.16), (0.02, 1.21), (0.02, 1.26), (0.03, 1.31))[level]
    factors = np.arange(1, end, step)
    height, width, _ = image.shape
    # In memory the channels stay last, which interpolates three times as fast.
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    total = x.clone(memory_format=torch.contiguous_format)
    for factor in factors:
        total += zoom(x, factor)[..., :height, :width]
    y = total[0].permute(1, 2, 0).contiguous().div_(len(factors) + 1).add_(SLACK)
    return quantise(y.numpy())


def zoom(x: torch.Tensor, factor: float) -> torch.Tensor:
    """The middle of x (1, C, H, W) enlarged by `factor` to at least (H, W), bilinearly.

    Corners fall on corners, as in scipy.ndimage.zoom of order 1.
    """
    inner = [math.ceil(side / factor) for side in x.shape[2:]]
    top, left = ((side - n) // 2 for side, n in zip(x.shape[2:], inner, strict=True))
    middle = x[..., top : top + inner[0], left : left + inner[1]]
    size = [round(n * factor) for n in inner]
    if size == inner:
        return middle
    return interpolate(middle, size, mode="bilinear", align_corners=True)


def move(x: Array, radius: int, sigma: float, angle: float) -> Array:
    """Σ_i w_i x moved by i pixels along `angle`, in degrees: the sum of `motion_blur`."""
    height, width = x.shape[:2]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = (
        -np.ceil(steps * turn(math.radians(angle)) - 0.5).astype(int)
        for turn in (math.sin, math.cos)
    )
    far = (np.abs(down) >= max(height, _REFERENCE_SIDE)) | (
        np.abs(right) >= max(width, _REFERENCE_SIDE)
    )
    count = int(far.argmax()) if far.any() else len(steps)
    down, right = down[:count], right[:count]

    bottom, top = max(0, -down.min()), max(0, down.max())
    after, before = max(0, -right.min()), max(0, right.max())
    wide = cv2.copyMakeBorder(x, top, bottom, before, after, cv2.BORDER_REPLICATE)
    wide = wide.reshape(*wide.shape[:2], *x.shape[2:])
    y = np.zeros_like(x)
    part = np.empty_like(x)
    for weight, dy, dx in zip(weights, down, right, strict=False):
        moved = wide[top - dy : top - dy + height, before - dx : before - dx + width]
        np.multiply(moved, x.dtype.type(weight), out=part)
        y += part
    return y


def _displacement(
    height: int, width: int, reach: int, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Where each pixel's value comes from after one displacement of all, as flat indices.

    A pixel that takes from one already displaced takes what that one had taken, and so on: a chain
    that ends at an original. All chains are followed at once, twice as far at each turn.
    """
    count = height * width
    rows = np.arange(height - reach, reach, -1)
    columns = np.arange(width - reach, reach, -1)
    offsets = rng.integers(-reach, reach, size=(len(rows), len(columns), 2))
    pixel = rows[:, None] * width + columns
    other = pixel + offsets[..., 1] * width + offsets[..., 0]
    displaced = np.zeros(count, bool)
    displaced[pixel] = True
    # Index p stands for the pixel after its displacement, count + p for the original.
    chain = np.arange(count, 2 * count)
    chain[pixel] = np.where((other > pixel) & displaced[other], other, count + other)
    while (open_ends := np.flatnonzero(chain < count)).size:
        chain[open_ends] = chain[chain[open_ends]]
    return chain - count


@cache
def _disk(radius: int, sigma: float) -> Array:
    """A disk of weights that sum to 1, then softened by a Gaussian of 3 taps (5 from radius 9 up).

    As in the reference, the grid ends at the disk's edge for radius 8 and 10 and is mirrored there.
    """
    reach, taps = (8, 1) if radius <= 8 else (radius, 2)
    axis = np.arange(-reach, reach + 1)
    disk: Array = (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2).astype(np.float64)
    weights = gauss(sigma, (taps + 0.4) / sigma)
    border = cv2.BORDER_REFLECT_101
    disk = as_floats(cv2.sepFilter2D(disk / disk.sum(), -1, weights, weights, borderType=border))
    # Rows of zeros cost as much as others.
    margin = max(0, reach - radius - taps)
    return disk[margin : len(disk) - margin, margin : len(disk) - margin]
