"""One call of content attention, as `content_blocks` and `content_tiles` compute it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tcnn.content import Mix, Scene


@dataclass(frozen=True)
class Task:
    """Y = Σ_h W[:, :, h] (A_h X), of A_h = S_h or, with `mix`, c_h S_h + g_h P_h.

    Attributes:
        x: image, (B, C, H, W).
        queries: with the factor of the scores, (B, heads, Nq, d_k).
        keys: (B, heads, N, d_k).
        kernel: W, (out_channels, C / groups, heads).
        mix: shares of S and P; None for S alone.
        groups: channel groups of the convolution.
        scene: what is attended to.
        seed: of the dropout.
    """

    x: Tensor
    queries: Tensor
    keys: Tensor
    kernel: Tensor
    mix: Mix | None
    groups: int
    scene: Scene
    seed: int

    def matrix(self) -> Tensor:
        """The kernel as output matrix, (groups, out_channels / groups, C / groups · heads)."""
        return self.kernel.reshape(self.groups, len(self.kernel) // self.groups, -1)


class Gradients(NamedTuple):
    """∂L by a task's tensors; those by the shares are meaningless without `mix`."""

    x: Tensor
    queries: Tensor
    keys: Tensor
    kernel: Tensor
    share: Tensor
    gate: Tensor


def dtype_of_scores(queries: Tensor) -> torch.dtype:
    """At least float32: what softmax and sums are computed in."""
    return torch.promote_types(queries.dtype, torch.float32)


def dropout_mask(content: Tensor, task: Task, number: int) -> Tensor | None:
    """1 / (1 - p) where an entry of S stays and 0 where it is dropped: the same for a block in both
    passes. None without dropout."""
    if not task.scene.drop:
        return None
    generator = torch.Generator(content.device).manual_seed(task.seed + number)
    stays = torch.empty_like(content).bernoulli_(1 - task.scene.drop, generator=generator)
    return stays.div_(1 - task.scene.drop)
