"""What a page shows of the network itself: its convolutions, its heads, and where they look."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tcnn import checkpoint
from tcnn.errors import TCNNError
from tcnn.layers import GPSA2d
from tcnn.report.attention import Lens, mean_heads
from tcnn.report.contents import Contents
from tcnn.report.pictures import pictures, view_of
from tcnn.sources import origin

_ALLOWANCE = 5_400_000  # bytes of maps on a page, of which base64 makes a third more
_PICTURES = 8


@dataclass(frozen=True)
class Convolution:
    """A convolution of the network, in the order of the calls.

    Attributes:
        name: of its module.
        kernel, stride, grid: its kernel, stride and output grid.
        channels: in and out, where they are known.
        recast: whether it is a recast layer.
        shares: content share of each head, where it is one and the network could be read.
    """

    name: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    grid: tuple[int, int] | None
    channels: tuple[int, int] | None = None
    recast: bool = False
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Look:
    """A network, looked into.

    Attributes:
        convolutions: all of them.
        layers: of the explorer, as `Lens.network` gives them; empty where that failed.
        pictures: of the explorer, as `Lens.look` gives them.
        heads: figures of every head, as means over the pictures.
        left_out: layers that the explorer lacks, and why.
        lens: that looked; None where there is no network.
        failure: why there is no network, or no picture; empty where there are both.
    """

    convolutions: tuple[Convolution, ...] = ()
    layers: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    heads: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    lens: Lens | None = None
    failure: str = ""


def network_of(contents: Contents, cnn: nn.Module | None = None) -> nn.Module:
    """The hybrid of a run.

    Args:
        contents: of the run.
        cnn: the network that was recast, if its folder cannot build it.

    Raises:
        TCNNError: there is none, or it cannot be read.
    """
    if contents.network is None:
        raise TCNNError(
            "Expected a saved hybrid, but the run has none where it is looked for: run the command "
            "from the folder where the run was made."
        )
    takes = cnn is not None and not checkpoint.builds_itself(contents.network)
    return checkpoint.load(contents.network, cnn=cnn if takes else None)


def look(
    contents: Contents,
    *,
    model: nn.Module | None = None,
    cnn: nn.Module | None = None,
    folder: Path | None = None,
) -> Look:
    """Look into the network of a run, as far as it and its pictures are there.

    Args:
        contents: of the run.
        model: its hybrid, where that is at hand.
        cnn: as of `network_of`.
        folder: pictures to take in place of the run's.

    Raises:
        TCNNError: `folder` holds no pictures.
    """
    try:
        model = network_of(contents, cnn) if model is None else model
        view = view_of(contents, model)
        lens = Lens(model, view, origin(model).classes, _ALLOWANCE, _PICTURES)
    except TCNNError as error:
        return Look(failure=str(error))
    known: dict[str, Any] = {
        "lens": lens,
        "convolutions": _convolutions(model, lens),
        "layers": lens.network(),
        "left_out": lens.left_out,
    }
    if not lens.steps:
        reasons = (f"{name}: {why}" for name, why in lens.left_out.items())
        return Look(
            **known, failure=f"No layer has maps that a page can hold. {'; '.join(reasons)}."
        )
    try:
        chosen = pictures(contents, model, lens.count, folder)
    except TCNNError as error:
        if folder is not None:
            raise
        return Look(**known, failure=str(error))
    seen = [lens.look(picture) for picture in chosen]
    heads = mean_heads([figures for _, figures in seen])
    return Look(**known, pictures=[found for found, _ in seen], heads=heads)


def planned(plan: dict[str, Any]) -> tuple[Convolution, ...]:
    """The convolutions of a plan that was kept, in the order of the network."""
    return tuple(
        Convolution(
            row["name"],
            (row["kernel_size"][0], row["kernel_size"][1]),
            (row["stride"][0], row["stride"][1]),
            None if row["grid"] is None else (row["grid"][0], row["grid"][1]),
            recast=row["status"] == "recast",
        )
        for row in plan["rows"]
    )


def _convolutions(model: nn.Module, lens: Lens) -> tuple[Convolution, ...]:
    found = []
    for name, grid in lens.grids.items():
        module: Any = model.get_submodule(name)
        shares: list[float] = []
        if isinstance(module, GPSA2d):
            shares = module.content_share.detach().double().tolist()
        found.append(
            Convolution(
                name,
                tuple(module.kernel_size),
                tuple(module.stride),
                grid,
                (module.in_channels, module.out_channels),
                isinstance(module, GPSA2d),
                tuple(shares),
            )
        )
    return tuple(found)
