"""Names to networks: timm, torchvision, any importable function, or a saved hybrid's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tcnn import checkpoint
from tcnn.sources import ModelError, Origin, build, load_weights, set_origin


def load_model(
    name: str, pretrained: bool = False, *, weights: str | Path | None = None, **settings: Any
) -> nn.Module:
    """Build a network by name, in eval mode.

    Args:
        name: "timm:resnet50.a1_in1k", "torchvision:resnet50", "package.module:function" (imports
            and calls that function), or the folder of a saved hybrid.
        pretrained: with the weights that timm or torchvision publish for it.
        weights: a file of weights to load into it, safetensors or a PyTorch file of plain tensors.
        settings: passed to the function that builds the network, such as `num_classes`.

    Raises:
        ModelError: there is no such network, or its weights cannot be had.
    """
    if pretrained and weights is not None:
        raise ModelError("Expected either `pretrained` or `weights`, but got both.")
    if Path(name).is_dir():
        if pretrained or weights is not None or settings:
            raise ModelError(
                f"Expected only the folder {name!r}: a saved network has its weights and settings."
            )
        return checkpoint.load(name)
    model = build(name, pretrained, settings)
    if weights is not None:
        load_weights(model, weights)
    set_origin(model, Origin(name, dict(settings)))
    return model.eval()
