"""The bytes of a picture to an upright 8-bit RGB image, or the reason why not."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from tcnn.errors import TCNNError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_UPRIGHT = {  # EXIF's orientation → what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(TCNNError):
    """An image cannot be read rightly.

    Attributes:
        name: of the image.
        reason: why, in one line.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it comes out of a worker process whole
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"Expected an image that can be read, but {self.name!r} cannot: {self.reason}."


def decode(data: bytes, name: str = "image") -> Image.Image:
    """The picture in a file, upright, as 8-bit RGB.

    Of an animation the first frame; transparency lies on white; 16-bit grey levels are divided by
    256, floating-point ones from 0 to 1 multiplied by 255; CMYK as Pillow converts it.

    Args:
        data: a JPEG, PNG, BMP, GIF, WebP, TIFF or PPM file.
        name: what an error calls it.

    Raises:
        UnreadableImage: it is none of these, is damaged, has more pixels than Pillow's limit, or
            has grey levels of another kind.
    """
    if not data:
        raise UnreadableImage(name, "the file is empty")
    try:
        with warnings.catch_warnings(action="ignore"):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                picture.load()
                upright = _UPRIGHT.get(_orientation(picture))
                rgb = _rgb(picture)
    except UnidentifiedImageError as error:
        reason = f"it is no {', '.join(FORMATS)} picture, or its head is damaged"
        raise UnreadableImage(name, reason) from error
    except Exception as error:  # damaged and oversized files can raise anything
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UnreadableImage(name, reason) from error
    return rgb if upright is None else rgb.transpose(upright)


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata says nothing of the pixels, which are whole
        return 1


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _grey(picture).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def _grey(picture: Image.Image) -> Image.Image:
    """Grey levels of more than 8 bits as 8 bits; Pillow itself would clip them at 255."""
    levels = np.asarray(picture)
    tags = getattr(picture, "tag_v2", {})  # of TIFF: bits and what 0 means, which Pillow ignores
    if tags.get(258, (16,))[0] == 12 or tags.get(262, 1) == 0:
        raise ValueError("its grey levels are of 12 bits, or are 0 for white")
    top = 1 if picture.mode == "F" else 65535
    if not (levels.min() >= 0 and levels.max() <= top):  # so that NaN is refused
        raise ValueError(
            f"its grey levels go from {levels.min()} to {levels.max()}, not within 0 to {top}"
        )
    scaled = np.rint(levels * 255) if picture.mode == "F" else levels >> 8
    return Image.fromarray(scaled.astype(np.uint8))
