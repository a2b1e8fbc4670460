"""What editing and storing do to an image: contrast, saturation, distortion, pixels, JPEG."""

from __future__ import annotations

from functools import cache
from io import BytesIO

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch.nn.functional import grid_sample

from tcnn.corruptions.pixels import SLACK, Array, Image, quantise, smooth


def contrast(image: Image, level: int, rng: np.random.Generator) -> Image:
    """y = (x - m) c + m, m the mean of each channel; c = .4 .3 .2 .1 .05.

    Source: ImageNet-C, `contrast`.
    """
    c = (0.4, 0.3, 0.2, 0.1, 0.05)[level]
    means = np.array(cv2.mean(image)[: image.shape[2]]) / 255
    # A channel has 256 values at most, so the formula is computed once for each.
    tables = quantise(((np.arange(256)[:, None] / 255 - means) * c + means) * 255)
    return np.stack([table[image[..., i]] for i, table in enumerate(tables.T)], axis=2)


def saturate(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Saturation S (HSV) becomes a S + b; hue and value stay.

    (a, b) = (.3, 0) (.1, 0) (2, 0) (5, .1) (20, .2). With V the greatest of R, G and B, each
    channel becomes V - (V - x) S'/S, S' clipped to [0, 1]. Grey pixels have no hue, and count as
    red where b > 0, as in the reference.

    Source: ImageNet-C, `saturate`, one of the extra four. An image of one channel has no saturation
    and stays as it is; the reference makes it an RGB image, which turns red at severities 4 and 5.
    """
    if image.shape[2] == 1:
        return image.copy()
    scale, shift = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[level]
    red, green, blue = cv2.split(image)
    value = np.maximum(np.maximum(red, green), blue)
    least = np.minimum(np.minimum(red, green), blue)
    gain = _saturation(scale, shift)[value, least]
    planes = [value - (value - plane) * gain for plane in (red, green, blue)]
    if shift:
        grey = value == least
        for plane in planes[1:]:
            plane[grey] = value[grey] * np.float32(1 - shift)
    y: Array = np.stack(planes, axis=2)
    return quantise(y + np.float32(SLACK))


def elastic_transform(image: Image, level: int, rng: np.random.Generator) -> Image:
    """x displaced by a smooth random field: noise, smoothed by a Gaussian, times α.

    α = 12.5 16.25 21.25 25 30. The noise is uniform within ±.005 H and the deviations are .01 H
    along y and .01 W along x. Values between pixels are bilinear, and the border is mirrored.

    Source: ImageNet-C, `elastic_transform`, as `imagecorruptions` has it for any size.
    """
    alpha = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[level]
    height, width, _ = image.shape
    reach = height * 0.005
    grid = np.empty((height, width, 2), np.float32)
    for axis, (side, place) in enumerate(
        ((width, np.arange(width)), (height, np.arange(height)[:, None]))
    ):
        field = smooth(
            rng.uniform(-reach, reach, size=(height, width)),
            (height * 0.01, width * 0.01),
            truncate=3,
            border=cv2.BORDER_REFLECT,
        )
        # grid_sample counts from -1 to 1, edge to edge of the image.
        grid[..., axis] = (2 * (place + field * alpha) + 1) / side - 1
    y = grid_sample(
        torch.from_numpy(image).permute(2, 0, 1)[None].float().contiguous(),
        torch.from_numpy(grid)[None],
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )
    return quantise(y[0].permute(1, 2, 0).add(SLACK).numpy())


def pixelate(image: Image, level: int, rng: np.random.Generator) -> Image:
    """x reduced to c of its sides, by means over boxes, and enlarged by its nearest pixels.

    c = .6 .5 .4 .3 .25, and the reduced sides are rounded down.

    Source: ImageNet-C, `pixelate`.
    """
    c = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    height, width, _ = image.shape
    small = _picture(image).resize((int(width * c), int(height * c)), PIL.Image.Resampling.BOX)
    return np.array(small.resize((width, height), PIL.Image.Resampling.NEAREST)).reshape(
        image.shape
    )


def jpeg_compression(image: Image, level: int, rng: np.random.Generator) -> Image:
    """x as JPEG and back; quality 25 18 15 10 7.

    Source: ImageNet-C, `jpeg_compression`. An image of one channel is stored as such.
    """
    file = BytesIO()
    _picture(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    with PIL.Image.open(file) as picture:
        return np.array(picture).reshape(image.shape)


def _picture(image: Image) -> PIL.Image.Image:
    return PIL.Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


@cache
def _saturation(scale: float, shift: float) -> npt.NDArray[np.float32]:
    """S'/S by value and least channel, (256, 256); 1 where S is 0."""
    value, least = np.arange(256.0)[:, None], np.arange(256.0)
    coloured = value > least
    s = np.where(coloured, value - least, 1) / np.maximum(value, 1)
    ratio = np.where(coloured, np.clip(s * scale + shift, 0, 1) / s, 1)
    return ratio.astype(np.float32)
