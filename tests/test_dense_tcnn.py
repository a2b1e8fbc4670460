"""The benchmarks' dense T-CNN layer and operation counts against the package and PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tcnn
from contenders import _MATRIX_BYTES, Grid, _builders, _input, _work
from dense_tcnn import DenseTCNN
from reference import reference_of, relative_error, with_open_gates


@pytest.mark.parametrize("grid", [(6, 6), (4, 7)])
@pytest.mark.parametrize("kernel", [3, (1, 5)])
@pytest.mark.parametrize("alpha", [1.0, 30.0])
def test_is_the_layer(grid: tuple[int, int], kernel: int | tuple[int, int], alpha: float) -> None:
    config = tcnn.GPSAConfig(positions="learned", locality_strength=alpha)
    padding = 1 if kernel == 3 else (0, 2)
    torch.manual_seed(0)
    layer = with_open_gates(
        tcnn.GPSA2d(5, 7, kernel, padding=padding, dtype=torch.float64, config=config)
    )
    with torch.no_grad():
        layer.v_pos += 0.3 * torch.randn_like(layer.v_pos)
    dense = DenseTCNN(layer, grid)
    x, y = (torch.randn(2, 5, *grid, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        y.copy_(x)
    found, expected = dense(x), layer(y)
    assert relative_error(found, expected) < 1e-12
    assert relative_error(found, reference_of(layer, x)) < 1e-12
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert relative_error(x.grad, y.grad) < 1e-10
    if alpha == 1:  # at 30 it is the rounding error of 10⁻¹²
        assert relative_error(dense.v_pos.grad, layer.v_pos.grad) < 1e-10
    assert relative_error(dense.share.grad, layer.gating_param.grad) < 1e-10
    assert relative_error(dense.qk.weight.grad, layer.qk.weight.grad) < 1e-10
    kernel_grad = dense.output.weight.grad.unflatten(1, (layer.heads, 5)).mT
    assert relative_error(kernel_grad, layer.weight.grad.flatten(2)) < 1e-10


@pytest.mark.parametrize(
    "name", ["convolution", "layer", "learned positions", "dense T-CNN", "ConViT GPSA",
             "BottleneckAttn"]
)  # fmt: skip
def test_operations_are_those_that_pytorch_counts(name: str) -> None:
    grid = Grid(14, 64, 2)
    module = _builders(grid)[name]()
    x = _input(module, grid)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    assert _work(name, grid)[0] == counter.get_total_flops()


def test_a_layer_that_sees_less_does_less() -> None:
    grid = Grid(28, 64, 1)
    names = ("convolution", "key_stride=4", "window=7", "layer", "dense T-CNN")
    works = [_work(name, grid)[0] for name in names]
    assert works == sorted(works)
    alone = _work("learned positions alone", grid)[0]
    # Three entries a row along both axes: 2·9·C·(3 + 3)·N, less at the borders.
    assert 0.93 < (alone - works[0]) / (2 * 9 * 64 * 6 * 28**2) <= 1


def test_matrices_that_are_too_large() -> None:
    assert _work("dense T-CNN", Grid(56, 64, 1))[1] == 4 * 9 * 56**4 < _MATRIX_BYTES
    assert _work("dense T-CNN", Grid(112, 64, 1))[1] > _MATRIX_BYTES
    assert isinstance(_builders(Grid(7, 9, 1))["convolution"](), nn.Conv2d)
