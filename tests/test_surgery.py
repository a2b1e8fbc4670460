"""Recasting and restoring whole networks, and the networks that must be refused."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import tcnn
from nets import Bypassing, Gained, Renamed, Shared, Shouting, Tied, TwoStage, lively
from tcnn.layers import GPSA2d
from tcnn.surgery import RecastError

SIZE = (3, 16, 16)


def images(seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def everything(_name: str, _conv: nn.Conv2d) -> bool:
    return True


def same_function(a: nn.Module, b: nn.Module, x: Tensor | None = None) -> bool:
    x = images() if x is None else x
    with torch.no_grad():
        return torch.equal(a(x), b(x))


def test_default_targets_are_the_coarsest_grid() -> None:
    plan = tcnn.plan(TwoStage(), input_size=SIZE)
    assert {row.name: (row.grid, row.status) for row in plan} == {
        "stem": ((16, 16), "skipped"),
        "down": ((8, 8), "recast"),
        "mix": ((8, 8), "skipped"),
        "deep": ((8, 8), "recast"),
        "squeeze": ((1, 1), "skipped"),
    }


def test_default_targets_leave_out_patches_and_large_kernels() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 4, 9, padding=4),
        nn.Conv2d(4, 4, 4, stride=4),
    )
    plan = tcnn.plan(net, input_size=SIZE)
    assert [row.name for row in plan.taken] == ["0"]
    assert "81 taps" in plan.rows[1].reason and "patchify" in plan.rows[2].reason
    assert len(tcnn.plan(net, "*", input_size=SIZE).taken) == 3  # asked for by name


def test_plan_counts_match_the_recast_network() -> None:
    for config in (tcnn.GPSAConfig(), tcnn.GPSAConfig(positions="learned", qk_dim=5)):
        net = TwoStage()
        plan = tcnn.plan(net, "*", config, SIZE)
        hybrid = tcnn.recast(net, "*", config, SIZE)
        added = sum(p.numel() for p in hybrid.parameters()) - sum(
            p.numel() for p in net.parameters()
        )
        assert sum(row.parameters for row in plan) == added
        assert [row.name for row in plan.taken] == [
            name for name, module in hybrid.named_modules() if isinstance(module, GPSA2d)
        ]


@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_plan_flops_match_the_flop_counter(positions: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    net = nn.Sequential(nn.Conv2d(6, 4, (3, 5), stride=2, padding=(1, 2), groups=2))
    config = tcnn.GPSAConfig(positions=positions, gate_init=0.5)  # type: ignore[arg-type]
    (row,) = tcnn.plan(net, None, config, (6, 12, 10))
    hybrid, x = tcnn.recast(net, None, config, (6, 12, 10)), torch.randn(1, 6, 12, 10)
    counts = []
    for model in (net, hybrid):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        counts.append(counter.get_total_flops())
    assert row.flops == counts[1] - counts[0]


def test_recast_leaves_the_network_as_it_was() -> None:
    net = lively(TwoStage()).train()
    net.norm.eval()
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    random = torch.random.get_rng_state()
    tcnn.plan(net, input_size=SIZE)
    assert torch.equal(random, torch.random.get_rng_state())
    hybrid = tcnn.recast(net, input_size=SIZE)
    assert not any(isinstance(module, GPSA2d) for module in net.modules())
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True)
    )
    assert modes == [module.training for module in net.modules()]
    assert not any(module._forward_hooks for module in (*net.modules(), *hybrid.modules()))
    pointers = {p.data_ptr() for p in net.parameters()}
    assert pointers.isdisjoint(p.data_ptr() for p in hybrid.parameters())


@pytest.mark.parametrize("train", [True, False])
def test_training_and_evaluating_networks_stay_equal(train: bool) -> None:
    """In train mode too: BatchNorm's batch statistics come out the same."""
    net = lively(TwoStage()).train(train)
    hybrid = tcnn.recast(net, everything, input_size=SIZE)
    assert torch.equal(net(images()), hybrid(images()))
    assert torch.equal(net.norm.running_mean, hybrid.norm.running_mean)
    assert all(module.training is train for module in hybrid.modules())


def test_second_recast_takes_only_what_is_still_a_convolution() -> None:
    net = lively(TwoStage()).eval()
    first = tcnn.recast(net, "deep", input_size=SIZE)
    with torch.no_grad():
        first.get_submodule("deep").gating_param.fill_(0.25)  # type: ignore[operator,union-attr]
    second = tcnn.recast(first, input_size=SIZE)
    assert isinstance(second.down, GPSA2d) and isinstance(second.stem, nn.Conv2d)
    assert same_function(first, second)
    with pytest.raises(RecastError, match="2 are recast already"):
        tcnn.recast(second, input_size=SIZE)


def test_cnn_checkpoint_loads_into_the_hybrid() -> None:
    net, other = lively(TwoStage(), 1).eval(), lively(TwoStage(), 2).eval()
    hybrid = tcnn.recast(net, everything, input_size=SIZE)
    missing, unexpected = hybrid.load_state_dict(other.state_dict(), strict=False)
    assert not unexpected
    assert {key.rpartition(".")[2] for key in missing} <= {"weight", "gating_param"}
    assert same_function(hybrid, other)


def test_restore_returns_the_same_network() -> None:
    net = lively(TwoStage()).eval()
    cnn = tcnn.restore(tcnn.recast(net, everything, input_size=SIZE))
    assert [type(m) for m in cnn.modules()] == [type(m) for m in net.modules()]
    assert list(cnn.state_dict()) == list(net.state_dict())
    assert same_function(net, cnn)


def test_restore_names_what_it_leaves() -> None:
    hybrid = tcnn.recast(TwoStage(), everything, input_size=SIZE)
    with torch.no_grad():
        hybrid.deep.gating_param[3] = -0.1
    with pytest.warns(UserWarning, match=r"deep: 1 of 9 heads attend to content .* 0\.1"):
        cnn = tcnn.restore(hybrid)
    assert [n for n, m in cnn.named_modules() if isinstance(m, GPSA2d)] == ["deep"]
    with pytest.raises(RecastError, match="no GPSA2d to restore"):
        tcnn.restore(TwoStage())


def test_restore_of_learned_positions_needs_them_in_place() -> None:
    config = tcnn.GPSAConfig(positions="learned")
    hybrid = tcnn.recast(TwoStage(), ["down", "deep"], config, SIZE)
    with torch.no_grad():
        hybrid.down.v_pos[4, 1] += 15.0
    with pytest.warns(UserWarning, match="down: learned positions spread"):
        cnn = tcnn.restore(hybrid)
    assert isinstance(cnn.deep, nn.Conv2d) and isinstance(cnn.down, GPSA2d)


def test_root_convolution() -> None:
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    layer = tcnn.recast(conv, input_size=SIZE)
    assert isinstance(layer, GPSA2d) and same_function(conv, layer)
    assert type(tcnn.restore(layer)) is nn.Conv2d


def test_shared_modules_stay_shared() -> None:
    net = Shared()
    plan = tcnn.plan(net, input_size=SIZE)
    assert len(plan) == 1 and plan.rows[0].grid == (16, 16)
    hybrid = tcnn.recast(net, "second", input_size=SIZE)
    assert hybrid.first is hybrid.second and isinstance(hybrid.first, GPSA2d)
    assert same_function(net, hybrid)


def test_tied_weights_stay_tied() -> None:
    net = Tied()
    for hybrid in (tcnn.recast(net, "*", input_size=SIZE), tcnn.recast(net, "two", None, SIZE)):
        assert hybrid.one.weight is hybrid.two.weight
        assert same_function(net, hybrid)
    cnn = tcnn.restore(hybrid)
    assert cnn.one.weight is cnn.two.weight


def test_convolutions_that_are_only_read_are_left_out() -> None:
    net = Bypassing()
    plan = tcnn.plan(net, "*", input_size=SIZE)
    assert [(row.name, row.status) for row in plan] == [("read", "skipped"), ("both", "recast")]
    assert "another module reads its weights" in plan.rows[0].reason
    assert same_function(net, tcnn.recast(net, "*", input_size=SIZE))
    with pytest.raises(RecastError, match="never called"):
        tcnn.recast(net, "read", input_size=SIZE)


def test_everything_about_a_convolution_is_kept() -> None:
    net = TwoStage().double().to(memory_format=torch.channels_last).eval()
    net.deep.weight.requires_grad_(False)
    net.deep.train()
    seen: list[str] = []
    net.deep.register_forward_hook(lambda m, _a, _o: seen.append(type(m).__name__))
    net.deep.register_forward_pre_hook(lambda _m, a: (a[0] * 2,))
    net.deep.register_full_backward_hook(lambda _m, _i, _o: seen.append("backward"))
    hybrid = tcnn.recast(net, "deep", input_size=SIZE)
    x = images(dtype=torch.float64)
    expected = net(x)
    seen.clear()
    assert torch.equal(hybrid(x), expected)
    hybrid(x).sum().backward()
    assert seen == ["GPSA2d", "GPSA2d", "backward"]
    layer = hybrid.deep
    assert not layer.weight.requires_grad and layer.gating_param.requires_grad
    assert layer.training and not hybrid.training
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    back = tcnn.restore(hybrid)
    assert len(back.deep._forward_hooks) == 1 and not back.deep.weight.requires_grad
    assert torch.equal(back(x), expected)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_weights_are_carried_over(name: str) -> None:
    net = TwoStage().train()
    getattr(parametrizations, name)(net.deep)
    buffers = copy.deepcopy(dict(net.deep.named_buffers()))
    hybrid = tcnn.recast(net, everything, input_size=SIZE)
    assert all(torch.equal(b, buffers[n]) for n, b in hybrid.deep.named_buffers())
    assert set(net.deep.state_dict()) <= set(hybrid.deep.state_dict())
    expected, got = net(images()), hybrid(images())
    assert torch.equal(expected, got)
    got.sum().backward()
    assert all(p.grad is not None for p in hybrid.deep.parametrizations.parameters())
    assert torch.equal(tcnn.restore(hybrid.eval())(images()), net.eval()(images()))


def test_subclasses_without_a_forward_of_their_own() -> None:
    net = nn.Sequential(Renamed(3))
    hybrid = tcnn.recast(net, input_size=SIZE)
    assert same_function(net, hybrid)
    back = tcnn.restore(hybrid)[0]
    assert type(back) is Renamed and back.note == "kept"


def _old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 3, 3)))


def _patched() -> nn.Module:
    conv = nn.Conv2d(3, 3, 3)
    conv.forward = lambda input: nn.Conv2d.forward(conv, input) + 1  # type: ignore[method-assign]
    return nn.Sequential(conv)


def _qat() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.nn.qat import Conv2d
        from torch.ao.quantization import default_qat_qconfig

        return nn.Sequential(Conv2d(3, 3, 3, qconfig=default_qat_qconfig))


class _Quantised(nn.Parameter):
    """Stands for the tensor subclasses that sharding and quantisation put in a weight's place."""


def _tensor_subclass() -> nn.Module:
    conv = nn.Conv2d(3, 3, 3)
    conv.weight = _Quantised(conv.weight.detach())
    return nn.Sequential(conv)


def _pruned() -> nn.Module:
    return nn.Sequential(prune.random_unstructured(nn.Conv2d(3, 3, 3), "weight", 0.5))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: nn.Sequential(Shouting(3, 3, 3)), "Shouting has a forward of its own"),
        (lambda: nn.Sequential(Gained()), "holds gain beside weight and bias"),
        (_old_weight_norm, "recomputed by a hook"),
        (_pruned, "prune.remove"),
        (_patched, "`forward` was replaced on the instance"),
        (_qat, "has a forward of its own"),
        (_tensor_subclass, "_Quantised .sharded or quantised."),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 3, dtype=torch.complex64)), "complex64"),
    ],
)  # fmt: skip
def test_refused_by_name(build: Callable[[], nn.Module], said: str) -> None:
    net = build()
    with pytest.raises(RecastError, match=rf"0: .*{said}"):
        tcnn.recast(net, "*", input_size=SIZE)
    (row,) = tcnn.plan(net, "*", input_size=SIZE)
    assert row.status == "refused"
    with pytest.raises(ValueError, match=said):
        GPSA2d.from_conv2d(net[0])  # type: ignore[index,arg-type]


def test_default_targets_go_round_a_refused_convolution() -> None:
    net = nn.Sequential(Shouting(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
    hybrid = tcnn.recast(net, input_size=SIZE)
    assert isinstance(hybrid[1], GPSA2d) and isinstance(hybrid[0], Shouting)
    assert same_function(net, hybrid)


def test_lazy_modules() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.LazyConv2d(3, 3))
    with pytest.raises(RecastError, match="0 is not initialised yet: run one batch"):
        tcnn.recast(net, input_size=SIZE)
    assert isinstance(net[0], nn.LazyConv2d)
    with pytest.raises(ValueError, match="not initialised yet"):
        GPSA2d.from_conv2d(net[0])


class _DataParallel(nn.DataParallel):
    pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_wrapped_networks_are_refused_with_the_remedy() -> None:
    net = TwoStage()
    with pytest.raises(RecastError, match=r"recast its `\.module`"):
        tcnn.recast(_DataParallel(net), input_size=SIZE)
    with pytest.raises(RecastError, match=r"recast its `\._orig_mod`"):
        tcnn.recast(torch.compile(net), input_size=SIZE)  # type: ignore[arg-type]
    for scripted in (torch.jit.script(net), nn.Sequential(torch.jit.script(net))):
        with pytest.raises(RecastError, match="recast the Python model, then script it"):
            tcnn.recast(scripted, input_size=SIZE)


def test_distributed_data_parallel_is_refused() -> None:
    from torch import distributed

    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        wrapped = nn.parallel.DistributedDataParallel(TwoStage())
        with pytest.raises(RecastError, match=r"DistributedDataParallel: recast its `\.module`"):
            tcnn.recast(wrapped, input_size=SIZE)
    finally:
        distributed.destroy_process_group()


class _TestsTheClass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x) if isinstance(module, nn.Conv2d) else x
        return x


class _ClosesOver(nn.Module):
    """Calls its convolution through a function, which goes on calling the original's in a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)
        self.call = lambda x: self.a(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


class _HoldsInAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)
        self.all = [self.a]

    def forward(self, x: Tensor) -> Tensor:
        return self.all[0](x)


class _SumsParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + sum(p.abs().sum() for p in self.a.parameters())


class _ReachesIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.a._conv_forward(x, self.a.weight, None)


class _Traces(nn.Module):
    """Keeps features by a hook that closes over the network, and gives those."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)
        self.found: dict[str, Tensor] = {}
        self.a.register_forward_hook(lambda _m, _a, y: self.found.update(a=y))

    def forward(self, x: Tensor) -> Tensor:
        self.a(x)
        return self.found["a"]


@pytest.mark.parametrize(
    "kind", [_TestsTheClass, _ClosesOver, _HoldsInAList, _SumsParameters, _ReachesIn, _Traces]
)
@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_what_would_be_silently_different_is_refused(kind: type[nn.Module], positions: str) -> None:
    torch.manual_seed(0)
    net = kind()
    config = tcnn.GPSAConfig(positions=positions, gate_init=0.5)  # type: ignore[arg-type]
    with pytest.raises(RecastError, match="leave this one out") as error:
        tcnn.recast(net, "*", config, SIZE)
    assert "\n" not in str(error.value)


class _Picky(nn.Module):
    """Takes pixels in [0, 1] alone, and has NaN in its output."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.min() < 0 or x.max() > 1:
            raise ValueError("Expected pixels in [0, 1]")
        y = self.a((x + 1e-3).log())
        return torch.where(y > 0, y, torch.nan)


class _Empty(nn.Module):
    """Takes an empty image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.any():
            raise ValueError("Expected an empty image")
        return self.a(x)


@pytest.mark.parametrize("kind", [_Picky, _Empty])
def test_networks_with_a_domain_of_their_own_are_not_refused(kind: type[nn.Module]) -> None:
    assert isinstance(tcnn.recast(kind(), input_size=SIZE).a, GPSA2d)


def test_a_small_difference_behind_a_large_value_is_seen() -> None:
    class Hides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).mean((2, 3))
            y = y if isinstance(self.a, nn.Conv2d) else y + 1e-3
            return torch.cat([y, torch.full((len(x), 1), 640.0)], dim=1)

    with pytest.raises(RecastError, match="leave this one out"):
        tcnn.recast(Hides(), input_size=SIZE)


def test_a_network_that_is_not_deterministic_is_named_as_such() -> None:
    class Counts(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            Counts.calls += 1
            return self.a(x) + Counts.calls

    with pytest.raises(RecastError, match="gives the same output twice"):
        tcnn.recast(Counts(), input_size=SIZE)


def test_attributes_that_mean_something_else_here_are_refused() -> None:
    for name in ("config", "attention", "to_conv2d"):
        net = TwoStage()
        setattr(net.deep, name, "mine")
        with pytest.raises(RecastError, match=f"attribute `{name}`"):
            tcnn.recast(net, "deep", input_size=SIZE)


def test_a_hybrid_made_in_inference_mode_can_be_trained() -> None:
    net = TwoStage()
    with torch.inference_mode():
        hybrid = tcnn.recast(net, input_size=SIZE)
        again = tcnn.recast(tcnn.restore(hybrid), input_size=SIZE)
    for network in (hybrid, again):
        network(torch.randn(2, *SIZE)).sum().backward()


def test_what_a_network_notes_on_a_convolution_is_kept() -> None:
    class Notes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3, padding=1)
            self.a.activate = True  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).relu() if self.a.activate else self.a(x)

    net = Notes()
    hybrid = tcnn.recast(net, "*", input_size=SIZE)
    assert same_function(net, hybrid)
    hybrid.a.activate = False
    assert tcnn.restore(hybrid).a.activate is False


class _Dilates(nn.Module):
    """Runs one convolution with several settings (TridentNet's weight sharing)."""

    def __init__(self, strides: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)
        self.strides = strides

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(())
        for step in (1, 2, 3):
            self.a.dilation = self.a.padding = (step, step)
            if self.strides:
                self.a.stride = step  # one number, as F.conv2d takes it
            y = y + self.a(x).mean((2, 3), keepdim=True).sin()
        return y


@pytest.mark.parametrize("strides", [False, True])
def test_settings_changed_at_run_time(strides: bool) -> None:
    torch.manual_seed(0)
    net = _Dilates(strides)
    hybrid = tcnn.recast(net, "*", input_size=SIZE)
    assert same_function(net, hybrid)
    assert same_function(net, tcnn.restore(hybrid))
    with pytest.raises(RecastError, match="changes from call to call"):
        tcnn.recast(net, "*", tcnn.GPSAConfig(positions="learned"), SIZE)


def test_restoring_keeps_settings_changed_since() -> None:
    for change in ({"stride": (2, 2)}, {"padding_mode": "circular"}, {"padding": 2}):
        layer = GPSA2d(3, 3, 3, padding=1)
        for name, value in change.items():
            setattr(layer, name, value)
        x = torch.randn(2, 3, 9, 8)
        assert torch.equal(layer.eval()(x), layer.to_conv2d()(x))


def test_hooks_on_gradients_are_refused() -> None:
    net = TwoStage()
    net.stem.weight.register_hook(lambda g: g * 0)
    with pytest.raises(RecastError, match=r"stem\.weight has a hook on its gradient"):
        tcnn.recast(net, "deep", input_size=SIZE)
    net = TwoStage()
    net.deep.register_backward_hook(lambda _m, i, _o: i)
    with pytest.raises(RecastError, match="register_full_backward_hook"):
        tcnn.recast(net, "deep", input_size=SIZE)


def test_attributes_of_parameters_and_hooks_of_state_dicts_are_kept() -> None:
    net = TwoStage()
    net.stem.weight.lr_scale = 3.0  # type: ignore[attr-defined]
    net.deep.weight.lr_scale = 2.0  # type: ignore[attr-defined]
    seen: list[nn.Module] = []
    net.deep.register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    hybrid = tcnn.recast(net, "deep", input_size=SIZE)
    assert (hybrid.stem.weight.lr_scale, hybrid.deep.weight.lr_scale) == (3.0, 2.0)
    hybrid.load_state_dict(hybrid.state_dict())
    assert seen == [hybrid.deep]


def test_planning_changes_nothing_of_the_network() -> None:
    class Starts(nn.Module):
        """Takes its shift from the first batch, as ActNorm does."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("started", torch.tensor(False))

        def forward(self, x: Tensor) -> Tensor:
            if not self.started:
                self.mean = x.mean((0, 2, 3)) + 1
                self.started.fill_(True)
            return self.conv(x - self.mean.view(-1, 1, 1))

    net = Starts()
    mean = net.mean
    hybrid = tcnn.recast(net, "*", input_size=SIZE)
    for network in (net, hybrid):
        assert not network.started
        assert not network.mean.any()
    assert net.mean is mean


def test_weights_that_disagree_with_the_settings() -> None:
    for shape in ((3, 2, 3, 3), (3, 3, 1, 1)):
        net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
        net[0].weight = nn.Parameter(torch.zeros(shape))
        with pytest.raises(RecastError, match="its attributes say 3×3×3×3"):
            tcnn.recast(net, lambda _name, _conv: True, input_size=(shape[1], 16, 16))
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"))
    net[0].padding = (2, 2)
    with pytest.raises(RecastError, match="padding was changed after construction"):
        tcnn.recast(net, "*", input_size=SIZE)


def test_misuse_is_told_in_one_line() -> None:
    net = TwoStage()
    for arguments, said in (
        ({"targets": 5}, "`targets` to be a glob"),
        ({"targets": [1]}, "`targets` to be a glob"),
        ({"input_size": 5}, "`input_size` as"),
        ({"input_size": (3, 0, 4)}, "`input_size` as"),
        ({"cnn": lambda x: x}, "an nn.Module, but got function"),
    ):
        with pytest.raises(RecastError, match=said):
            tcnn.plan(**{"cnn": net, "input_size": SIZE, **arguments})
    net.pretrained_cfg = {"input_size": 224}  # type: ignore[assignment]
    assert tcnn.plan(net).input_size == (3, 224, 224)


def test_fx_graph_modules_are_exact() -> None:
    net = lively(TwoStage()).eval()
    traced = torch.fx.symbolic_trace(net)
    hybrid = tcnn.recast(traced, everything, input_size=SIZE)
    assert isinstance(hybrid.deep, GPSA2d) and same_function(net, hybrid)


def test_hybrids_pickle_and_copy() -> None:
    hybrid = tcnn.recast(TwoStage().eval(), everything, input_size=SIZE)
    assert same_function(hybrid, pickle.loads(pickle.dumps(hybrid)))
    assert same_function(hybrid, copy.deepcopy(hybrid))


def test_errors_finish_the_sentence() -> None:
    net = TwoStage()
    with pytest.raises(RecastError) as error:
        tcnn.plan(net, "sten", input_size=SIZE)
    assert str(error.value) == "targets='sten' matched none of 5 Conv2d; nearest: stem"
    with pytest.raises(RecastError, match="matched none"):
        tcnn.recast(net, ["stem", "layer*"], input_size=SIZE)
    with pytest.raises(RecastError, match=r"holds no nn\.Conv2d: there is nothing to recast"):
        tcnn.recast(nn.Linear(3, 3))
    with pytest.raises(
        RecastError, match=r"1×16×16, but TwoStage raised RuntimeError: .*input_size="
    ):
        tcnn.plan(net, input_size=(1, 16, 16))
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(RecastError, match="its kernel is its stride"):
        tcnn.recast(nn.Sequential(nn.Conv2d(3, 8, 4, stride=4)), input_size=SIZE)
