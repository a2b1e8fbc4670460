"""Networks side by side, and `tcnn benchmark` by its real door."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tcnn
from nets import TwoStage
from tcnn.__main__ import main
from tcnn.benchmark import BenchmarkError, benchmark, opponents
from tcnn.layers import gpsa_layers

NET = "tcnn.networks:cifar_resnet"
SETTINGS = ["--model_settings", "{depth: 8, widths: [4, 8, 8]}"]
QUICK = ["--runs", "3", "--batch", "2"]
WORKS = ["forward", "forward and backward", "training step"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def small() -> nn.Module:
    torch.manual_seed(0)
    return tcnn.load_model(NET, depth=8, widths=[4, 8, 8])


class Doubling(nn.Module):
    """Holds 4 bytes · `size` of its own while it runs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.ones(1))
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        torch.empty(self.size)
        return self.weight * x.mean()


# What a network is held against


def test_an_exact_hybrid_has_its_own_cnn() -> None:
    cnn = small()
    hybrid = tcnn.recast(cnn)
    found = opponents(hybrid)
    assert list(found.networks) == ["CNN", "hybrid"]
    assert found.networks["hybrid"] is hybrid
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.networks["CNN"].eval()(x), cnn.eval()(x))
    assert not gpsa_layers(found.networks["CNN"])
    assert found.remark == (
        "The CNN is the hybrid restored, which is exact; 0 of the hybrid's 18 heads are open."
    )


@pytest.mark.parametrize("gate", ["linear", "sigmoid"])
@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_an_open_hybrid_has_a_cnn_of_its_kernels(gate: Any, positions: Any) -> None:
    cnn = small()
    config = tcnn.GPSAConfig(gate=gate, positions=positions, gate_init=0.7)
    hybrid = tcnn.recast(cnn, config=config)
    before = copy.deepcopy(hybrid.state_dict())
    found = opponents(hybrid)
    assert not gpsa_layers(found.networks["CNN"])
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.networks["CNN"].eval()(x), cnn.eval()(x))
    assert "of the same shapes, but not the same" not in found.remark
    assert "the same shapes, but not the same function, for 2 of 2 layers" in found.remark
    assert "18 of the hybrid's 18 heads are open" in found.remark
    assert all(torch.equal(before[name], value) for name, value in hybrid.state_dict().items())
    assert all(layer.config == config for layer in gpsa_layers(hybrid).values())


def test_a_cnn_has_two_hybrids() -> None:
    cnn = small()
    found = opponents(cnn)
    assert list(found.networks) == ["CNN", "hybrid, gates shut", "hybrid, gates open"]
    assert found.networks["CNN"] is cnn
    gates = [
        torch.cat([layer.gate for layer in gpsa_layers(network).values()]).unique().tolist()
        for network in list(found.networks.values())[1:]
    ]
    assert gates == [[1.0], [pytest.approx(0.7)]]
    assert "layer3.0.conv1, layer3.0.conv2 recast; open gates are at 0.7" in found.remark


# What is measured


def test_figures_and_their_order() -> None:
    sizes = [(3, 16, 16), (3, 8, 8)]
    networks = {"small": Doubling(1000), "large": Doubling(100_000)}
    said: list[str] = []
    result = benchmark(networks, sizes, batch=4, runs=3, say=said.append)
    expected = [(s, w, n) for s in sizes for w in WORKS for n in networks]
    assert [(c.size, c.work, c.network) for c in result.costs] == expected
    assert said == [f"{s[1]}×{s[2]} pixels: {w}" for s in sizes for w in WORKS]
    for cost in result.costs:
        assert cost.batch == 4
        assert len(cost.timing.seconds) == 3
        assert cost.images_per_second == pytest.approx(4 / cost.timing.spread.median)
    base = result.cost("small", "forward", sizes[0])
    other = result.cost("large", "forward", sizes[0])
    assert base.timing.ratio.median == base.peak_ratio == 1
    assert base.peak_bytes == pytest.approx(4000, abs=200)
    assert other.peak_bytes == pytest.approx(400_000, abs=200)
    assert other.peak_ratio == other.peak_bytes / base.peak_bytes
    assert all(network.steps == 0 for network in networks.values())  # copies ran
    with pytest.raises(KeyError):
        result.cost("none", "forward", sizes[0])


def test_networks_are_left_as_they_are() -> None:
    cnn = TwoStage()
    hybrid = tcnn.recast(cnn, input_size=(3, 16, 16))
    hybrid.get_submodule("down").train()
    hybrid.get_submodule("norm").eval()
    modes = {name: module.training for name, module in hybrid.named_modules()}
    before = copy.deepcopy(hybrid.state_dict())
    benchmark({"CNN": cnn, "hybrid": hybrid}, [(3, 16, 16)], batch=2, runs=3)
    assert all(torch.equal(before[name], value) for name, value in hybrid.state_dict().items())
    assert all(parameter.grad is None for parameter in hybrid.parameters())
    assert modes == {name: module.training for name, module in hybrid.named_modules()}


def test_memory_of_a_backward_pass_by_hand() -> None:
    """y = relu(conv(x)): the output of the convolution, its relu and its gradient, at the most."""
    network = nn.Sequential(nn.Conv2d(1, 16, 1, bias=False), nn.ReLU())
    result = benchmark({"net": network}, [(1, 32, 32)], batch=4, runs=3)
    tensor = 4 * 16 * 32 * 32 * 4
    forward, both, _ = (cost.peak_bytes for cost in result.costs)
    assert forward == pytest.approx(2 * tensor, rel=0.05)
    assert 3 * tensor < both < 6 * tensor


def test_options_reach_the_networks() -> None:
    seen: set[tuple[torch.dtype, bool, bool]] = set()

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> dict[str, Any]:
            last = {"memory_format": torch.channels_last}
            y = self.conv(x)
            kernel = self.conv.weight.is_contiguous(**last)
            seen.add((y.dtype, x.is_contiguous(**last), kernel))
            return {"logits": [y], "names": ("a",), "mask": y > 0}

    result = benchmark({"net": Watching()}, [(4, 8, 8)], batch=2, runs=3, bf16=True)
    assert seen == {(torch.bfloat16, False, False)}
    assert result.options == ("bfloat16", "channels first")
    seen.clear()
    benchmark({"net": Watching()}, [(4, 8, 8)], batch=2, runs=3, channels_last=True)
    assert seen == {(torch.float32, True, True)}


def test_a_network_that_does_not_train_on_the_batch() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    with pytest.raises(BenchmarkError, match=r"1×3×8×8, but net, forward and backward, raised Val"):
        benchmark({"net": network}, [(3, 8, 8)], batch=1, runs=3)


@pytest.mark.slow
def test_compiled() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    result = benchmark({"net": network}, [(3, 8, 8)], batch=2, runs=3, compiled=True)
    assert result.options == ("float32", "channels first", "compiled")
    assert len(result.costs) == 3


# The command


def test_a_cnn_and_its_hybrids(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["benchmark", NET, *SETTINGS, *QUICK, "--size", "16", "--size=8", "--out", "a/b.json"]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "layer3.0.conv1, layer3.0.conv2 recast" in out
    assert out.index("16×16 pixels: forward") < out.index("8×8 pixels: training step")
    saved = json.loads(Path("a/b.json").read_text())
    assert [cost["size"] for cost in saved["costs"]] == [[3, 16, 16]] * 9 + [[3, 8, 8]] * 9
    assert [cost["work"] for cost in saved["costs"][::3]] == WORKS * 2
    assert {"torch", "tcnn"} <= saved["versions"].keys()
    assert saved["runs"] == 3
    for cost in saved["costs"]:
        line = next(
            line
            for line in out.splitlines()
            if line.split()[:1] == [f"{cost['size'][1]}×{cost['size'][1]}"]
            and f"  {cost['work']}  " in line
            and f"  {cost['network']}  " in line
        )
        assert f"{cost['median_ms']:.1f}" in line
        assert f"{cost['ratio']:.3f}" in line
        assert f"{cost['peak_mib']:.1f}" in line


def test_a_saved_hybrid_with_options(capsys: pytest.CaptureFixture[str]) -> None:
    hybrid = tcnn.recast(small())
    with torch.no_grad():
        hybrid.get_submodule("layer3.0.conv1").gating_param[:2] = 0.3
    tcnn.save(hybrid, "hybrid")
    threads = torch.get_num_threads()
    flags = ["--bf16", "--channels_last", "--threads", str(threads + 1), "--size", "16"]
    assert main(["benchmark", "hybrid", *QUICK, *flags]) == 0
    out = capsys.readouterr().out
    assert "not the same function, for 1 of 2 layers are no convolutions" in out
    assert "2 of the hybrid's 18 heads are open" in out
    assert "Batch 2, bfloat16, channels last; " in out
    assert f"{threads + 1} threads" in out
    assert torch.get_num_threads() == threads


def test_sizes_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bench.yaml").write_text(f"model: {NET}\nsize: [8]\nruns: 3\nbatch: 1\n")
    args = ["benchmark", "--config", "bench.yaml", *SETTINGS]
    assert main(args) == 0
    assert "8×8 pixels" in capsys.readouterr().out
    assert main([*args, "--size", "12"]) == 0
    out = capsys.readouterr().out
    assert "12×12 pixels" in out
    assert "8×8 pixels" not in out


@pytest.mark.parametrize(
    ("code", "args", "said"),
    [
        (2, (NET, "--size", "x"), "Expected --size to be"),
        (2, (NET, "--rnus", "3"), "the nearest is --runs"),
        (1, (NET, "--runs", "2"), "Expected --runs from 3 up, but got 2"),
        (1, (NET, "--batch", "0"), "Expected --batch from 1 up, but got 0"),
        (1, (NET, "--threads", "0"), "Expected --threads from 1 up, but got 0"),
        (1, (NET, "--size", "0"), "Expected --size from 1 up, but got [0]"),
        (1, (NET, "--out", "."), "Expected --out to be a file"),
        (1, (NET, "--out", "file/x.json"), "can be written to"),
        (1, ("nowhere",), "none of these"),
        (1, ("timm:mixer_s16_224", *QUICK), "patchify"),
        (1, ("nets:Shared", *QUICK, "--size", "2", "--batch", "100000000000"), "enough memory"),
    ],
)
def test_errors(
    capsys: pytest.CaptureFixture[str], code: int, args: tuple[str, ...], said: str
) -> None:
    Path("file").touch()
    try:
        found = main(["benchmark", *args])
    except SystemExit as end:
        found = end.code
    captured = capsys.readouterr()
    assert found == code
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("tcnn benchmark: error: ")
