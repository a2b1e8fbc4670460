"""How a network takes pictures, against timm's own transforms."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

import tcnn
from tcnn.data_config import DataConfig
from tcnn.view import View

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def picture(width: int = 61, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def seeded(transform: Any, image: Image.Image) -> torch.Tensor:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    found: torch.Tensor = transform(image)
    return found


def test_evaluation_is_timms() -> None:
    model = timm.create_model("resnet18.a1_in1k", pretrained=False)
    view = View.of(model)
    settings = timm.data.resolve_data_config({}, model=model)
    assert view == View(
        settings["input_size"], settings["mean"], settings["std"], settings["interpolation"],
        settings["crop_pct"],
    )  # fmt: skip
    assert torch.equal(view.transform()(picture()), create_transform(**settings)(picture()))


def test_training_is_timms() -> None:
    config = DataConfig(
        scale=(0.3, 0.9), hflip=0.4, aa="rand-m9-mstd0.5-inc1", reprob=0.7, input_size=(3, 32, 32)
    )
    view = View.of(nn.Identity(), config)
    theirs = create_transform(
        (3, 32, 32), is_training=True, scale=(0.3, 0.9), hflip=0.4, color_jitter=None,
        auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.7, re_mode="pixel", mean=IMAGENET[0],
        std=IMAGENET[1], interpolation=view.interpolation,
    )  # fmt: skip
    ours = view.transform(config)
    for _ in range(5):
        assert torch.equal(seeded(ours, picture()), seeded(theirs, picture()))


def test_colours_jitter_alone_where_asked() -> None:
    view = View.of(nn.Identity(), DataConfig(input_size=(3, 32, 32)))
    names = {
        strength: repr(view.transform(DataConfig(color_jitter=strength))) for strength in (0.0, 0.4)
    }
    assert "ColorJitter" not in names[0.0]
    assert "ColorJitter" in names[0.4]


def test_a_shift_of_an_eighth() -> None:
    """Every crop of the mirrored picture by up to 2 pixels of 16, and no other."""
    config = DataConfig(
        crop="pad", hflip=0, input_size=(3, 16, 16), mean=(0,) * 3, std=(1,) * 3, crop_pct=1.0
    )
    view = View.of(nn.Identity(), config)
    image = picture(16, 16)
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    expected = {padded[y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(5)}
    transform = view.transform(config)
    found = set()
    for _ in range(300):
        pixels = transform(image).permute(1, 2, 0) * 255
        found.add(pixels.round().byte().contiguous().numpy().tobytes())
    assert found == expected


def test_no_crop_is_the_view_of_evaluation() -> None:
    config = DataConfig(crop="none", hflip=0, input_size=(3, 16, 16), crop_pct=0.8)
    view = View.of(nn.Identity(), config)
    assert torch.equal(view.transform(config)(picture()), view.transform()(picture()))


def test_settings_go_before_the_networks_own() -> None:
    model = tcnn.load_model("tcnn.networks:cifar_resnet", depth=8)
    assert View.of(model).input_size == (3, 32, 32)
    assert View.of(model).crop_pct == 1
    config = DataConfig(
        input_size=(3, 20, 24), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0),
        interpolation="bilinear", crop_pct=0.5,
    )  # fmt: skip
    view = View.of(model, config)
    assert view == View((3, 20, 24), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "bilinear", 0.5)
    assert view.transform()(picture()).shape == (3, 20, 24)
    assert view.transform(config)(picture()).shape == (3, 20, 24)
    x = torch.rand(2, 3, 4, 5)
    expected = torch.stack([(x[:, c] - config.mean[c]) / config.std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(view.normalize(x), expected)


@pytest.mark.parametrize("crop", ["rrc", "pad", "none"])
def test_grey(crop: str) -> None:
    model = tcnn.load_model("tcnn.networks:cifar_resnet", depth=8, in_channels=1)
    view = View.of(model)
    assert view.input_size == (1, 32, 32)
    assert view.mean == pytest.approx((np.mean(IMAGENET[0]),))
    assert view.std == pytest.approx((np.mean(IMAGENET[1]),))
    image = view.channels(picture(32, 32))
    expected = (np.asarray(picture(32, 32).convert("L")) / 255 - view.mean[0]) / view.std[0]
    torch.testing.assert_close(
        view.transform()(image)[0], torch.from_numpy(expected).float(), rtol=0, atol=1e-5
    )
    config = DataConfig(crop=crop, aa="rand-m9-mstd0.5-inc1", reprob=1.0)  # type: ignore[arg-type]
    transform = view.transform(config)
    for _ in range(60):  # each of RandAugment's operations must take a grey picture
        assert transform(image).shape == (1, 32, 32)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("aa", ["rand-m9-inc1", "rand-m9", "augmix-m5", "v0", "original", "3a"])
def test_augmentations_at_every_strength(aa: str, mode: str) -> None:
    """Whatever level is drawn, a picture comes out: posterizing goes down to 0 bits."""
    view = View.of(nn.Identity(), DataConfig(input_size=(3 if mode == "RGB" else 1, 16, 16)))
    augmentation = view.transform(DataConfig(aa=aa)).transforms[2]
    image = picture(16, 16).convert(mode)
    policies = [getattr(augmentation, "ops", []), *getattr(augmentation, "policy", [])]
    names = set()
    for operation in (operation for policy in policies for operation in policy):
        operation.prob = 1.0
        names.add(operation.name)
        for operation.magnitude in (0, 3, 10):
            assert operation(image).size == (16, 16)
    assert "Posterize" in " ".join(names) or aa == "3a"


def test_posterizing_to_no_bits_is_black() -> None:
    transform = View.of(nn.Identity()).transform(DataConfig(aa="rand-m10-inc1")).transforms[2]
    operation = next(o for o in transform.ops if o.name == "PosterizeIncreasing")
    operation.prob = 1.0
    assert not np.asarray(operation(picture(8, 8))).any()


def test_pixels_are_what_the_network_sees() -> None:
    view = View.of(nn.Identity(), DataConfig(input_size=(3, 24, 20)))
    pixels = view.in_pixels()(picture())
    assert pixels.shape == (3, 24, 20)
    assert pixels.dtype == torch.uint8
    x = pixels.float() / 255
    torch.testing.assert_close(view.normalize(x[None])[0], view.transform()(picture()))


def test_other_views_of_the_same_network() -> None:
    view = View.of(nn.Identity(), DataConfig(input_size=(3, 24, 20), mean=(0.1, 0.2, 0.3)))
    assert view.scaled(1.5).input_size == (3, 36, 30)
    assert view.scaled(0.01).input_size == (3, 1, 1)
    assert view.uncropped().crop_pct == 1
    other = View.of(nn.Identity(), DataConfig(input_size=(3, 24, 20), std=(0.5, 0.5, 0.5)))
    assert view != other
    assert view.in_pixels_alike() == other.in_pixels_alike()
    assert torch.equal(view.in_pixels()(picture()), other.in_pixels()(picture()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": (4, 8, 8)}, "1 or 3 channels for pictures, but it takes 4"),
        ({"mean": (0.5,)}, r"`mean` to have a number for each of 3 channels, but got \(0.5,\)"),
        ({"input_size": (1, 8, 8), "std": (0.5, 0.5)}, "`std`"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    if "std" in options:
        with pytest.raises(tcnn.TCNNError, match=message):
            View((1, 8, 8), (0.5,), options["std"], "bilinear", 1.0)
        return
    with pytest.raises(tcnn.TCNNError, match=message):
        View.of(nn.Identity(), DataConfig(**options))
