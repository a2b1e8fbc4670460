"""Corruptions against a reference, loops over pixels, hand-computed values and statistics."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import skimage.util
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_corruptions import LegacyRandomness, reference
from tcnn.corruptions import (
    CORRUPTIONS,
    EXTRA,
    SEVERITIES,
    STANDARD,
    corrupt,
    corrupt_all,
    image_rng,
)

RNG = np.random.default_rng


def noise_image(*shape: int) -> np.ndarray:
    return RNG(0).integers(0, 256, shape, dtype=np.uint8)


# Severities to set side by side where the reference itself does not grow at every step.
PAIRS = {
    "glass_blur": ((1, 3), (2, 3), (4, 5)),
    "snow": ((1, 2), (3, 4), (4, 5)),
    "frost": ((1, 2), (2, 3)),
    "fog": ((1, 2), (1, 5)),
    "spatter": ((1, 2), (2, 3), (4, 5)),
    "saturate": ((1, 2), (3, 4)),
}


def natural_image(height: int, width: int) -> np.ndarray:
    """Smooth colours, edges of all kinds, black, white and grey areas, and a little grain."""
    y, x = np.mgrid[:height, :width] / min(height, width)
    wave = [0.5 + 0.3 * np.sin(7 * x + 3 * y + p) * np.cos(5 * y - p) for p in (0, 0.7, 1.9)]
    image = np.stack(wave, axis=2)
    image[(x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.06] = (0.9, 0.25, 0.1)
    image[(x > 0.6) & (y > 0.7)] *= 0.2
    image += 0.02 * RNG(0).standard_normal(image.shape)
    for top, shade in ((0.0, 0), (0.1, 0.5), (0.2, 1)):
        image[(x < 0.15) & (y >= top) & (y < top + 0.1)] = shade
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


# Frost is made of other pictures here, and impulse noise of another generator there.
COMPARED = tuple(name for name in CORRUPTIONS if name not in ("frost", "impulse_noise"))


def largest_difference(name: str, severity: int, height: int, width: int) -> int:
    """In grey levels, over all pixels, but for what the reference loses of a flat area.

    Where float64 leaves a little less than a whole level the reference rounds down to the one
    below, and glass blur rounds twice: 255 can become 253. Flat areas stay flat here.
    """
    image = natural_image(height, width)
    seed = 100 * severity + height
    np.random.seed(seed)
    expected = reference(image, name, severity)
    result = corrupt(image, name, severity, LegacyRandomness(seed))  # type: ignore[arg-type]
    difference = np.abs(result.astype(int) - expected)
    if name == "glass_blur":
        difference[(result == image) & (difference == 2)] = 0
    return int(difference.max())


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", COMPARED)
def test_equals_the_reference(name: str, severity: int) -> None:
    for height, width in ((32, 32), (64, 64), (48, 70), (70, 33)):
        assert largest_difference(name, severity, height, width) <= 1, (height, width)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", COMPARED)
def test_equals_the_reference_at_224(name: str, severity: int) -> None:
    assert largest_difference(name, severity, 224, 224) <= 1


def test_noise_and_what_takes_no_arithmetic_equal_the_reference_exactly() -> None:
    exact = ("gaussian_noise", "shot_noise", "speckle_noise", "pixelate", "jpeg_compression")
    for name in exact:
        assert largest_difference(name, 3, 64, 64) == 0, name


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_equals_that_of_skimage(severity: int) -> None:
    image = natural_image(40, 60)
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    expected = skimage.util.random_noise(image / 255, mode="s&p", amount=share, rng=RNG(severity))
    result = corrupt(image, "impulse_noise", severity, RNG(severity))
    assert (result == (expected * 255).astype(np.uint8)).all()


def test_names_are_those_of_imagenet_c() -> None:
    assert (len(STANDARD), len(EXTRA), len(set(CORRUPTIONS))) == (15, 4, 19)
    assert CORRUPTIONS == STANDARD + EXTRA
    assert STANDARD[:4] == ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur")
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")


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
    image = natural_image(96, 96)
    changes = [
        np.mean([np.abs(corrupt(image, name, s, RNG(i)).astype(float) - image) for i in range(5)])
        for s in SEVERITIES
    ]
    assert changes[0] > 0
    for milder, severity in PAIRS.get(name, tuple(pairwise(SEVERITIES))):
        assert changes[milder - 1] < changes[severity - 1], (milder, severity)


@given(
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    channels=st.sampled_from([None, 1, 3]),
    name=st.sampled_from(CORRUPTIONS),
    severity=st.sampled_from(SEVERITIES),
    shade=st.sampled_from([None, 0, 1, 128, 255]),
)
@settings(max_examples=300, deadline=None)
def test_any_image_of_8_pixels_or_more(
    height: int, width: int, channels: int | None, name: str, severity: int, shade: int | None
) -> None:
    shape = (height, width) if channels is None else (height, width, channels)
    image = noise_image(*shape) if shade is None else np.full(shape, shade, np.uint8)
    before = image.copy()
    result = corrupt(image, name, severity, RNG(1))
    assert result.shape == shape
    assert result.dtype == np.uint8
    assert (image == before).all()
    assert not np.shares_memory(result, image)


def test_a_view_is_corrupted_as_its_copy() -> None:
    image = noise_image(40, 40, 3)
    for name in CORRUPTIONS:
        for view in (image[::2, ::-1], image.transpose(1, 0, 2), image[..., ::-1]):
            copy = np.ascontiguousarray(view)
            assert (corrupt(view, name, 3, RNG(0)) == corrupt(copy, name, 3, RNG(0))).all()


def test_a_flat_image_stays_flat_where_pixels_only_move() -> None:
    moving = ("glass_blur", "zoom_blur", "elastic_transform", "pixelate", "gaussian_blur")
    for shade in range(0, 256, 15):
        image = np.full((40, 33, 3), shade, np.uint8)
        for name in (*moving, "motion_blur", "defocus_blur"):
            assert (corrupt(image, name, 2, RNG(0)) == shade).all(), (name, shade)


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


@pytest.mark.parametrize("channels", [1, 3])
def test_glass_blur_takes_pixels_one_after_the_other(channels: int) -> None:
    image = natural_image(21, 17)[..., :channels]
    sigma, reach, rounds = 1.0, 2, 3
    rng = RNG(5)
    y = np.floor(blurred(image, sigma) + 1e-3)
    for _ in range(rounds):
        for row in range(21 - reach, reach, -1):
            for column in range(17 - reach, reach, -1):
                dx, dy = rng.integers(-reach, reach, size=2)
                y[row, column] = y[row + dy, column + dx]
    result = corrupt(image, "glass_blur", 3, RNG(5))
    assert np.abs(result - blurred(y, sigma)).max() <= 1


def blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian out to 4 deviations, row by row and column by column, the border repeated."""
    reach = int(4 * sigma + 0.5)
    weights = [math.exp(-t * t / (2 * sigma**2)) for t in range(-reach, reach + 1)]
    y = x.astype(float)
    for axis in (0, 1):
        index = np.arange(y.shape[axis])
        y = sum(
            w / sum(weights) * y.take(np.clip(index + t, 0, len(index) - 1), axis)
            for t, w in zip(range(-reach, reach + 1), weights, strict=True)
        )
    return y


def test_motion_blur_of_small_images_loses_no_more_light_than_at_32_pixels() -> None:
    def least(side: int) -> int:
        flat = np.full((side, side), 200, np.uint8)
        return min(int(corrupt(flat, "motion_blur", 5, RNG(i)).min()) for i in range(40))

    assert least(64) == 200
    # Moves by 32 pixels and more are lost: 9 of 41, of the half Gaussian of deviation 15.
    weights = [math.exp(-i * i / (2 * 15**2)) for i in range(41)]
    assert least(32) >= 200 * sum(weights[:32]) / sum(weights) - 1
    assert least(8) >= least(32) - 1


def test_frost_is_bright_blue_and_new_each_time() -> None:
    black = np.zeros((224, 224, 3), np.uint8)
    results = [corrupt(black, "frost", 1, RNG(i)).astype(float) / 0.4 for i in range(8)]
    red, green, blue = np.mean(results, axis=(0, 1, 2))
    assert (red, green, blue) == pytest.approx((146, 167, 179), abs=4)
    assert 25 < np.std(results, axis=(1, 2)).mean() < 40
    assert abs(np.corrcoef(results[0].ravel(), results[1].ravel())[0, 1]) < 0.6
    for result in results:  # fine lines, not a haze
        assert np.abs(np.diff(result[..., 0], axis=0)).mean() > 3


def test_water_that_nothing_is_left_of_leaves_the_image() -> None:
    image = natural_image(8, 8)
    results = [corrupt(image, "spatter", 1, RNG(i)) for i in range(40)]
    assert any((result == image).all() for result in results)


def test_saturate_by_hand() -> None:
    image = np.array([[[200, 100, 150], [90, 90, 90], [0, 0, 0]]], np.uint8)
    # S = .5 becomes .15, so the least channel becomes 200 (1 - .15), and so on.
    assert corrupt(image, "saturate", 1, RNG(0)).tolist() == [
        [[200, 170, 185], [90, 90, 90], [0, 0, 0]]
    ]
    # S becomes 1; grey counts as red of S = .2.
    assert corrupt(image, "saturate", 5, RNG(0)).tolist() == [
        [[200, 0, 100], [90, 72, 72], [0, 0, 0]]
    ]
    grey = noise_image(5, 4)
    assert (corrupt(grey, "saturate", 5, RNG(0)) == grey).all()


def test_contrast_by_hand() -> None:
    image = np.array([[0, 100], [205, 100]], np.uint8)  # mean 101.25
    # 0 · .4 + 101.25 · .6 = 60.75, rounded down, and so on
    assert corrupt(image, "contrast", 1, RNG(0)).tolist() == [[60, 100], [142, 100]]
    assert corrupt(image, "contrast", 4, RNG(0)).tolist() == [[91, 101], [111, 101]]
    three = np.stack([image, 255 - image, image], axis=2)  # each channel has its own mean
    assert corrupt(three, "contrast", 1, RNG(0))[..., 0].tolist() == [[60, 100], [142, 100]]
    assert corrupt(three, "contrast", 1, RNG(0))[..., 1].tolist() == [[194, 154], [112, 154]]


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


def test_the_generator_of_one_image_is_that_of_the_set() -> None:
    images = noise_image(3, 16, 16, 3)
    for name in CORRUPTIONS:
        result = corrupt_all(images, name, 3, seed=7)
        alone = corrupt(images[2], name, 3, image_rng(7, name, 3, 2))
        assert (result[2] == alone).all(), name
    assert image_rng(7, "fog", 3, 2).random() == RNG([7, 2192108819, 3, 2]).random()
    assert corrupt_all(images[:0], "fog", 3, seed=7).shape == (0, 16, 16, 3)


def test_errors_say_what_was_expected() -> None:
    image = noise_image(8, 8)
    with pytest.raises(ValueError, match=r"one of \('gaussian_noise'.*but got 'rain'"):
        corrupt(image, "rain", 1, RNG(0))
    with pytest.raises(ValueError, match="1, 2, 3, 4 or 5, but got 6"):
        corrupt(image, "contrast", 6, RNG(0))
    with pytest.raises(ValueError, match="but got float64"):
        corrupt(image / 255, "contrast", 1, RNG(0))
    with pytest.raises(ValueError, match=r"\(H, W, 3\), but got uint8 \(8, 8, 4\)"):
        corrupt(noise_image(8, 8, 4), "contrast", 1, RNG(0))
    with pytest.raises(ValueError, match=r"at least 8 pixels a side for fog, but got \(8, 7\)"):
        corrupt(noise_image(8, 7), "fog", 1, RNG(0))
