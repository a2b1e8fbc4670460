"""What a hybrid attends to on pictures, as plain data, small enough for a page."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tcnn.analysis.capture import Capture, capture
from tcnn.analysis.heads import heads_report
from tcnn.errors import TCNNError
from tcnn.layers import AttentionMaps, gpsa_layers
from tcnn.report.pictures import Picture
from tcnn.running import undisturbed
from tcnn.tracing import trace
from tcnn.view import View

_MOST = 2**25  # weights of one layer on one picture, of which several copies are computed with
_FEW = 4  # pictures that are shown before maps are made coarser
_LARGEST_SIDE = 256  # of a picture on the page, in pixels
_CRISP = 64  # side up to which a picture is kept to the pixel


class Lens:
    """Looks at pictures through a hybrid.

    A layer's maps are S (heads, queries, keys), in bytes: each map is divided by its largest
    weight, which is kept beside it, so a weight is off by at most 1/510 of that. Where all maps
    together would take more than is allowed, those of the largest layers become coarser: every
    `step`-th query along each axis, and keys summed over blocks of step × step pixels.

    Args:
        model: the hybrid; left as it was.
        view: how it takes pictures.
        classes: names of its outputs, where they are known.
        allowance: bytes that the maps of all pictures may take.
        count: pictures, at most.

    Attributes:
        count: pictures that there is room for.
        left_out: layers whose maps are too large to be computed, and why.
        grids: layer, recast or not, in the order of the calls → its output grid.

    Raises:
        TCNNError: the network holds no recast layer, or does not run on pictures of this view.
    """

    def __init__(
        self,
        model: nn.Module,
        view: View,
        classes: Sequence[str] | None,
        allowance: int,
        count: int,
    ) -> None:
        self.model, self.view, self.classes = model, view, classes
        if not gpsa_layers(model):
            raise TCNNError("Expected a hybrid, but the network holds no recast layer.")
        calls = trace(model, view.input_size)
        names = {module: name for name, module in model.named_modules()}
        self.grids = {names[module]: mine[-1].outputs for module, mine in calls.items()}
        self._sizes: dict[str, tuple[int, tuple[int, int], tuple[int, int]]] = {}
        self.left_out: dict[str, str] = {}
        for name, layer in gpsa_layers(model).items():
            if layer not in calls:
                continue
            call = calls[layer][-1]
            size = layer.heads * math.prod(call.outputs) * math.prod(call.inputs)
            if size > _MOST:
                self.left_out[name] = (
                    f"its {layer.heads} maps have {size / 1e6:,.0f} million weights for each "
                    "picture, too many for a page; tcnn.analysis.capture has them in Python"
                )
            else:
                self._sizes[name] = (layer.heads, call.outputs, call.inputs)
        self.steps = dict.fromkeys(self._sizes, 1)
        self.count = min(count, max(_FEW, allowance // max(1, self._bytes())))
        while self.count * self._bytes() > allowance and max(self.steps.values()) < 64:
            self.steps[max(self.steps, key=self._layer_bytes)] *= 2

    def _layer_bytes(self, name: str) -> int:
        """Of one picture: the maps, and the largest weight of each."""
        heads, queries, keys = self._sizes[name]
        step = self.steps[name]
        shown, pixels = (math.prod(-(-n // step) for n in grid) for grid in (queries, keys))
        return heads * shown * (pixels + 4)

    def _bytes(self) -> int:
        return sum(map(self._layer_bytes, self._sizes))

    def network(self) -> list[dict[str, Any]]:
        """What is the same on every picture: each layer's grids, gates and positional attention."""
        seen, _ = self._run(torch.zeros(self.view.input_size, dtype=torch.uint8))
        layers = []
        for name, (_, queries, keys) in self._sizes.items():
            layer, step = seen.layers[name], self.steps[name]
            position = _coarser(seen.attention(name).position.float(), step)
            layers.append(
                {
                    "name": name,
                    "kernel": layer.kernel_size,
                    "stride": layer.stride,
                    "queries": queries,
                    "keys": keys,
                    "step": step,
                    "gate": seen.gates[name].double().tolist(),
                    "position": _positions(position.flatten(3).flatten(1, 2)),
                }
            )
        return layers

    def look(self, picture: Picture) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A picture with its content maps by layer, and the figures of every head on it."""
        with warnings.catch_warnings(action="ignore"):
            pixels = torch.as_tensor(
                np.asarray(self.view.in_pixels()(self.view.channels(picture.image)))
            )
        seen, output = self._run(pixels)
        maps = {}
        for name in self._sizes:
            content = _coarser(_content(seen.attention(name)), self.steps[name])
            maps[name] = _quantised(content.flatten(3).flatten(1, 2))
        for name in self.left_out:
            seen.inputs.pop(name, None)
        found = {
            "title": picture.title,
            "label": picture.label,
            **self._answer(output),
            "pixels": _data_address(pixels),
            "maps": maps,
        }
        return found, heads_report(seen).to_json()

    def _run(self, pixels: Tensor) -> tuple[Capture, Any]:
        x = self.view.normalize(pixels[None].float() / 255)
        like = next(p for p in self.model.parameters() if p.is_floating_point())
        with capture(self.model) as seen, undisturbed(self.model):
            output = self.model(x.to(like.device, like.dtype))
        return seen, output

    def _answer(self, output: Any) -> dict[str, Any]:
        """The class that the network takes a picture for, if it answers in known classes."""
        known = isinstance(output, Tensor) and self.classes is not None
        if not known or tuple(output.shape) != (1, len(self.classes or ())):
            return {"predicted": None, "confidence": None}
        confidence, index = output[0].float().softmax(dim=0).max(dim=0)
        return {
            "predicted": (self.classes or ())[int(index)],
            "confidence": round(float(confidence), 4),
        }


def mean_heads(pictures: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Figures of every head as means over pictures; what is no figure is that of the first."""
    return [
        {
            key: sum(row[key] for row in rows) / len(rows) if isinstance(value, float) else value
            for key, value in rows[0].items()
        }
        for rows in zip(*pictures, strict=True)
    ]


def _content(maps: AttentionMaps) -> Tensor:
    return maps.content[0].float()


def _coarser(maps: Tensor, step: int) -> Tensor:
    """Every `step`-th query, keys summed over blocks; maps are (heads, Hq, Wq, H, W)."""
    if step == 1:
        return maps
    maps = maps[:, ::step, ::step]
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (0, -width % step, 0, -height % step))
    rows, columns = (size // step for size in padded.shape[-2:])
    blocks = padded.view(*padded.shape[:-2], rows, step, columns, step)
    return blocks.sum(dim=(-3, -1))


def _quantised(maps: Tensor) -> dict[str, str]:
    """Maps (heads, queries, keys) as bytes, with the largest weight of each as float32."""
    tops = maps.amax(dim=-1)
    levels = (maps / tops.clamp(min=torch.finfo(torch.float32).tiny)[..., None] * 255).round()
    return {"levels": _text(levels.cpu().numpy(), "u1"), "tops": _text(tops.cpu().numpy(), "<f4")}


def _positions(maps: Tensor) -> dict[str, str]:
    """Positional maps (heads, queries, keys): one key each, -1 on padding, where they are one-hot;
    else as other maps are."""
    sums = maps.sum(dim=-1)
    if bool(((maps == 0) | (maps == 1)).all()) and bool((sums <= 1).all()):
        keys = torch.where(sums > 0, maps.argmax(dim=-1), torch.tensor(-1, device=maps.device))
        return {"keys": _text(keys.cpu().numpy(), "<i4")}
    return _quantised(maps)


def _text(values: Any, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values.astype(dtype)).tobytes()).decode("ascii")


def _data_address(pixels: Tensor) -> str:
    """Pixels (C, H, W) of uint8 as a picture in a data: address, made smaller if it is large."""
    shown = pixels.permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(shown[..., 0] if shown.shape[-1] == 1 else shown)
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    stream = io.BytesIO()
    if max(image.size) <= _CRISP:
        image.save(stream, "PNG")
        kind = "png"
    else:
        image.save(stream, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
