"""Where the queries, keys and heads of a convolution lie: sizes, padding, anchors, centres."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Kernel, stride, dilation and padding of a convolution, along rows and columns.

    Attributes:
        padding: as `torch.nn.Conv2d`: numbers, "same" or "valid".
        dynamic_same: pad by TensorFlow's SAME rule instead, from the size of each input.
    """

    kernel_size: Pair
    stride: Pair
    dilation: Pair
    padding: Pair | str
    dynamic_same: bool = False

    @property
    def heads(self) -> int:
        """Number of heads: one per kernel tap."""
        return self.kernel_size[0] * self.kernel_size[1]

    def pads(self, size: Pair) -> tuple[Pair, Pair]:
        """Padding (top, bottom), (left, right) for an input of the given size (H, W)."""
        if not self.dynamic_same:
            return self._reference_pads()
        totals = [
            max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, k, s, d in zip(size, self.kernel_size, self.stride, self.dilation, strict=True)
        ]
        return _halves(totals[0]), _halves(totals[1])

    def grid(self, size: Pair) -> Pair:
        """Output grid (Hq, Wq) for an input of the given size (H, W).

        Raises:
            RuntimeError: the padded input is smaller than the kernel, as from the convolution.
        """
        reach = [d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        padded = [n + sum(pads) for n, pads in zip(size, self.pads(size), strict=True)]
        if padded[0] < reach[0] or padded[1] < reach[1]:
            raise RuntimeError(
                f"Expected an input at least as large as the kernel, {reach[0]}x{reach[1]} pixels, "
                f"but got {size[0]}x{size[1]}, {padded[0]}x{padded[1]} with its padding."
            )
        return (
            (padded[0] - reach[0]) // self.stride[0] + 1,
            (padded[1] - reach[1]) // self.stride[1] + 1,
        )

    def origin(self, size: Pair) -> Pair:
        """Pixel that the first query is anchored at."""
        # Zero unless the padding follows the input size and moves the kernel's centre.
        rows, columns = (
            reference[0] - pads[0]
            for reference, pads in zip(self._reference_pads(), self.pads(size), strict=True)
        )
        return rows, columns

    def anchors(self, size: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pixel u·s that each query is anchored at, along rows (Hq,) and columns (Wq,), float32."""
        rows, columns = (
            torch.arange(n, device=device).float() * stride + first
            for n, stride, first in zip(
                self.grid(size), self.stride, self.origin(size), strict=True
            )
        )
        return rows, columns

    def queries_are_pixels(self, size: Pair) -> bool:
        """Whether there is one query for each pixel of the image (H, W), anchored at it."""
        return (
            self.origin(size) == (0, 0) and self.stride == (1, 1) and self.grid(size) == tuple(size)
        )

    def taps(self) -> tuple[Pair, ...]:
        """Δ_h of each head h = a·Kw + b, as `centres`."""
        (top, _), (left, _) = self._reference_pads()
        return tuple(
            (a * self.dilation[0] - top, b * self.dilation[1] - left)
            for a in range(self.kernel_size[0])
            for b in range(self.kernel_size[1])
        )

    def centres(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Δ_h = (a·d - p, b·d - p) of each head h = a·Kw + b, two of (heads,), float32."""
        rows, columns = torch.tensor(self.taps(), device=device).float().unbind(1)
        return rows, columns

    def _reference_pads(self) -> tuple[Pair, Pair]:
        """Padding that centres are counted from: for dynamic SAME padding, that of stride 1."""
        if self.padding == "valid":
            return (0, 0), (0, 0)
        if self.dynamic_same or isinstance(self.padding, str):
            totals = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
            return _halves(totals[0]), _halves(totals[1])
        return (self.padding[0], self.padding[0]), (self.padding[1], self.padding[1])


def _halves(total: int) -> Pair:
    return total // 2, total - total // 2
