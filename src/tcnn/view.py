"""How a network takes pictures: size, statistics and crop, and timm's transforms for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tcnn.data_config import DataConfig, ImagesConfig
from tcnn.errors import TCNNError

_KINDS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class View:
    """How a network takes pictures.

    Attributes:
        input_size: (C, H, W), with 1 or 3 channels.
        mean, std: of each channel, for pixels in [0, 1].
        interpolation: of resizing.
        crop_pct: side of the centre crop by that of the resized image.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        if channels not in (1, 3):
            raise TCNNError(
                f"Expected a network on 1 or 3 channels for pictures, but it takes {channels}."
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise TCNNError(
                    f"Expected `{name}` to have a number for each of {channels} channels, but got "
                    f"{values}."
                )
        for name, holds, wanted in (
            ("input_size", min(self.input_size) >= 1, "1 or more"),
            ("std", all(value > 0 for value in self.std), "above 0"),
            ("crop_pct", self.crop_pct > 0, "above 0"),
            ("interpolation", self.interpolation in _KINDS, f"one of {', '.join(_KINDS)}"),
        ):
            if not holds:
                raise TCNNError(
                    f"Expected `{name}` to be {wanted}, but got {getattr(self, name)!r}."
                )

    @classmethod
    def of(cls, model: nn.Module, config: ImagesConfig | None = None) -> View:
        """As timm evaluates the network: by the configuration's settings, where it has any, then by
        the network's `pretrained_cfg`, then by ImageNet's. One channel has the mean of three."""
        from timm.data import resolve_data_config

        config = config or ImagesConfig()
        names = ("input_size", "mean", "std", "interpolation", "crop_pct")
        given = {name: getattr(config, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        found: dict[str, Any] = resolve_data_config({}, model=model) | given
        if found["input_size"][0] == 1:
            for name in ("mean", "std"):
                found[name] = (float(np.mean(found[name])),)
        return cls(
            tuple(found["input_size"]),
            tuple(found["mean"]),
            tuple(found["std"]),
            str(found["interpolation"]),
            float(found["crop_pct"]),
        )

    def normalize(self, pixels: Tensor) -> Tensor:
        """(x - mean) / std of pixels in [0, 1], (B, C, H, W)."""
        mean, std = (
            torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (pixels - mean) / std

    def transform(self, config: DataConfig | None = None) -> Any:
        """timm's transform of an RGB picture to a network's input (C, H, W).

        Args:
            config: augment as it says, for training; None is the view of evaluation.
        """
        return self._composed(config, normalize=True)

    def in_pixels(self) -> Any:
        """timm's transform of an RGB picture as in evaluation, but for normalising: to (C, H, W) of
        uint8."""
        return self._composed(None, normalize=False)

    def scaled(self, scale: float) -> View:
        """The same with sides `scale` times as long, to whole pixels."""
        channels, height, width = self.input_size
        sides = (max(1, round(scale * height)), max(1, round(scale * width)))
        return replace(self, input_size=(channels, *sides))

    def uncropped(self) -> View:
        """The same, of the whole picture."""
        return replace(self, crop_pct=1.0)

    def in_pixels_alike(self) -> View:
        """One view for all those that show the same pixels."""
        channels = self.input_size[0]
        return replace(self, mean=(0.0,) * channels, std=(1.0,) * channels)

    def channels(self, picture: Image.Image) -> Image.Image:
        """The picture with as many channels as the network takes."""
        return picture.convert("L") if self.input_size[0] == 1 else picture

    def _composed(self, config: DataConfig | None, normalize: bool) -> Any:
        from timm.data import create_transform
        from torchvision import transforms

        common: dict[str, Any] = {
            "input_size": self.input_size,
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
            "normalize": normalize,
        }
        if config is None:
            return create_transform(**common, crop_pct=self.crop_pct)
        composed = create_transform(
            **common,
            is_training=True,
            scale=config.scale,
            hflip=config.hflip,
            color_jitter=config.color_jitter or None,
            auto_augment=config.aa,
            re_prob=config.reprob,
            re_mode="pixel",
        )
        if config.crop != "rrc":  # as timm's recipes for CIFAR
            side = min(self.input_size[1:])
            resize = create_transform(**common, crop_pct=self.crop_pct).transforms[:2]
            shift = transforms.RandomCrop(self.input_size[1:], side // 8, padding_mode="reflect")
            composed.transforms[:1] = [*resize, *([shift] if config.crop == "pad" else [])]
        _mend_posterize(composed)
        return composed


def _mend_posterize(composed: Any) -> None:
    """Let timm's augmentations ask for a picture of 0 bits, as TensorFlow's strongest setting does:
    Pillow from 13 on raises ValueError, and training would end at a random picture."""
    from timm.data import auto_augment

    for step in composed.transforms:
        policies = [getattr(step, "ops", []), *getattr(step, "policy", [])]
        for operation in (operation for policy in policies for operation in policy):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize


def _posterize(picture: Image.Image, bits: int, **kwargs: Any) -> Image.Image:
    """The picture with the `bits` highest bits of each channel: black with none."""
    from timm.data import auto_augment

    if bits < 1:
        return Image.new(picture.mode, picture.size)
    posterized: Image.Image = auto_augment.posterize(picture, bits, **kwargs)
    return posterized
