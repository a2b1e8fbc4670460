"""Two processes with a part of the batch each, against one with all of it."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import FrozenBatchNorm2d

import tcnn
from tcnn import distributed
from tcnn.distributed import synchronized_batch_norm

PARTS = (slice(0, 3), slice(3, 8))  # unequal
STEPS = 2


def stack(*norms: nn.Module) -> nn.Module:
    """Each norm behind a convolution, with a curve between them."""
    return nn.Sequential(*(m for n in norms for m in (nn.Conv2d(4, 4, 3), n, nn.Tanh())))


# Network, shape of an image, norms that are synchronised.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "stacked": (lambda: stack(nn.BatchNorm2d(4), nn.BatchNorm2d(4, eps=0.1)), (4, 7, 6), 2),
    "timm": (lambda: stack(BatchNormAct2d(4, act_layer=nn.SiLU)), (4, 5, 5), 1),
    "vectors": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,), 1),
    "sequences": (lambda: nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4)), (4, 5), 1),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(4, 4, 2), nn.BatchNorm3d(4)), (4, 3, 3, 4), 1),
    "cumulative": (lambda: stack(nn.BatchNorm2d(4, momentum=None)), (4, 5, 5), 1),
    "momentum": (lambda: stack(nn.BatchNorm2d(4, momentum=0.7)), (4, 5, 5), 1),
    "not affine": (lambda: stack(nn.BatchNorm2d(4, affine=False)), (4, 5, 5), 1),
    "untracked": (lambda: stack(nn.BatchNorm2d(4, track_running_stats=False)), (4, 5, 5), 1),
    "frozen": (lambda: stack(FrozenBatchNorm2d(4), nn.BatchNorm2d(4).eval()), (4, 7, 7), 1),
}


def network(case: str) -> nn.Module:
    """The same in every process; the modes are those of training."""
    torch.manual_seed(0)
    model = CASES[case][0]().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def batch(case: str, step: int) -> tuple[Tensor, Tensor]:
    """Images, and two numbers for each that make its loss unlike the others'."""
    generator = torch.Generator().manual_seed(step)
    shape = CASES[case][1]
    images = 3 + torch.randn(8, *shape, generator=generator, dtype=torch.float64)
    return images, torch.randn(2, 8, generator=generator, dtype=torch.float64)


def run(model: nn.Module, case: str, part: slice, device: str = "cpu") -> dict[str, Tensor]:
    """Outputs and gradients of `STEPS` steps without an optimiser, and what the model ends with."""
    record: dict[str, Tensor] = {}
    for step in range(STEPS):
        images, (linear, square) = batch(case, step)
        x = images[part].to(device).requires_grad_()
        y = model(x).flatten(1).cos()
        rest = (linear[part].to(device), square[part].to(device))
        ((y.sum(dim=1) * rest[0]).sum() + (y.square().sum(dim=1) * rest[1]).sum()).backward()
        record |= {f"output {step}": y.detach(), f"input gradient {step}": x.grad}
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    record |= {f"gradient of {name}": p.grad for name, p in inner.named_parameters()}
    record |= dict(inner.named_buffers())
    return {name: value.cpu() for name, value in record.items() if value is not None}


def work(rank: int, folder: Path, device: str) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(PARTS)
    )
    record: dict[str, Any] = {}
    for case in CASES:
        model = network(case).to(device)
        with synchronized_batch_norm(model) as record[f"count of {case}"]:
            # Buffers are not broadcast: each process must come to the same by itself.
            wrapped = DistributedDataParallel(model, broadcast_buffers=False)
            record[case] = run(wrapped, case, PARTS[rank], device)
            model.eval()
            record[f"{case} in eval mode"] = model(batch(case, 0)[0].to(device)).detach().cpu()
        record[f"{case} outside"] = model(batch(case, 0)[0].to(device)).detach().cpu()
    record["far from zero"] = far_from_zero(PARTS[rank], device)
    record["nothing here"] = nothing_here(rank, device)
    torch.save(record, folder / f"{rank}.pt")
    dist.destroy_process_group()


def far_from_zero(part: slice, device: str) -> Tensor:
    """In float32, a mean 1e4 standard deviations away."""
    norm = nn.BatchNorm2d(4, eps=0, device=device)
    with synchronized_batch_norm(norm):
        y: Tensor = norm(distant()[part].to(device)).detach().cpu()
    return y


def distant() -> Tensor:
    return 1000 + 0.1 * batch("stacked", 0)[0].float()


def nothing_here(rank: int, device: str) -> dict[str, Tensor]:
    """The whole batch in one process, none in the other."""
    norm = nn.BatchNorm1d(4, dtype=torch.float64, device=device)
    x = batch("vectors", 0)[0].to(device)[slice(8) if rank else slice(0)].requires_grad_()
    with synchronized_batch_norm(norm):
        y = norm(x)
        y.pow(3).sum().backward()
    record = {"output": y.detach(), "input gradient": x.grad, "variance": norm.running_var}
    return {name: value.cpu() for name, value in record.items() if value is not None}


def records(folder: Path, device: str) -> list[dict[str, Any]]:
    torch.multiprocessing.spawn(work, (folder, device), nprocs=len(PARTS))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(PARTS))]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return records(tmp_path_factory.mktemp("two"), "cpu")


def compare(both: list[dict[str, Any]], case: str, tolerance: float) -> None:
    whole = run(network(case), case, slice(None))
    parts = [process[case] for process in both]
    assert parts[0].keys() == parts[1].keys() == whole.keys()
    for name, expected in whole.items():
        if name.startswith(("output", "input")):
            got = [torch.cat([part[name] for part in parts])]
        elif name.startswith("gradient"):
            got = [len(PARTS) * part[name] for part in parts]  # averaged, where losses are sums
        else:
            got = [part[name] for part in parts]
        for value in got:
            scale = expected.double().abs().max().item()
            torch.testing.assert_close(value, expected, rtol=0, atol=tolerance * max(scale, 1))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(both: list[dict[str, Any]], case: str) -> None:
    compare(both, case, 1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_processes_on_a_gpu_are_one(tmp_path: Path) -> None:
    both = records(tmp_path, "cuda")
    for case in CASES:
        compare(both, case, 1e-10)


@pytest.mark.parametrize("case", CASES)
def test_count_and_eval_mode(both: list[dict[str, Any]], case: str) -> None:
    for process in both:
        assert process[f"count of {case}"] == CASES[case][2]
        assert torch.equal(process[f"{case} in eval mode"], process[f"{case} outside"])


def test_the_cases_can_fail() -> None:
    """Without synchronisation the parts differ from the whole by far more than is let through."""
    for case in CASES.keys() - {"frozen"}:
        whole = run(network(case), case, slice(None))
        part = run(network(case), case, PARTS[0])
        assert (part["output 0"] - whole["output 0"][PARTS[0]]).abs().max() > 1e-3


def test_no_cancellation_far_from_zero(both: list[dict[str, Any]]) -> None:
    x = distant().double()
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True, correction=0)
    got = torch.cat([process["far from zero"] for process in both])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), (x - mean) / std, rtol=0, atol=1e-3)


def test_a_process_without_images(both: list[dict[str, Any]]) -> None:
    norm = nn.BatchNorm1d(4, dtype=torch.float64)
    x = batch("vectors", 0)[0].requires_grad_()
    y = norm(x)
    y.pow(3).sum().backward()
    empty, whole = (process["nothing here"] for process in both)
    assert empty["output"].shape == empty["input gradient"].shape == (0, 4)
    torch.testing.assert_close(whole["output"], y.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole["input gradient"], x.grad, rtol=1e-12, atol=1e-12)
    for process in (empty, whole):
        torch.testing.assert_close(process["variance"], norm.running_var, rtol=1e-12, atol=0)


@pytest.fixture
def world_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("case", CASES)
def test_one_process_is_unchanged_to_the_bit(case: str, world_of_one: None) -> None:
    model = network(case)
    with synchronized_batch_norm(model):
        inside = run(model, case, slice(None))
    for name, expected in run(network(case), case, slice(None)).items():
        assert torch.equal(inside[name], expected), name


def test_without_a_process_group() -> None:
    model = network("timm")
    with synchronized_batch_norm(model):
        inside = run(model, "timm", slice(None))
    for name, expected in run(network("timm"), "timm", slice(None)).items():
        assert torch.equal(inside[name], expected), name


def traits(model: nn.Module) -> list[object]:
    return [repr(model), list(model.state_dict()), [m.__dict__.keys() for m in model.modules()]]


def test_nothing_is_left() -> None:
    model = nn.Sequential(network("timm"), network("vectors"))
    types, before = [type(m) for m in model.modules()], traits(model)
    with (
        pytest.raises(KeyError, match="on the way out"),
        synchronized_batch_norm(model) as count,
    ):
        assert count == 2
        assert traits(model) == before
        assert [type(m).__name__ for m in model.modules()] == [kind.__name__ for kind in types]
        assert all(isinstance(m, kind) for m, kind in zip(model.modules(), types, strict=True))
        assert [type(m) for m in model.modules()] != types
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert [type(m) for m in copied.modules()] == types
            assert traits(copied) == before
            for name, value in copied.state_dict().items():
                assert torch.equal(value, model.state_dict()[name])
        raise KeyError("on the way out")
    assert [type(m) for m in model.modules()] == types
    assert traits(model) == before


def test_a_model_that_is_a_norm() -> None:
    norm = nn.BatchNorm2d(4)
    with synchronized_batch_norm(norm) as count:
        assert count == 1
        assert type(norm) is not nn.BatchNorm2d
    assert type(norm) is nn.BatchNorm2d


def test_torch_synchronises_its_own() -> None:
    with synchronized_batch_norm(nn.Sequential(nn.SyncBatchNorm(4), nn.InstanceNorm2d(4))) as count:
        assert count == 0


def test_saved_files_are_the_same(tmp_path: Path) -> None:
    model = network("stacked")
    tcnn.save(model, tmp_path / "outside")
    with synchronized_batch_norm(model):
        tcnn.save(model, tmp_path / "inside")
    for name in ("model.safetensors", "tcnn.json"):
        outside, inside = ((tmp_path / at / name).read_bytes() for at in ("outside", "inside"))
        assert inside == outside


def test_the_kernels_on_a_gpu_take_their_arguments_in_this_order() -> None:
    """PyTorch's autograd function has no public contract, and takes no keywords."""
    names = list(inspect.signature(distributed.FusedBatchNorm.forward).parameters)[1:]
    assert names == [
        "input", "weight", "bias", "running_mean", "running_var", "eps", "momentum",
        "process_group", "world_size",
    ]  # fmt: skip
