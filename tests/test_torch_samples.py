"""PyTorch's own sample inputs of its convolution, through the recast layer and its backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import tcnn

# Not used: error inputs (arguments that the convolution itself refuses), complex and integer types.
LIMITS = {
    ("fixed", torch.float32): 1e-6,
    ("fixed", torch.float64): 1e-12,
    ("learned", torch.float32): 1e-5,
    ("learned", torch.float64): 1e-5,
}
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def databases() -> tuple[list[Any], list[Any]]:
    """torch's modules and functions with sample inputs; imported late, for it takes seconds."""
    # The import would forbid the whole process to set torch.backends' flags, as Lightning does.
    with mock.patch("torch.backends.disable_global_flags"):
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db
    return module_db, op_db


def module_samples(dtype: torch.dtype) -> Iterator[tuple[nn.Conv2d, Tensor]]:
    """The samples of nn.Conv2d in torch's database of modules."""
    (entry,) = (entry for entry in databases()[0] if entry.module_cls is nn.Conv2d)
    for training in (False, True):
        for sample in entry.module_inputs_func(entry, "cpu", dtype, True, training):
            arguments = sample.constructor_input
            conv = nn.Conv2d(*arguments.args, **{**arguments.kwargs, "dtype": dtype})
            yield conv.train(training), sample.forward_input.args[0]


def function_samples(dtype: torch.dtype) -> Iterator[tuple[nn.Conv2d, Tensor]]:
    """The samples of F.conv2d in torch's database of functions, as modules."""
    (entry,) = (entry for entry in databases()[1] if entry.name == "nn.functional.conv2d")
    for sample in entry.sample_inputs("cpu", dtype, requires_grad=True):
        weight, bias = sample.args
        groups = sample.kwargs.get("groups", 1)
        conv = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            bias=bias is not None,
            dtype=dtype,
            **sample.kwargs,
        )
        with torch.no_grad():
            conv.weight.copy_(weight)
            if bias is not None:
                conv.bias.copy_(bias)
        expected = torch.nn.functional.conv2d(sample.input, weight, bias, **sample.kwargs)
        assert torch.equal(conv(sample.input), expected)
        yield conv, sample.input


def results(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients of a weighted sum of it."""
    x = x.detach().clone().requires_grad_()
    y = module(x)
    generator = torch.Generator().manual_seed(0)
    (y * torch.randn(y.shape, dtype=y.dtype, generator=generator)).sum().backward()
    found = {"output": y.detach(), "input": x.grad, "weight": module.weight.grad}
    if module.bias is not None:
        found["bias"] = module.bias.grad
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize(
    ("samples", "least"), [(module_samples, 8), (function_samples, 26)], ids=["module", "function"]
)
def test_samples(samples, least: int, positions: str, dtype: torch.dtype):
    torch.manual_seed(0)
    errors = []
    for conv, x in samples(dtype):
        layer = tcnn.GPSA2d.from_conv2d(conv, tcnn.GPSAConfig(positions=positions))
        expected, found = results(conv, x), results(layer, x)
        assert found.keys() == expected.keys()
        for name, truth in expected.items():
            assert found[name].shape == truth.shape and found[name].dtype == dtype
            difference = (found[name] - truth).abs().max() / truth.abs().max()
            errors.append(difference.item())
            assert difference <= LIMITS[positions, dtype], (name, conv, x.shape)
    assert len(errors) >= 3 * least
    print(f"{len(errors)} comparisons, worst relative error {max(errors):.1e}")
