"""Networks side by side: time and memory of forward, backward and training step, in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from tcnn.benchmark_result import BenchmarkResult, NetworkCost
from tcnn.errors import TCNNError, is_out_of_memory
from tcnn.gpsa_config import GPSAConfig
from tcnn.layers import gpsa_layers
from tcnn.provenance import provenance
from tcnn.surgery import not_restorable, recast, restore
from tcnn.timing import Call, alternate, peak_memory

OPEN_GATE = 0.7
_LEARNING_RATE = 1e-6  # real steps that leave the network, and so its speed, where it is


class BenchmarkError(TCNNError):
    """A network cannot be measured; the message says why and what to do."""


@dataclass(frozen=True)
class Opponents:
    """A CNN and hybrids of it.

    Attributes:
        networks: by name, the CNN first.
        remark: where the CNN comes from, and what is recast.
    """

    networks: dict[str, nn.Module]
    remark: str


def opponents(network: nn.Module, input_size: tuple[int, int, int] | None = None) -> Opponents:
    """What a network is to be held against.

    A hybrid has the CNN that `restore` makes of it where that is exact. Where it is not, its
    layers' kernels as convolutions: a CNN of the same shapes, and so of the same cost, but of
    another function. A CNN has two hybrids, the default targets recast: with its own function, and
    with every gate open.

    Args:
        network: a hybrid, or a CNN.
        input_size: (C, H, W) that the targets of a CNN are chosen for; None is its own.

    Raises:
        RecastError: as from `recast` and `restore`.
    """
    layers = gpsa_layers(network)
    if not layers:
        shut = recast(network, input_size=input_size)
        opened = recast(network, config=GPSAConfig(gate_init=OPEN_GATE), input_size=input_size)
        return Opponents(
            {"CNN": network, "hybrid, gates shut": shut, "hybrid, gates open": opened},
            f"The hybrids are the CNN with {', '.join(gpsa_layers(shut))} recast; open gates are "
            f"at {OPEN_GATE}.",
        )
    shares = torch.cat([layer.content_share.detach().flatten() for layer in layers.values()])
    heads = f"{int(shares.count_nonzero())} of the hybrid's {len(shares)} heads are open"
    left = not_restorable(network)
    if not left:
        cnn, source = restore(network), "The CNN is the hybrid restored, which is exact"
    else:
        cnn = _as_convolutions(network)
        source = (
            "The CNN has the hybrid's kernels as convolutions: the same shapes, but not the same "
            f"function, for {len(left)} of {len(layers)} layers are no convolutions"
        )
    return Opponents({"CNN": cnn, "hybrid": network}, f"{source}; {heads}.")


def _as_convolutions(hybrid: nn.Module) -> nn.Module:
    """The hybrid with every gate shut and every position on its tap, restored."""
    twin = copy.deepcopy(hybrid)
    for layer in gpsa_layers(twin).values():
        layer.config = replace(layer.config, gate="linear", positions="fixed")
        layer.gating_param.detach().zero_()
    return restore(twin)


def benchmark(
    networks: Mapping[str, nn.Module],
    sizes: Sequence[tuple[int, int, int]],
    *,
    batch: int = 8,
    runs: int = 15,
    device: torch.device | None = None,
    bf16: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> BenchmarkResult:
    """Measure networks on random images, in turns, each held against the first.

    Three kinds of work: "forward" in eval mode without gradients; "forward and backward" in
    training mode; "training step", with AdamW's step as well. The steps are real, so gates that
    were shut are open from the second one on, as in any training. The loss is the mean square of
    the outputs.

    Args:
        networks: by name; left as they are, copies are measured.
        sizes: (C, H, W) of the images.
        batch: images at a time.
        runs: rounds that count, 3 or more.
        device: where to; None is a GPU where there is one.
        bf16: autocast to bfloat16.
        channels_last: kernels and images channel by channel in memory.
        compiled: by `torch.compile`, anew for each size.
        say: told what is being measured.

    Raises:
        BenchmarkError: a network does not run, or does not train, on such a batch.
        ValueError: `runs` is below 3.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = [
        "bfloat16" if bf16 else "float32",
        "channels last" if channels_last else "channels first",
        *(["compiled"] if compiled else []),
    ]
    costs: list[NetworkCost] = []
    for size in sizes:
        images = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0)).to(device)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        subjects = {
            name: _Subject(network, images, bf16, channels_last, compiled)
            for name, network in networks.items()
        }
        for work, calls in _works(subjects):
            say(f"{size[1]}×{size[2]} pixels: {work}")
            for name, call in calls.items():
                _try_out(call, f"{name}, {work}", images, compiled)
            times = alternate(calls, runs, device)
            peaks = {name: peak_memory(call, device) for name, call in calls.items()}
            base = next(iter(peaks.values()))
            costs += [
                NetworkCost(name, size, work, batch, times[name], peaks[name], base)
                for name in calls
            ]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return BenchmarkResult(tuple(costs), runs, where, tuple(options), provenance())


def _works(subjects: Mapping[str, _Subject]) -> Iterator[tuple[str, dict[str, Call]]]:
    """Each kind of work with its calls, the networks in its mode; last the one that trains."""
    for name in ("forward", "forward and backward", "training step"):
        for subject in subjects.values():
            subject.model.train(name != "forward")
        method = name.replace(" ", "_")
        yield name, {key: getattr(subject, method) for key, subject in subjects.items()}


class _Subject:
    """A copy of a network, and what it does on a batch."""

    def __init__(
        self, network: nn.Module, images: Tensor, bf16: bool, channels_last: bool, compiled: bool
    ) -> None:
        self.images, self.bf16 = images, bf16
        self.model = copy.deepcopy(network).to(images.device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compiled:
            self.model.compile()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE)

    def forward(self) -> None:
        with torch.inference_mode():
            self._outputs()

    def forward_and_backward(self) -> None:
        self._backward()
        # After the work, so that the next call has no gradients to give back.
        self.optimizer.zero_grad()

    def training_step(self) -> None:
        self._backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _backward(self) -> None:
        tensors = [leaf for leaf in _pytree.tree_leaves(self._outputs()) if _is_real(leaf)]
        losses: Any = [tensor.float().square().mean() for tensor in tensors]
        sum(losses).backward()

    def _outputs(self) -> Any:
        with torch.autocast(self.images.device.type, torch.bfloat16, self.bf16):
            return self.model(self.images)


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _try_out(call: Call, what: str, images: Tensor, compiled: bool) -> None:
    try:
        call()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        said = str(error).strip().partition("\n")[0]
        raise BenchmarkError(
            f"Expected networks that run on images of {'×'.join(map(str, images.shape))}, but "
            f"{what}, raised {type(error).__name__}: {said}: give another batch or size"
            + (", or do not compile." if compiled else ".")
        ) from error
