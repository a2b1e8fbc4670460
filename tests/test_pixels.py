"""Images in pixels: what changes do to patches, and that nothing of them hangs on who reads."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from tcnn.corruptions import CORRUPTIONS
from tcnn.data import ArrayImages, ImageSet
from tcnn.data_config import ImagesConfig
from tcnn.decoding import UnreadableImage
from tcnn.errors import TCNNError
from tcnn.evaluate_config import InferenceConfig
from tcnn.pixels import Change, Corrupted, Occluded, PixelImages, Shuffled, as_listed
from tcnn.processes import make_fabric
from tcnn.scoring import Score, score
from tcnn.suites import corrupted
from tcnn.view import View

VIEW = View((3, 16, 16), (0.0,) * 3, (1.0,) * 3, "bilinear", 1.0)


def noise(*shape: int) -> npt.NDArray[np.uint8]:
    """Without a black pixel, so that what was made black can be told."""
    return np.random.default_rng(0).integers(1, 256, shape).astype(np.uint8)


def patches(image: npt.NDArray[np.uint8], height: int, width: int) -> list[bytes]:
    """All patches of a size, row by row, each as its bytes."""
    rows, columns = image.shape[0] // height, image.shape[1] // width
    return [
        image[y * height : (y + 1) * height, x * width : (x + 1) * width].tobytes()
        for y in range(rows)
        for x in range(columns)
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("grid", "height", "width"), [(2, 8, 8), (4, 13, 18), (8, 8, 24)])
def test_shuffling_moves_whole_patches(channels: int, grid: int, height: int, width: int) -> None:
    image = noise(height, width, channels)
    before = image.copy()
    result = Shuffled(grid, seed=0)(image, 3)
    h, w = height // grid, width // grid
    area, rest = result[: grid * h, : grid * w], result.copy()
    assert Counter(patches(area, h, w)) == Counter(patches(image[: grid * h, : grid * w], h, w))
    assert patches(area, h, w) != patches(image[: grid * h, : grid * w], h, w)
    rest[: grid * h, : grid * w] = image[: grid * h, : grid * w]
    np.testing.assert_array_equal(rest, image)  # rows and columns that are left over
    np.testing.assert_array_equal(image, before)


def test_every_order_of_patches_is_as_likely() -> None:
    """24 orders of 2×2 patches, 100 each expected of 2,400 images: within 5 deviations."""
    image = np.arange(1, 5, dtype=np.uint8).reshape(2, 2, 1)
    orders = Counter(Shuffled(2, seed=0)(image, index).tobytes() for index in range(2400))
    assert len(orders) == 24
    assert max(abs(count - 100) for count in orders.values()) < 50


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("share", "grid", "black"), [(0.25, 2, 1), (0.5, 4, 8), (0.3, 4, 5), (0.75, 8, 48)]
)
def test_occlusion_blackens_a_share_of_the_patches(
    channels: int, share: float, grid: int, black: int
) -> None:
    image = noise(16, 24, channels)
    result = Occluded(share, grid, seed=0)(image, 5)
    pairs = list(
        zip(
            patches(image, 16 // grid, 24 // grid),
            patches(result, 16 // grid, 24 // grid),
            strict=True,
        )
    )
    assert result.dtype == np.uint8
    assert sum(not any(after) for _, after in pairs) == black
    assert all(after == before or not any(after) for before, after in pairs)


def test_occluded_patches_are_anywhere() -> None:
    """Each of 4×4 patches is dropped in half of 400 images: 200 times, within 5 deviations."""
    image = np.full((4, 4, 1), 9, np.uint8)
    kept = sum((Occluded(0.5, 4, seed=0)(image, i) > 0).astype(int) for i in range(400))
    assert np.abs(kept - 200).max() < 50


def test_patches_of_sides_that_the_grid_does_not_divide() -> None:
    """Occlusion: every pixel is in a patch; sides differ by one pixel at most."""
    image = noise(10, 7, 3)
    result = Occluded(0.5, 3, seed=0)(image, 0)
    black = (result == 0).all(-1)
    rows, columns = [0, 4, 7, 10], [0, 3, 5, 7]  # smallest y with 3 y // 10 = 1, 2; likewise x
    found = 0
    for y0, y1 in pairwise(rows):
        for x0, x1 in pairwise(columns):
            patch = black[y0:y1, x0:x1]
            assert patch.all() or not patch.any()
            found += bool(patch.all())
    assert found == 4  # round(0.5 · 9): half to even


CHANGES: dict[str, Any] = {
    "shuffled": lambda seed: Shuffled(4, seed),
    "occluded": lambda seed: Occluded(0.5, 4, seed),
    "corrupted": lambda seed: Corrupted("gaussian_noise", 3, seed),
}


@pytest.mark.parametrize("name", CHANGES)
def test_randomness_follows_from_seed_and_place(name: str) -> None:
    image = noise(16, 16, 3)
    made: list[Change] = [CHANGES[name](0), CHANGES[name](0), CHANGES[name](1)]
    first = [made[0](image, index) for index in range(6)]
    again = [made[1](image, index) for index in reversed(range(6))][::-1]
    other = [made[2](image, index) for index in range(6)]
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    assert len({a.tobytes() for a in first}) == 6


def test_patches_that_are_smaller_than_a_pixel_are_refused() -> None:
    for change in (Shuffled(32, 0), Occluded(0.5, 32, 0)):
        with pytest.raises(TCNNError, match=r"32 pixels a side or more for 32×32 patches, but got"):
            PixelImages(array(), VIEW, change)
    with pytest.raises(TCNNError, match=r"at least 8 pixels a side for fog, but got \(4, 4, 3\)"):
        small = View((3, 4, 4), (0.0,) * 3, (1.0,) * 3, "bilinear", 1.0)
        PixelImages(array(), small, Corrupted("fog", 1, 0))


class Holed(ArrayImages):
    """One cannot be read."""

    def read(self, index: int) -> Any:
        if index == 2:
            raise UnreadableImage(self.name(index), "a hole")
        return super().read(index)


def array(n: int = 5) -> ArrayImages:
    pixels = noise(n, 16, 16, 3)
    return Holed(ImageSet(pixels, np.arange(n) % 2, ("a", "b")), "picture")


def test_what_is_shown_of_an_image() -> None:
    shown = [PixelImages(array(), VIEW, None)[index] for index in range(5)]
    assert as_listed(shown) == shown
    for index, (image, pixels) in enumerate(zip(shown, noise(5, 16, 16, 3), strict=True)):
        assert (image.place, image.label) == (index, index % 2)
        if index == 2:
            assert image.pixels is None
            assert image.unread == ("picture 2", "a hole")
            continue
        assert image.pixels is not None and image.unread is None
        assert image.pixels.dtype == torch.uint8
        expected = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        np.testing.assert_array_equal(image.pixels.numpy(), expected)
        assert image.checksum == zlib.crc32(expected.tobytes())


def test_a_change_is_made_to_what_the_network_sees() -> None:
    """Cropped and resized first: 16×16 become 8×8, then patches move."""
    view = View((3, 8, 8), (0.0,) * 3, (1.0,) * 3, "bilinear", 1.0)
    plain = PixelImages(array(), view, None)[1].pixels
    changed = PixelImages(array(), view, Shuffled(2, 7))[1]
    assert plain is not None and changed.pixels is not None
    expected = Shuffled(2, 7)(plain.permute(1, 2, 0).numpy(), 1).transpose(2, 0, 1)
    np.testing.assert_array_equal(changed.pixels.numpy(), expected)
    assert changed.checksum == zlib.crc32(np.ascontiguousarray(expected).tobytes())


def test_grey_networks_are_shown_grey() -> None:
    view = View((1, 16, 16), (0.5,), (0.5,), "bilinear", 1.0)
    for change in (None, Shuffled(2, 0), Occluded(0.5, 2, 0), Corrupted("spatter", 1, 0)):
        shown = PixelImages(array(), view, change)[0]
        assert shown.pixels is not None and shown.pixels.shape == (1, 16, 16)


class Flat(nn.Module):
    """Two scores of each image, of its own pixels alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_equal_pixels_for_any_number_of_workers_and_in_every_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All 19 corruptions, read here, by one process and by four, and all again."""
    images = ArrayImages(ImageSet(noise(5, 16, 16, 3), np.arange(5) % 2, ("a", "b")), "noise")
    config = InferenceConfig(accelerator="cpu", batch_size=1)
    fabric = make_fabric(config)

    def run(workers: int, seed: int) -> dict[str, Score]:
        """All at severity 3 in one sweep, for processes take long to start."""
        part = corrupted(many, CORRUPTIONS[:1], [3], seed)[0]
        part = replace(part, change=Each(seed))
        data = ImagesConfig(workers=workers)
        return score({"": (Flat(), VIEW)}, part, data, config, fabric)

    many = Repeated(images, len(CORRUPTIONS))
    runs = [run(workers, 0)[""] for workers in (0, 1, 4, 0)]
    with capsys.disabled():
        print(f"\nworkers 0, 1, 4, 0: pixels {[found.pixels for found in runs]}")
    assert len({found.pixels for found in runs}) == 1
    for found in runs[1:]:
        assert torch.equal(found.checksums, runs[0].checksums)
        assert torch.equal(found.result.confidence, runs[0].result.confidence)
    expected = [
        zlib.crc32(
            np.ascontiguousarray(Corrupted(name, 3, 0)(image, place).transpose(2, 0, 1)).tobytes()
        )
        for name in CORRUPTIONS
        for place, image in enumerate(noise(5, 16, 16, 3))
    ]
    assert runs[0].checksums.tolist() == expected
    other = run(0, 1)[""]
    assert other.pixels != runs[0].pixels
    same = (other.checksums == runs[0].checksums).view(len(CORRUPTIONS), 5).all(dim=1)
    certain = {name for name, alike in zip(CORRUPTIONS, same.tolist(), strict=True) if alike}
    without = {"defocus_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    assert certain == without | {"zoom_blur", "gaussian_blur", "saturate"}


class Repeated(ArrayImages):
    """The same images several times over."""

    def __init__(self, images: ArrayImages, times: int) -> None:
        pixels = np.tile(images._pixels, (times, 1, 1, 1))
        labels = np.tile(images.labels, times)
        super().__init__(ImageSet(pixels, labels, images.classes), "noise")


class Each:
    """Five images of each corruption in turn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, image: npt.NDArray[np.uint8], index: int) -> npt.NDArray[np.uint8]:
        return Corrupted(CORRUPTIONS[index // 5], 3, self.seed)(image, index % 5)
