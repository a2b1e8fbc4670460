"""Record the gates and the attention of every `GPSA2d` of a network while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tcnn.layers import AttentionMaps, GPSA2d, gpsa_layers
from tcnn.running import kept_modes


class Capture:
    """What was recorded of a network's `GPSA2d` layers, by their names.

    Attributes:
        layers: the layers.
        gates: gate of each head as the capture began, (heads,) by layer.
        inputs: what each layer was last called with, (B, C, H, W), in the order of the first calls;
            a layer not called has none.
    """

    def __init__(self, layers: dict[str, GPSA2d]) -> None:
        self.layers = layers
        self.gates = {name: layer.gate.detach().clone() for name, layer in layers.items()}
        self.inputs: dict[str, Tensor] = {}
        self._autocast: dict[str, tuple[bool, torch.dtype]] = {}

    def attention(self, name: str, images: slice = slice(None)) -> AttentionMaps:
        """The attention of a layer on the images that it last saw, computed now.

        It is computed in the arithmetic of the call, autocast or not. Maps are dense, and take
        heads · queries · pixels numbers for each image, whatever path the layer took.

        Args:
            name: of the layer.
            images: which of the batch.

        Raises:
            KeyError: there is no such layer, or it has not been called.
        """
        if name not in self.inputs:
            raise KeyError(
                f"Expected a layer that was called, one of {list(self.inputs)}, but got {name!r}."
            )
        x = self.inputs[name]
        enabled, dtype = self._autocast[name]
        with torch.autocast(x.device.type, dtype, enabled):
            return self.layers[name].attention((x if x.dim() == 4 else x[None])[images])

    def keep(self, name: str, x: Tensor) -> None:
        """Record that a layer is called with `x`."""
        self.inputs[name] = x.detach().clone()  # a later module may work in place
        device = x.device.type
        enabled = torch.is_autocast_enabled(device)
        self._autocast[name] = enabled, torch.get_autocast_dtype(device)


@contextmanager
def capture(model: nn.Module) -> Iterator[Capture]:
    """Record the layers of `model` while it is run inside the block; its outputs do not change.

    The recording stays readable after the block. Hooks are removed and every module is back in the
    mode (training or evaluation) that it entered with, however the block ends.

        with capture(hybrid) as seen:
            hybrid(images)
        seen.attention("layer3.0.conv1").content

    Raises:
        ValueError: the network holds no `GPSA2d`.
    """
    layers = gpsa_layers(model)
    if not layers:
        raise ValueError(
            f"Expected a hybrid, but {type(model).__name__} holds no GPSA2d: recast it first."
        )
    seen = Capture(layers)

    def keep(name: str) -> Any:
        def hook(_layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            seen.keep(name, args[0] if args else kwargs["input"])

        return hook

    handles = [
        layer.register_forward_pre_hook(keep(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with kept_modes(model):
            yield seen
    finally:
        for handle in handles:
            handle.remove()
