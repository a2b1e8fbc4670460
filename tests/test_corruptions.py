"""Corruptions against loops over pixels, hand-computed values and statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tcnn.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corrupt_all

RNG = np.random.default_rng


def noise_image(*shape: int) -> np.ndarray:
    return RNG(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(16, 11), (16, 11, 1), (16, 11, 3)])
def test_shape_type_and_input_untouched(name: str, shape: tuple[int, ...]) -> None:
    image = noise_image(*shape)
    before = image.copy()
    result = corrupt(image, name, 3, RNG(1))
    assert result.shape == shape
    assert result.dtype == np.uint8
    assert (image == before).all()
    assert (corrupt(image, name, 3, RNG(1)) == result).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_grey_image_is_one_of_one_channel(name: str) -> None:
    image = noise_image(9, 9)
    one_channel = corrupt(image[..., None], name, 2, RNG(0))
    assert (corrupt(image, name, 2, RNG(0)) == one_channel[..., 0]).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_grows(name: str) -> None:
    y, x = np.mgrid[:32, :32]
    image = (127 + 100 * np.sin(x / 3) * np.cos(y / 4)).astype(np.uint8)
    changes = [
        np.abs(corrupt(image, name, s, RNG(0)).astype(float) - image).mean() for s in SEVERITIES
    ]
    assert changes == sorted(changes)
    assert changes[0] > 0


def test_gaussian_noise_has_its_deviation() -> None:
    grey = np.full((200, 200), 128, np.uint8)
    for severity, c in ((1, 0.08), (2, 0.12)):
        result = corrupt(grey, "gaussian_noise", severity, RNG(0)) / 255
        assert result.std() == pytest.approx(c, rel=0.02)
        assert result.mean() == pytest.approx(128 / 255 - 0.5 / 255, abs=0.002)


def test_impulse_noise_has_its_rates() -> None:
    grey = np.full((200, 200, 3), 100, np.uint8)
    for severity, c in zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        result = corrupt(grey, "impulse_noise", severity, RNG(severity))
        assert set(np.unique(result)) == {0, 100, 255}
        assert (result != 100).mean() == pytest.approx(c, rel=0.05)
        assert (result == 255).sum() == pytest.approx((result == 0).sum(), rel=0.1)
    assert (result[..., 0] != result[..., 1]).any()  # each channel by itself


def test_contrast_by_hand() -> None:
    image = np.array([[0, 100], [205, 100]], np.uint8)  # mean 101.25
    # 0 · .4 + 101.25 · .6 = 60.75, rounded down, and so on
    assert corrupt(image, "contrast", 1, RNG(0)).tolist() == [[60, 100], [142, 100]]
    assert corrupt(image, "contrast", 4, RNG(0)).tolist() == [[91, 101], [111, 101]]
    two = np.stack([image, 255 - image], axis=2)  # each channel has its own mean
    assert corrupt(two, "contrast", 1, RNG(0))[..., 0].tolist() == [[60, 100], [142, 100]]
    assert corrupt(two, "contrast", 1, RNG(0))[..., 1].tolist() == [[194, 154], [112, 154]]


def test_brightness_against_hsv() -> None:
    import colorsys

    image = noise_image(7, 5, 3)
    image[0, 0] = 0
    image[0, 1] = 255
    for severity, c in zip(SEVERITIES, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        result = corrupt(image, "brightness", severity, RNG(0))
        for y in range(7):
            for x in range(5):
                h, s, v = colorsys.rgb_to_hsv(*image[y, x] / 255)
                expected = np.array(colorsys.hsv_to_rgb(h, s, min(1, v + c))) * 255
                assert np.abs(result[y, x] - expected).max() <= 1


def disk(radius: int, sigma: float) -> dict[tuple[int, int], float]:
    """The softened disk pixel by pixel, mirrored at the edge of its grid."""
    reach, taps = (8, 1) if radius <= 8 else (radius, 2)
    span = range(-reach, reach + 1)
    inside = {(y, x): float(y * y + x * x <= radius * radius) for y in span for x in span}
    total = sum(inside.values())
    gauss = {t: math.exp(-t * t / (2 * sigma**2)) for t in range(-taps, taps + 1)}
    norm = sum(gauss.values())

    def mirror(i: int) -> int:
        return i if abs(i) <= reach else int(math.copysign(2 * reach - abs(i), i))

    return {
        (y, x): sum(
            gauss[i] * gauss[j] / norm**2 * inside[mirror(y + i), mirror(x + j)] / total
            for i in gauss
            for j in gauss
        )
        for y in span
        for x in span
    }


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur_of_a_point_is_the_disk(severity: int) -> None:
    radius, sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    # Radii around 10 leave less than 1/255 of a single point, so 16 of them are summed.
    image = np.zeros((45, 45), np.uint8)
    image[20:24, 20:24] = 255
    result = corrupt(image, "defocus_blur", severity, RNG(0))
    kernel = disk(radius, sigma)
    for y in range(5, 40, 3):
        for x in range(5, 40):
            expected = 255 * sum(
                kernel.get((y - v, x - u), 0.0) for v in range(20, 24) for u in range(20, 24)
            )
            assert result[y, x] == math.floor(expected + 1e-9), (y, x)


def test_defocus_blur_mirrors_the_border() -> None:
    flat = np.full((12, 12), 200, np.uint8)
    result = corrupt(flat, "defocus_blur", 1, RNG(0))
    assert np.abs(result.astype(int) - 200).max() <= 1


def test_each_image_has_randomness_of_its_own() -> None:
    images = np.full((3, 8, 8, 1), 128, np.uint8)
    result = corrupt_all(images, "gaussian_noise", 2, seed=7)
    assert (result[0] != result[1]).any()
    assert (corrupt_all(images[:2], "gaussian_noise", 2, seed=7) == result[:2]).all()
    assert (corrupt_all(images, "gaussian_noise", 2, seed=8) != result).any()
    # Another severity is other noise, not the same noise made larger.
    one, two = (corrupt_all(images, "gaussian_noise", s, 7).astype(float) - 128 for s in (1, 2))
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.3


def test_errors_say_what_was_expected() -> None:
    image = noise_image(8, 8)
    with pytest.raises(ValueError, match=r"one of \('gaussian_noise'.*but got 'fog'"):
        corrupt(image, "fog", 1, RNG(0))
    with pytest.raises(ValueError, match="1, 2, 3, 4 or 5, but got 6"):
        corrupt(image, "contrast", 6, RNG(0))
    with pytest.raises(ValueError, match="but got float64"):
        corrupt(image / 255, "contrast", 1, RNG(0))
