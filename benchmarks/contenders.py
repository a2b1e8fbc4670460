"""The layers that are timed: the convolution, its recast layers, and other people's attention.

All have the width of the convolution. timm's ConViT layer takes tokens, (B, N, C), and a width that
its 9 heads divide, the nearest one: 513 for 512, 252 for 256, 126 for 128, 63 for 64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import tcnn
from dense_tcnn import DenseTCNN
from tcnn.functional import axis_offsets, axis_softmax
from tcnn.timing import Rates

HEADS = 9
OPEN = 0.7
WINDOW = 7
KEY_STRIDE = 4
_LOCALITY = 30.0  # α of the dense layer: at 20 its positions are full of denormal floats
_MATRIX_BYTES = 4e8  # a matrix of all queries and keys beyond this is left out
_SECONDS = 10.0  # and so is a floor beyond this


@dataclass(frozen=True)
class Grid:
    """What a layer is run on: images of side×side pixels."""

    side: int
    channels: int
    batch: int

    @property
    def tokens(self) -> int:
        """Pixels of an image."""
        return self.side**2

    def __str__(self) -> str:
        return f"{self.side}×{self.side}, {self.channels}, batch {self.batch}"


@dataclass(frozen=True)
class Contender:
    """A layer, its input, and what it has to do at the least.

    Attributes:
        module: the layer.
        x: (B, C, H, W), or tokens (B, N, C).
        operations: of the matrix products of a forward pass, a multiply-add counting as 2.
        matrix_bytes: of one matrix of all queries, keys and heads, where it holds one.
    """

    module: nn.Module
    x: Tensor = field(repr=False)
    operations: float
    matrix_bytes: float = 0.0

    def bytes(self, backward: bool) -> int:
        """Read and written at the least: forward the input, the weights and the output; backward
        input, weights and the output's gradient are read, two gradients are written."""
        item = self.x.element_size()
        image = item * self.x.numel()
        weights = item * sum(parameter.numel() for parameter in self.module.parameters())
        return 5 * image + 3 * weights if backward else 2 * image + weights

    def floor(self, rates: Rates, backward: bool) -> float:
        """Least seconds; each product has two more in the backward pass."""
        return rates.floor((3 if backward else 1) * self.operations, self.bytes(backward))


@dataclass(frozen=True)
class Field:
    """All contenders on one grid.

    Attributes:
        entries: by name, the convolution first.
        left_out: name → why.
    """

    entries: dict[str, Contender]
    left_out: dict[str, str]


def contend(grid: Grid, rates: Rates, device: torch.device, channels_last: bool = False) -> Field:
    """The contenders on a grid, without those that would take over 2 GB or 20 s."""
    found: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    for name, build in _builders(grid).items():
        operations, matrix_bytes = _work(name, grid)
        if matrix_bytes > _MATRIX_BYTES:
            left_out[name] = (
                f"one matrix of all its queries and keys is {matrix_bytes / 1e9:.1f} GB, and a "
                "training step holds several"
            )
        elif 3 * operations / rates.matrix_flops > _SECONDS:
            left_out[name] = "forward and backward would take over 20 s"
        else:
            module = build().to(device)
            x = _input(module, grid).to(device)
            if channels_last and x.dim() == 4:
                module = module.to(memory_format=torch.channels_last)
                x = x.contiguous(memory_format=torch.channels_last)
            found[name] = Contender(module, x, operations, matrix_bytes)
    return Field(found, left_out)


def _builders(grid: Grid) -> dict[str, Callable[[], nn.Module]]:
    conv = nn.Conv2d(grid.channels, grid.channels, 3, padding=1)

    def layer(**options: Any) -> tcnn.GPSA2d:
        return tcnn.GPSA2d.from_conv2d(conv, tcnn.GPSAConfig(**options))

    def positions_alone() -> tcnn.GPSA2d:
        alone = layer(positions="learned")
        alone.gating_param.requires_grad_(False)
        return alone

    def dense() -> DenseTCNN:
        learned = layer(positions="learned", gate_init=OPEN, locality_strength=_LOCALITY)
        return DenseTCNN(learned, (grid.side, grid.side))

    def convit() -> nn.Module:
        from timm.models.convit import GPSA

        peer = GPSA(_convit_width(grid.channels), HEADS, locality_strength=1.0)
        peer.local_init()
        return peer

    def bottleneck() -> nn.Module:
        from timm.layers.bottleneck_attn import BottleneckAttn

        return BottleneckAttn(grid.channels, feat_size=(grid.side, grid.side))

    return {
        "convolution": lambda: conv,
        "layer": lambda: layer(gate_init=OPEN),
        "window=7": lambda: layer(gate_init=OPEN, window=WINDOW),
        "key_stride=4": lambda: layer(gate_init=OPEN, key_stride=KEY_STRIDE),
        "learned positions": lambda: layer(gate_init=OPEN, positions="learned"),
        "learned positions alone": positions_alone,
        "dense T-CNN": dense,
        "ConViT GPSA": convit,
        "BottleneckAttn": bottleneck,
    }


def _input(module: nn.Module, grid: Grid) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if hasattr(module, "pos_proj"):
        shape: tuple[int, ...] = (grid.batch, grid.tokens, module.dim)
    else:
        shape = (grid.batch, grid.channels, grid.side, grid.side)
    return torch.randn(*shape, generator=generator)


def _convit_width(channels: int) -> int:
    return round(channels / HEADS) * HEADS


def _work(name: str, grid: Grid) -> tuple[float, float]:
    """Operations of a forward pass, and bytes of one matrix of all queries and keys if it has one.

    For C channels, N tokens, d channels of a query: the kernel 18 C² N; queries and keys
    36 C d N; scores and values 18 (d + C) for each pair of a query and a key.
    """
    c, n, side = grid.channels, grid.tokens, grid.side
    d = max(8, c // HEADS)
    kernel = 2 * HEADS * c * c * n
    keys = n

    def attention(pairs: int, keys: int) -> int:
        return 2 * HEADS * (pairs * (d + c) + d * c * (n + keys))

    matrix = 4.0 * grid.batch * HEADS * n * n
    if name == "convolution":
        return grid.batch * kernel, 0
    if name in ("layer", "learned positions"):
        return grid.batch * (kernel + attention(n * keys, keys)), 0
    if name == "window=7":
        return grid.batch * (kernel + attention(_window_pairs(side), keys)), 0
    if name == "key_stride=4":
        keys = (-(-side // KEY_STRIDE)) ** 2
        return grid.batch * (kernel + attention(n * keys, keys)), 0
    if name == "learned positions alone":
        return grid.batch * (kernel + 2 * HEADS * c * 2 * side * _axis_entries(side)), 0
    if name == "dense T-CNN":
        position = 2 * 3 * HEADS * n * (side + 2) ** 2
        return grid.batch * (kernel + attention(n * n, n)) + position, matrix
    if name == "ConViT GPSA":
        c = _convit_width(c)
        return grid.batch * (2 * 4 * c * c * n + 2 * 2 * n * n * c + 2 * 3 * HEADS * n * n), matrix
    position = 2 * 2 * n * c * (2 * side - 1)
    return grid.batch * (2 * 3 * c * c * n + 2 * 2 * n * n * c + position), matrix * 4 / HEADS


def _window_pairs(side: int) -> int:
    """Pairs of a query and a key of its window, which the image's border cuts."""
    reach = WINDOW // 2
    axis = sum(min(side - 1, u + reach) - max(0, u - reach) + 1 for u in range(side))
    return axis**2


def _axis_entries(side: int) -> int:
    """Entries of a positional factor that are not 0, of one head and axis; it is the same along
    both, and for a centred head."""
    alpha = torch.tensor([tcnn.GPSAConfig().locality_strength])
    offsets = axis_offsets(torch.arange(float(side)), -1, side + 2)
    return int(axis_softmax(offsets, -alpha, 0 * alpha).count_nonzero())
