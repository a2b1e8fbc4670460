"""Which convolutions of a network to recast: targets → plan, with a reason for each left out."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from tcnn import convolutions
from tcnn.errors import RecastError
from tcnn.gpsa_config import GPSAConfig
from tcnn.layers import GPSA2d, gpsa_layers
from tcnn.tables import text_table
from tcnn.tracing import (
    Call,
    Calls,
    Size,
    convolution_names,
    is_size,
    own_input_size,
    refuse_wrapped,
    trace,
)

Targets = str | Sequence[str] | Callable[[str, nn.Conv2d], bool] | None

_MOST_TAPS = 49  # the largest kernel (7×7) that is recast without being asked for by name


@dataclass(frozen=True)
class PlanRow:
    """What is to become of one convolution.

    Attributes:
        name: name of the module in the network; "" is the network itself.
        kind: its class.
        grid: output grid (Hq, Wq), the largest if it is called more than once; None if never.
        status: "recast", "skipped" (not chosen), or "refused" (chosen, but cannot be exact).
        reason: why it is skipped or refused.
        heads: heads of the recast layer, 0 where it is not recast.
        parameters: parameters added by recasting it.
        flops: operations added per image with every gate open (a multiply-add counts as 2);
            a window lowers them on large grids, which is not counted.
    """

    name: str
    kind: str
    kernel_size: Size
    stride: Size
    groups: int
    grid: Size | None
    status: Literal["recast", "skipped", "refused"]
    reason: str = ""
    heads: int = 0
    parameters: int = 0
    flops: int = 0


@dataclass(frozen=True)
class Plan:
    """One row per `nn.Conv2d` of a network, for inputs of `input_size` (C, H, W)."""

    rows: tuple[PlanRow, ...]
    input_size: tuple[int, int, int]
    network_parameters: int

    @property
    def taken(self) -> tuple[PlanRow, ...]:
        """The rows that are recast."""
        return tuple(row for row in self.rows if row.status == "recast")

    @property
    def refused(self) -> tuple[PlanRow, ...]:
        """The rows that were chosen but cannot be recast exactly."""
        return tuple(row for row in self.rows if row.status == "refused")

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def table(self) -> str:
        """The rows as aligned text, and their totals."""
        cells = [
            (
                row.name or "(the network itself)",
                row.kind.rpartition(".")[2],
                _by(row.kernel_size),
                _by(row.stride),
                row.groups,
                row.grid and _by(row.grid),
                row.status,
                row.heads or None,
                row.parameters or None,
                row.flops / 1e6 if row.flops else None,
                row.reason,
            )
            for row in self.rows
        ]
        headers = ("layer", "class", "kernel", "stride", "groups", "grid", "status", "heads")
        taken = self.taken
        added = sum(row.parameters for row in taken)
        return "\n".join(
            [
                text_table((*headers, "+params", "+MFLOPs", "why"), cells),
                "",
                f"{len(taken)} of {len(self.rows)} convolutions are recast at input "
                f"{'×'.join(map(str, self.input_size))}: {added:,} parameters on top of "
                f"{self.network_parameters:,} ({added / max(1, self.network_parameters):+.1%}),",
                f"{sum(row.flops for row in taken) / 1e6:,.0f} MFLOPs per image with every gate "
                "open; a head whose gate is shut costs nothing at inference.",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return asdict(self)


def plan(
    cnn: nn.Module,
    targets: Targets = None,
    config: GPSAConfig | None = None,
    input_size: tuple[int, int, int] | None = None,
) -> Plan:
    """Say what `recast` with the same arguments would do, and change nothing.

    The network is run once on an empty image to learn which convolutions it calls, and on which
    grids.

    Args:
        cnn: the network.
        targets: which convolutions: a glob or a list of globs over module names, or a predicate
            `(name, conv) -> bool`. None is the paper's choice, for any network: every convolution
            with kernel area > 1 on the coarsest output grid (larger than 1×1), but for patchify
            convolutions (kernel = stride) and kernels of more than 49 taps.
        config: options of the recast layers.
        input_size: (C, H, W); None is the network's own (timm's `pretrained_cfg`), or 3×224×224.

    Raises:
        RecastError: the network is wrapped or compiled, does not run at `input_size`, or a glob
            matches none of its convolutions.
    """
    if not isinstance(cnn, nn.Module):
        raise RecastError(f"Expected `cnn` to be an nn.Module, but got {type(cnn).__name__}.")
    if input_size is not None and not is_size(input_size):
        raise RecastError(
            "Expected `input_size` as (channels, height, width), each 1 or more, "
            f"but got {input_size!r}."
        )
    refuse_wrapped(cnn)
    config = config or GPSAConfig()
    size = input_size or own_input_size(cnn)
    names = convolution_names(cnn)
    if not names:
        raise RecastError(
            f"Expected a network with convolutions, but {type(cnn).__name__} holds no nn.Conv2d"
            + (
                " (they are recast already)."
                if gpsa_layers(cnn)
                else ": there is nothing to recast."
            )
        )
    calls = trace(cnn, size)
    choice = _choose(names, targets, calls)
    rows = []
    for conv, (name, *_) in names.items():
        mine = calls.get(conv, [])
        reason = choice[conv]
        refusal = None if reason else convolutions.refusal(conv) or _wavering(config, mine)
        added = (0, 0) if reason or refusal else _cost(conv, config, mine)
        rows.append(
            PlanRow(
                name=name,
                kind=convolutions.type_name(conv),
                kernel_size=convolutions.pair(conv.kernel_size),
                stride=convolutions.pair(conv.stride),
                groups=conv.groups,
                grid=max((call.outputs for call in mine), key=_area, default=None),
                status="skipped" if reason else "refused" if refusal else "recast",
                reason=reason or refusal or "",
                heads=0 if reason or refusal else _area(convolutions.pair(conv.kernel_size)),
                parameters=added[0],
                flops=added[1],
            )
        )
    parameters = sum(p.numel() for p in cnn.parameters())
    return Plan(tuple(rows), (size[0], size[1], size[2]), parameters)


# Choosing


def _choose(
    names: dict[nn.Conv2d, list[str]],
    targets: Targets,
    calls: Calls,
) -> dict[nn.Conv2d, str]:
    """Why each convolution is left out; an empty reason takes it."""
    if targets is None:
        return _coarsest(names, calls)
    if callable(targets):
        chosen = {conv for conv, (name, *_) in names.items() if targets(name, conv)}
    else:
        chosen = set()
        patterns = [targets] if isinstance(targets, str) else targets
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise RecastError(
                "Expected `targets` to be a glob, a list of globs, a predicate (name, conv) or "
                f"None, but got {targets!r}."
            )
        for pattern in patterns:
            matched = {
                c for c, ns in names.items() if any(fnmatch.fnmatchcase(n, pattern) for n in ns)
            }
            if not matched:
                every = [n for ns in names.values() for n in ns]
                raise RecastError(
                    f"targets={pattern!r} matched none of {len(names)} Conv2d; "
                    f"nearest: {_nearest(pattern, every) or 'the network itself, by the glob *'}"
                )
            chosen |= matched
    return {
        conv: "not among the targets"
        if conv not in chosen
        else ""
        if conv in calls
        else "never called at this input: unused, or another module reads its weights"
        for conv in names
    }


def _nearest(pattern: str, names: list[str]) -> str:
    """The name whose start is most like a glob's fixed start, by likeness, then by letter."""
    start = re.split(r"[*?\[]", pattern, maxsplit=1)[0] or pattern

    def distance(name: str) -> tuple[float, int]:
        head = name[: len(start)]
        likeness = difflib.SequenceMatcher(None, start, head).ratio()
        return -likeness, sum(abs(ord(a) - ord(b)) for a, b in zip(start, head, strict=False))

    return min(names, key=distance)


def _coarsest(names: dict[nn.Conv2d, list[str]], calls: Calls) -> dict[nn.Conv2d, str]:
    """The default targets, as reasons for leaving the others out."""
    # Layers that are recast already count for the coarsest grid, or a second recast would move up
    # to the next stage.
    grids = {
        module: max((call.outputs for call in mine), key=_area)
        for module, mine in calls.items()
        if isinstance(module, nn.Conv2d | GPSA2d) and not _unfit(module)
    }
    coarsest = min((g for g in grids.values() if _area(g) > 1), key=_area, default=None)
    reasons = {}
    for conv in names:
        if conv not in calls:
            reason = "never called at this input: unused, or another module reads its weights"
        elif unfit := _unfit(conv):
            reason = unfit
        elif _area(grids[conv]) == 1:
            reason = "its grid is a single pixel"
        elif coarsest is not None and _area(grids[conv]) > _area(coarsest):
            reason = f"its grid is finer than the coarsest, {_by(coarsest)}"
        else:
            reason = ""
        reasons[conv] = reason
    return reasons


def _unfit(conv: nn.Conv2d | GPSA2d) -> str:
    """Why a convolution is never a default target."""
    kernel = convolutions.pair(conv.kernel_size)
    if _area(kernel) == 1:
        return "its kernel is 1×1"
    if kernel == convolutions.pair(conv.stride):
        return "patchify: its kernel is its stride"
    if _area(kernel) > _MOST_TAPS:
        return f"its kernel has {_area(kernel)} taps, more than {_MOST_TAPS}"
    return ""


def _cost(conv: nn.Conv2d, config: GPSAConfig, calls: list[Call]) -> tuple[int, int]:
    """Parameters and operations that recasting a convolution adds, summed over its calls."""
    heads, channels = _area(convolutions.pair(conv.kernel_size)), conv.in_channels
    learned = config.positions == "learned"
    width = heads * (config.qk_dim or max(8, channels // heads))
    parameters = 2 * channels * width + heads + (3 * heads if learned else 0)
    parameters += heads if config.content == "cosine" else 0
    flops = 0
    # The kernel as output matrix takes the operations of the convolution that it stands in for.
    for inputs, outputs in ((call.inputs, call.outputs) for call in calls):
        keys, queries = _area(inputs), _area(outputs)
        flops += 2 * (
            channels * width * (queries + keys) + queries * keys * (width + heads * channels)
        )
    return parameters, flops


def _wavering(config: GPSAConfig, calls: list[Call]) -> str | None:
    """Why learned positions cannot follow a convolution's calls; None where they can."""
    if config.positions == "learned" and len({call.settings for call in calls}) > 1:
        return (
            "its stride, padding or dilation changes from call to call, which learned positions "
            "cannot follow: use fixed ones"
        )
    return None


def _area(size: Size) -> int:
    return size[0] * size[1]


def _by(size: Size) -> str:
    return f"{size[0]}×{size[1]}"
