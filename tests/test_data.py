"""Digits and splits."""

from __future__ import annotations

import numpy as np
import pytest

from tcnn.data import ArrayImages, ImageSet, digits, split


def tiny(n: int = 40, classes: int = 4) -> ImageSet:
    """Images whose pixels are their index, so that an image can be told from any other."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 6, 5, 1)).copy()
    return ImageSet(images, np.arange(n) % classes, tuple("abcdefgh"[:classes]))


@pytest.fixture(scope="module")
def all_digits() -> ImageSet:
    return digits(32)


def test_digits_are_scikit_learns(all_digits: ImageSet) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert all_digits.images.shape == (1797, 32, 32, 1)
    assert all_digits.classes == tuple("0123456789")
    assert (all_digits.labels == bunch.target).all()
    # Averaged over its 4×4 pixels, a cell is about the original pixel (bicubic overshoot is cut).
    means = all_digits.images[..., 0].reshape(1797, 8, 4, 8, 4).mean(axis=(2, 4)) * 16 / 255
    assert np.corrcoef(means.ravel(), bunch.images.ravel())[0, 1] > 0.98
    assert (digits(8).images[..., 0] == np.rint(bunch.images * 255 / 16)).all()


def test_split_is_stratified_disjoint_and_fixed(all_digits: ImageSet) -> None:
    parts = split(all_digits, seed=3)
    sets = (parts.train, parts.validation, parts.test)
    assert [len(s) for s in sets] == [1079, 359, 359]
    for label in range(10):
        n = (all_digits.labels == label).sum()
        for part, share in zip(sets, (0.6, 0.2, 0.2), strict=True):
            assert abs((part.labels == label).sum() - share * n) <= 1
    again, other = split(all_digits, seed=3), split(all_digits, seed=4)
    assert (again.test.images == parts.test.images).all()
    assert (other.test.images != parts.test.images).any()


def test_split_loses_and_repeats_no_image() -> None:
    parts = split(tiny(), seed=0)
    found = [i for s in (parts.train, parts.validation, parts.test) for i in s.images[:, 0, 0, 0]]
    assert sorted(found) == list(range(40))


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.0, 0.2), (0.2, -0.1)])
def test_shares_that_leave_nothing(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="sum below 1"):
        split(tiny(), 0, validation, test)


def test_tensors() -> None:
    images = ImageSet(np.array([[[[0, 255, 51]]]], dtype=np.uint8), np.array([1]), ("a", "b"))
    pixels, labels = images.tensors()
    assert pixels.shape == (1, 3, 1, 1)
    assert pixels.flatten().tolist() == pytest.approx([0, 1, 0.2])
    assert labels.tolist() == [1]


def test_bad_sets_are_refused() -> None:
    good = tiny()
    with pytest.raises(ValueError, match="uint8"):
        ImageSet(good.images.astype(np.float32), good.labels, good.classes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"int64 \(40,\)"):
        ImageSet(good.images, good.labels[:3], good.classes)
    with pytest.raises(ValueError, match="from 0 to 2, but got 0 to 3"):
        ImageSet(good.images, good.labels, ("a", "b", "c"))


def test_images_one_by_one() -> None:
    images = ArrayImages(tiny(), "tiny")
    assert (len(images), images.classes) == (40, tuple("abcd"))
    assert images.name(3) == "tiny 3"
    picture = images.read(3)
    assert (picture.mode, picture.size) == ("RGB", (5, 6))
    assert (np.asarray(picture) == 3).all()
