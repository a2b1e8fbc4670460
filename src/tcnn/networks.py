"""Residual networks for small images: those of He et al. 2016, and timm's without max pooling."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class _Shortcut(nn.Module):
    """Option A of He et al.: every second pixel, and new channels of zeros on both sides."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.pad = (new_channels // 2, new_channels - new_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.pad))


class _Block(nn.Module):
    """Two 3×3 convolutions around a shortcut without parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        changes = stride > 1 or in_channels != channels
        self.shortcut = _Shortcut(stride, channels - in_channels) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """Residual network for images of about 32×32 pixels (He et al. 2016, arXiv 1512.03385, §4.2).

    Args:
        depth: 6n + 2 layers: 20, 32, 44, 56, …; n blocks in each of three stages.
        num_classes: width of the output.
        in_channels: channels of the images.
        widths: channels of the three stages; the second and third halve the grid.

    Raises:
        ValueError: the depth is not 6n + 2.
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: tuple[int, int, int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"Expected `depth` to be 6n + 2 (8, 14, 20, …), but got {depth}.")
        self.num_classes = num_classes
        # As timm's networks carry it: the images that the published weights were trained on.
        self.pretrained_cfg = {
            "input_size": (in_channels, 32, 32),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "crop_pct": 1.0,
        }
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], blocks, stride=1)
        self.layer2 = self._stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = self._stage(widths[1], widths[2], blocks, stride=2)
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [_Block(channels, channels, 1) for _ in range(blocks - 1)]
        return nn.Sequential(_Block(in_channels, channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def cifar_resnet(**settings: Any) -> CifarResNet:
    """A `CifarResNet` of any depth and width."""
    return CifarResNet(**settings)


def cifar_resnet20(**settings: Any) -> CifarResNet:
    """ResNet-20 for CIFAR-10."""
    return CifarResNet(depth=20, **settings)


def cifar_resnet32(**settings: Any) -> CifarResNet:
    """ResNet-32 for CIFAR-10."""
    return CifarResNet(depth=32, **settings)


def cifar_resnet56(**settings: Any) -> CifarResNet:
    """ResNet-56 for CIFAR-10."""
    return CifarResNet(depth=56, **settings)


def small_image_resnet18(
    num_classes: int = 50, channels: tuple[int, ...] = (64, 128, 256, 512), **settings: Any
) -> nn.Module:
    """timm's ResNet-18 with a 3×3 stem and without max pooling, for images of 64×64: its stages
    work on grids of 32, 16, 8 and 4.

    Args:
        num_classes: width of the output.
        channels: of the four stages.
        settings: more options of timm's ResNet.
    """
    import timm

    model: Any = timm.create_model(
        "resnet18", num_classes=num_classes, channels=tuple(channels), **settings
    )
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 64, 64), "crop_pct": 1.0}
    return model  # type: ignore[no-any-return]
