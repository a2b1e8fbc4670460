"""The equivalence report: what it measures, and that it can say no."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tcnn
from nets import TwoStage, lively
from tcnn.surgery import replace_convolutions

SIZE = (3, 16, 16)


def pair() -> tuple[nn.Module, nn.Module, Tensor]:
    cnn = lively(TwoStage()).eval()
    images = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(0))
    return cnn, tcnn.recast(cnn, input_size=SIZE), images


def test_errors_are_those_of_a_loop() -> None:
    cnn, hybrid, images = pair()
    with torch.no_grad():
        hybrid.deep.gating_param[2] = 0.3
    report = tcnn.check_equivalence(cnn, hybrid, images)
    with torch.no_grad():
        a, b = cnn(images).double().tolist(), hybrid(images).double().tolist()
    apart = [max(abs(x - y) for x, y in zip(*rows, strict=True)) for rows in zip(a, b, strict=True)]
    relative = [d / max(map(abs, row)) for d, row in zip(apart, a, strict=True)]
    agree = sum(r.index(max(r)) == o.index(max(o)) for r, o in zip(a, b, strict=True)) / 4
    assert report.max_abs_error == max(apart) > 0
    assert report.max_rel_error == max(relative) > 0
    assert report.top1_agreement == agree
    assert [layer.name for layer in report.layers] == ["down", "deep"]
    assert report.layers[0].max_abs_error == 0 < report.layers[1].max_abs_error
    assert not report.ok and "NOT EQUIVALENT" in report.table()
    assert json.loads(json.dumps(report.to_json()))["ok"] is False


def test_exact_recast_is_ok_and_leaves_no_trace() -> None:
    cnn, hybrid, images = pair()
    hybrid.train()
    hybrid.norm.eval()
    modes = [module.training for module in hybrid.modules()]
    running = hybrid.norm.running_mean.clone()
    report = tcnn.check_equivalence(cnn, hybrid, images)
    assert report.ok and report.max_abs_error == 0 and report.top1_agreement == 1
    assert modes == [module.training for module in hybrid.modules()]
    assert torch.equal(running, hybrid.norm.running_mean)
    assert not any(m._forward_hooks for net in (cnn, hybrid) for m in net.modules())
    double = tcnn.check_equivalence(cnn, hybrid, images, dtype=torch.float64)
    assert double.ok and double.tolerance == 1e-12 and double.dtype == "float64"
    assert next(cnn.parameters()).dtype == torch.float32


def test_a_flipped_kernel_and_a_nan_are_seen() -> None:
    cnn, hybrid, images = pair()
    flipped, spoilt = copy.deepcopy(hybrid), copy.deepcopy(hybrid)
    with torch.no_grad():
        flipped.deep.weight.copy_(flipped.deep.weight.flip(-1))
        spoilt.head.bias[0] = math.nan
    assert not tcnn.check_equivalence(cnn, flipped, images).ok
    assert not tcnn.check_equivalence(cnn, spoilt, images).ok
    assert not tcnn.check_equivalence(cnn, flipped, images, tolerance=1e-3).ok


class _Unused(nn.Module):
    """A network that keeps a second hold on its convolution, out of the surgery's reach."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.hidden = [self.conv]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)  # type: ignore[no-any-return]


def test_a_recast_layer_that_is_never_called_is_seen() -> None:
    cnn = _Unused()
    hybrid = replace_convolutions(cnn, {"conv": tcnn.GPSAConfig()})
    report = tcnn.check_equivalence(cnn, hybrid, torch.randn(1, *SIZE))
    assert report.max_abs_error == 0 and not report.ok
    assert report.layers[0].max_abs_error == math.inf


class _Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.conv(x)
        return {"maps": [y, (y.mean(), {"max": y.amax()})], "name": "n"}


def test_nested_outputs_are_compared() -> None:
    cnn = _Nested()
    hybrid = tcnn.recast(cnn, input_size=SIZE)
    images = torch.randn(2, *SIZE)
    assert tcnn.check_equivalence(cnn, hybrid, images).ok
    with torch.no_grad():
        hybrid.conv.bias += 0.1
    assert tcnn.check_equivalence(cnn, hybrid, images).max_abs_error == pytest.approx(0.1, abs=1e-6)


class _Gives(nn.Module):
    """A network whose output is made from its input by a function."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> object:
        return self.make(x)


@dataclass
class _Boxes:
    boxes: Tensor
    count: int = 1


class _Plain:
    """No class that anything is known of."""

    def __init__(self, x: Tensor) -> None:
        self.found = x
        self.itself = self


def _scaled(x: Tensor, factor: float) -> Tensor:
    """The last image alone scaled, the first so large that it would hide the others."""
    return torch.cat([1e6 * x[:1], x[1:-1], factor * x[-1:]])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda x: x, lambda x: x + 1e-3),
        (lambda x: _scaled(x, 1.0), lambda x: _scaled(x, -1.0)),
        (lambda x: {"a": x}, lambda x: {"b": x}),
        (lambda x: {"a": x}, lambda x: [x]),
        (lambda x: (x, 1.0), lambda x: (x, 2.0)),
        (lambda x: (x, None), lambda x: x),
        (lambda x: (x, None), lambda x: (x, x)),
        (lambda x: [x, x], lambda x: [x]),
        (lambda x: x, lambda x: x[:, :1]),
        (lambda x: x, lambda x: x * float("nan")),
        (lambda x: _Boxes(x), lambda x: _Boxes(x + 1)),
        (lambda x: _Boxes(x), lambda x: _Boxes(x, 2)),
        (lambda x: torch.complex(x, x)[0], lambda x: torch.complex(x, 2 * x)[0]),
        (lambda x: x > 0, lambda x: x < 0),
        (lambda x: x.numpy(), lambda x: x.numpy() + 1),
        (lambda x: _Plain(x), lambda x: _Plain(x + 1)),
        (lambda x: x.log(), lambda x: x.log() + 1e-2),  # with NaN in both
        (lambda x: (x, float("nan")), lambda x: (x, 1.0)),
    ],
)
def test_outputs_of_any_kind_equal_themselves_and_nothing_else(
    first: Callable[[Tensor], object], second: Callable[[Tensor], object]
) -> None:
    images = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(0))
    one, other = _Gives(first), _Gives(second)
    assert tcnn.check_equivalence(one, _Gives(first), images).ok
    assert not tcnn.check_equivalence(one, other, images).ok
    assert not tcnn.check_equivalence(other, one, images).ok


def test_objects_that_refer_to_each_other_are_opened_once() -> None:
    def knot(x: Tensor) -> list[_Plain]:
        knots = [_Plain(x + index) for index in range(30)]
        for one in knots:
            one.others = knots
        return knots

    images = torch.randn(2, *SIZE)
    assert tcnn.check_equivalence(_Gives(knot), _Gives(knot), images).ok
    assert not tcnn.check_equivalence(_Gives(knot), _Gives(lambda x: knot(x + 1)), images).ok


def test_equal_infinities_are_equal() -> None:
    net = _Gives(lambda x: x / 0)
    assert tcnn.check_equivalence(net, net, torch.ones(1, *SIZE)).ok


def test_buffers_of_every_kind_come_back() -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("none", None)
            self.register_buffer("grows", torch.zeros(1))
            self.register_buffer("moved", torch.zeros(3))
            self.register_buffer("wide", torch.arange(4.0).expand(2, 4))
            self.register_buffer("sparse", torch.eye(2).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            self.none = torch.ones(1)
            self.grows.data = torch.ones(5)
            self.moved.resize_(2).fill_(7.0)
            self.register_buffer("added", torch.ones(1), persistent=False)
            return x

    net = Changes()
    before = {name: value.to_dense().clone() for name, value in net.state_dict().items()}
    assert tcnn.check_equivalence(net, copy.deepcopy(net), torch.ones(2, *SIZE)).ok
    after = {name: value.to_dense() for name, value in net.state_dict().items()}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert net.none is None
    assert not hasattr(net, "added")


def test_random_numbers_of_all_kinds_are_the_same_for_both_and_come_back() -> None:
    net = _Gives(lambda x: x + random.random() + np.random.rand())
    states = random.getstate(), np.random.get_state()[1].tolist()
    assert tcnn.check_equivalence(net, copy.deepcopy(net), torch.ones(2, *SIZE)).ok
    assert states == (random.getstate(), np.random.get_state()[1].tolist())


def test_random_numbers_and_buffers_are_the_same_for_both_and_come_back() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), _Gives(lambda x: x + torch.randn(x.shape)))
    net[0].register_forward_hook(lambda m, _a, _o: m.num_batches_tracked.add_(1))
    state = torch.random.get_rng_state()
    assert tcnn.check_equivalence(net, copy.deepcopy(net), torch.ones(2, *SIZE)).ok
    assert torch.equal(state, torch.random.get_rng_state())
    assert net[0].num_batches_tracked == 0
    assert net.training


def test_a_network_that_does_not_run_is_one_line() -> None:
    cnn, hybrid, _ = pair()
    with pytest.raises(tcnn.TCNNError, match=r"TwoStage to run on images of 1×16×16, but") as error:
        tcnn.check_equivalence(cnn, hybrid, torch.zeros(2, 1, 16, 16))
    assert "\n" not in str(error.value)


def test_images_must_be_a_batch() -> None:
    cnn, hybrid, _ = pair()
    with pytest.raises(tcnn.TCNNError, match=r"batch \(B, C, H, W\), but got \(3, 16, 16\)"):
        tcnn.check_equivalence(cnn, hybrid, torch.zeros(*SIZE))
