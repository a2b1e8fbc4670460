"""Content attention in blocks or tiles as one operation, for autograd and for `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tcnn import content_blocks, content_tiles
from tcnn.content import Mix, Scene
from tcnn.content_task import Task


def attend(
    x: Tensor,
    queries: Tensor,
    keys: Tensor,
    kernel: Tensor,
    groups: int,
    scene: Scene,
    mix: Mix | None = None,
    tiles: bool | None = None,
) -> Tensor:
    """Σ_h W[:, :, h] (A_h X), without a matrix of all queries and keys. Differentiable once.

    Args:
        x, queries, keys, kernel, groups, scene, mix: as `content_task.Task`.
        tiles: by `content_tiles`, otherwise by `content_blocks`; None leaves it to the scene, when
            the sizes are known.

    Returns:
        (B, out_channels, Hq, Wq).
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, kernel = x.to(dtype), kernel.to(dtype)
    kernel = kernel.to(x.dtype)
    # From PyTorch's own generator, so that a recomputation of a checkpoint draws the same.
    seed = torch.randint(2**62, ()) if scene.drop else None
    share, gate = (None, None) if mix is None else (mix.share, mix.gate)
    numbers = [*scene.size, *scene.grid, *scene.origin, *scene.stride, scene.window or 0, groups]
    centres = [] if mix is None else [offset for centre in mix.centres for offset in centre]
    keep = torch.is_grad_enabled() and kernel.requires_grad
    rest = (seed, numbers, centres, scene.drop, keep, tiles)
    if torch.compiler.is_compiling():
        y, _ = _operator(x, queries, keys, kernel, share, gate, *rest)
    else:
        y = _Attend.apply(x, queries, keys, kernel, share, gate, *rest)
    return torch.unflatten(y, 2, scene.grid)


# Flat and written out: the schemas of the operators are read off these, and know no dataclass.


def _forward(
    x: Tensor,
    queries: Tensor,
    keys: Tensor,
    kernel: Tensor,
    share: Tensor | None,
    gate: Tensor | None,
    seed: Tensor | None,
    numbers: Sequence[int],
    centres: Sequence[int],
    drop: float,
    keep: bool,
    tiles: bool | None,
) -> tuple[Tensor, Tensor]:
    task, by_tiles = _task(
        x, queries, keys, kernel, share, gate, seed, numbers, centres, drop, tiles
    )
    with torch.autocast(x.device.type, enabled=False):
        if by_tiles:
            return content_tiles.forward(task, keep)
        return content_blocks.forward(task, keep)


def _backward(
    grad: Tensor,
    attended: Tensor,
    x: Tensor,
    queries: Tensor,
    keys: Tensor,
    kernel: Tensor,
    share: Tensor | None,
    gate: Tensor | None,
    seed: Tensor | None,
    numbers: Sequence[int],
    centres: Sequence[int],
    drop: float,
    keep: bool,
    tiles: bool | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    task, by_tiles = _task(
        x, queries, keys, kernel, share, gate, seed, numbers, centres, drop, tiles
    )
    run = (content_tiles if by_tiles else content_blocks).backward
    with torch.autocast(x.device.type, enabled=False):
        found = run(task, grad.contiguous(), attended if keep else None)
    shares = (found.share, found.gate) if share is None or gate is None else (share, gate)
    like = (x, queries, keys, kernel, *shares)
    given = [gradient.to(of.dtype) for gradient, of in zip(found, like, strict=True)]
    return given[0], given[1], given[2], given[3], given[4], given[5]


def _task(
    x: Tensor,
    queries: Tensor,
    keys: Tensor,
    kernel: Tensor,
    share: Tensor | None,
    gate: Tensor | None,
    seed: Tensor | None,
    numbers: Sequence[int],
    centres: Sequence[int],
    drop: float,
    tiles: bool | None,
) -> tuple[Task, bool]:
    """The task, and whether tiles are to do it."""
    size, grid, origin, stride = ((numbers[i], numbers[i + 1]) for i in (0, 2, 4, 6))
    mix = None
    if share is not None and gate is not None:
        mix = Mix(share, gate, tuple(zip(centres[::2], centres[1::2], strict=True)))
    scene = Scene(size, grid, origin, stride, numbers[8] or None, drop)
    task = Task(x, queries, keys, kernel, mix, numbers[9], scene, 0 if seed is None else int(seed))
    return task, scene.tile is not None if tiles is None else tiles


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        y, attended = _forward(*args)
        ctx.save_for_backward(attended, *args[:7])
        ctx.rest = args[7:]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = _backward(grad, *ctx.saved_tensors, *ctx.rest)
        needed = ctx.needs_input_grad
        return (
            *(g if needs else None for g, needs in zip(found, needed, strict=False)),
            *[None] * 6,
        )


# What torch.compile sees: one operator, whatever the sizes; the blocks would be unrolled.


def _contiguous(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """With results that lie in memory as the fakes below have it, whatever the path."""

    @wraps(function)  # the schema is read off the signature
    def call(*args: Any) -> tuple[Tensor, ...]:
        return tuple(result.contiguous() for result in function(*args))

    return call


# Inputs may lie in memory as they like: to ask for certain strides would tie a graph to one size.
_operator = torch.library.custom_op(
    "tcnn::attend", _contiguous(_forward), mutates_args=(), tags=torch.Tag.flexible_layout
)
_operator_backward = torch.library.custom_op(
    "tcnn::attend_backward",
    _contiguous(_backward),
    mutates_args=(),
    tags=torch.Tag.flexible_layout,
)


@_operator.register_fake
def _(x: Any, queries: Any, keys: Any, kernel: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    numbers, keep = rest[3], rest[6]
    y = x.new_empty(x.shape[0], kernel.shape[0], numbers[2] * numbers[3])
    if not keep:
        return y, x.new_empty(0)
    if numbers[8]:  # what is kept of a window goes by tiles
        return y, x.new_empty(torch.library.get_ctx().new_dynamic_size())
    return y, x.new_empty(x.shape[0], x.shape[1], queries.shape[1], numbers[2] * numbers[3])


@_operator_backward.register_fake
def _(grad: Any, attended: Any, x: Any, queries: Any, keys: Any, kernel: Any, *rest: Any) -> Any:
    share = rest[0] if rest[0] is not None else x.new_empty(queries.shape[1], dtype=torch.float32)
    like = (x, queries, keys, kernel, share, share)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in like)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs[:7])
    ctx.rest = inputs[7:]


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    found = _operator_backward(grad, *ctx.saved_tensors, *ctx.rest)
    shares = found[4:] if ctx.saved_tensors[5] is not None else (None, None)
    return (*found[:4], *shares, *[None] * 6)


_operator.register_autograd(_differentiate, setup_context=_keep)
