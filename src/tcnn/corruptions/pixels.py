"""What all corruptions share: their types, the last step to uint8, and Gaussian smoothing."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.floating[Any]]

# What float32 may lose of 255. Blurs add it before rounding down, so that a flat area stays flat.
SLACK = 2e-3


def quantise(y: Array) -> Image:
    """y, on the scale of 0 to 255, clipped and rounded down as the reference does; y is used up."""
    return np.clip(y, 0, 255, out=y).astype(np.uint8)


def gauss(sigma: float, truncate: float) -> npt.NDArray[np.float64]:
    """Gaussian weights that sum to 1, out to `truncate` deviations."""
    reach = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    return np.asarray(weights)


def smooth(
    x: Array,
    sigma: float | tuple[float, float],
    *,
    truncate: float = 4,
    border: int = cv2.BORDER_REPLICATE,
) -> Array:
    """x (H, W) or (H, W, C) smoothed by a Gaussian of deviation `sigma` (along y, along x).

    Equal to skimage.filters.gaussian, whose defaults are those here; its mode "nearest" is
    BORDER_REPLICATE and its mode "reflect" BORDER_REFLECT.
    """
    along_y, along_x = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    kernels = gauss(along_x, truncate), gauss(along_y, truncate)
    # OpenCV drops a single channel.
    return as_floats(cv2.sepFilter2D(x, -1, *kernels, borderType=border)).reshape(x.shape)


def as_floats(y: npt.NDArray[Any]) -> Array:
    """y as it is: OpenCV's types do not say which of its results are floats."""
    return y
