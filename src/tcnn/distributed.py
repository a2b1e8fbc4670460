"""Batch normalisation over the batches of all processes, on a CPU too.

`torch.nn.SyncBatchNorm` needs a GPU, and takes the place of a whole module, with whatever its class
adds (timm's its activation). Here every module stays and runs its own `forward`, and only the
`F.batch_norm` that it calls is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as FusedBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


@contextmanager
def synchronized_batch_norm(model: nn.Module) -> Iterator[int]:
    """Inside, batch norm in training mode normalises over the batches of all processes.

    Concerns every `nn.BatchNorm1d`, `2d` and `3d`, and every subclass that calls `F.batch_norm` as
    they do. In eval mode, or with one process, they compute what they always do. All processes must
    run the same modules in the same order; their batches may differ in size. Gradients are those of
    the sum of all processes' losses, which `DistributedDataParallel` turns into their mean.

    Enter it in the processes that train: copies and pickles of a module are as outside.

    Args:
        model: before or after `DistributedDataParallel` wraps it; the same to the bit afterwards,
            but for what it was trained to.

    Yields:
        The number of modules concerned.
    """
    plain: dict[nn.Module, type[nn.Module]] = {
        module: type(module)
        for module in model.modules()
        # nn.SyncBatchNorm does so by itself.
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
    }
    synchronized = {kind: _synchronized(kind) for kind in set(plain.values())}
    try:
        for module, kind in plain.items():
            module.__class__ = synchronized[kind]
        yield len(plain)
    finally:
        for module, kind in plain.items():
            module.__class__ = kind


def _synchronized(plain: type[nn.Module]) -> type[nn.Module]:
    """A subclass that differs in `forward` alone, and passes for `plain` where names are read."""

    class Synchronized(plain):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not self.training or not _many_processes():
                return super().forward(*args, **kwargs)
            with _OverAllProcesses():
                return super().forward(*args, **kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            # Nothing could find this class again, and a copy may outlive the context.
            _, _, *state = super().__reduce_ex__(protocol)
            return object.__new__, (plain,), *state

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Synchronized, name, getattr(plain, name))
    return Synchronized


def _many_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _OverAllProcesses(TorchFunctionMode):
    """`batch_norm` below in place of `F.batch_norm`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return (batch_norm if func is F.batch_norm else func)(*args, **kwargs or {})


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` with n, μ and σ² = Σ (x - μ)² / n over the batches of all processes.

    The variance takes a second pass, for Σ x² / n - μ² cancels where |μ| is large beside σ. The
    running variance is given n σ² / (n - 1), as from `F.batch_norm`.

    Args:
        input: x, (B, C, …), the batch of this process; B may differ, and be 0.
        running_mean, running_var, weight, bias, training, momentum, eps: as of `F.batch_norm`.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167) algorithm 1.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if input.is_cuda:
        fused: Any = FusedBatchNorm  # untyped
        processes = (dist.group.WORLD, dist.get_world_size())
        running = (running_mean, running_var)
        y: Tensor = fused.apply(input, weight, bias, *running, eps, momentum, *processes)
        return y
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    others = [axis for axis in range(x.dim()) if axis != 1]
    per_channel = [-1 if axis == 1 else 1 for axis in range(x.dim())]

    # Sums are taken in float64, as by PyTorch's batch norm on a CPU.
    sums = x.sum(others, dtype=torch.float64)
    *_, count = totals = _sum_over_processes(
        torch.cat([sums, sums.new_tensor([x.numel() / x.shape[1]])])
    )
    mean = totals[:-1] / count
    centred = x - mean.to(x.dtype).view(per_channel)
    squares = centred.square().sum(others, dtype=torch.float64)
    variance = _sum_over_processes(squares) / count
    unbiased = variance * count / (count - 1)
    for statistic, value in ((running_mean, mean), (running_var, unbiased)):
        if statistic is not None:
            statistic.lerp_(value.detach().to(statistic.dtype), momentum)

    y = centred * (variance + eps).rsqrt().to(x.dtype).view(per_channel)
    if weight is not None:
        y = y * weight.view(per_channel)
    if bias is not None:
        y = y + bias.view(per_channel)
    return y.to(input.dtype)


class _Sum(torch.autograd.Function):
    """Σ over processes. One process's share is in the sum of all of them: so is the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _sum_over_processes(gradients[0])


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)
    return total
