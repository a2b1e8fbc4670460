"""Odd little CNNs for the tests of the surgery."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a random value, for fresh ones (0, 1) hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0, 0.3, generator=generator)
    return model


class TwoStage(nn.Module):
    """Convolutions on three grids: 16, 8 and 1 pixels wide at input 3×16×16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(8, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.squeeze = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.deep(self.mix(F.relu(self.down(x)))))
        logits: Tensor = self.head(self.squeeze(x.mean((2, 3), keepdim=True)).flatten(1))
        return logits


class Shared(nn.Module):
    """One convolution under two names, called three times on two grids."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.first(x)))
        return self.first(x[:, :, ::2, ::2])


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 3, padding=1)
        self.two = nn.Conv2d(3, 3, 3, padding=2, dilation=2)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x)))


class Bypassing(nn.Module):
    """Reads a convolution's weight and never calls it; calls another and reads that too."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv2d(3, 3, 3, padding=1)
        self.both = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.read.weight, self.read.bias, padding=1)
        return self.both(x) + F.conv2d(x, self.both.weight, padding=1)


class Shouting(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Renamed(nn.Conv2d):
    """A convolution that differs in its constructor alone."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.note = "kept"


class Gained(nn.Conv2d):
    """A convolution with a parameter that nothing is known of."""

    def __init__(self) -> None:
        super().__init__(3, 3, 3)
        self.gain = nn.Parameter(torch.ones(3))
