"""The zoo's networks: built small, without weights, and given random statistics.

A freshly built network hides errors: norms that end a residual branch start at zero, layer scales
at 1e-6, statistics at 0 and 1. `shake` gives every such value a random one and fits the statistics
to the activations.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

Size = tuple[int, int]
# Smallest first: the first that the network runs on is taken, and then its own default.
SIZES: list[Size] = [(64, 96), (64, 64), (96, 96), (128, 128), (160, 160), (224, 224)]


# Building


def timm_families() -> list[str]:
    import timm

    return timm.list_modules()


def torchvision_families() -> list[str]:
    """Modules of torchvision's image models: classification, segmentation and detection."""
    homes = {models_module(n).partition("models.")[2] for n in _tv_names()}
    other = ("video", "quantization", "optical_flow")  # not image models, or not nn.Conv2d networks
    return sorted(home for home in homes if home.partition(".")[0] not in other)


def members(source: str, family: str) -> list[str]:
    """Names of a family's networks."""
    if source == "timm":
        import timm

        return timm.list_models(module=family)
    home = f"torchvision.models.{family}"
    return [n for n in _tv_names() if models_module(n) == home]


def cheapest(source: str, family: str) -> str:
    """The member with the fewest parameters, if possible of those with a kernel wider than 1×1."""
    sizes = {}
    for name in members(source, family):
        with contextlib.suppress(Exception), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = construct(source, name)
            sizes[name] = (not wide(network), sum(p.numel() for p in network.parameters()))
    return min(sizes, key=lambda name: sizes[name]) if sizes else members(source, family)[0]


def construct(source: str, name: str, **options: Any) -> nn.Module:
    """A network without pretrained weights, in eval mode."""
    if source == "timm":
        import timm

        return timm.create_model(name, pretrained=False, **options).eval()
    from torchvision import models

    builder = models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    network = builder(weights=None, **options).eval()
    if "detection" in builder.__module__:
        # An untrained detector is sure of nothing: without the threshold it finds boxes.
        boxes = getattr(network, "roi_heads", network)
        boxes.score_thresh, boxes.detections_per_img = 0.0, 8
        if "ssd" not in name:  # SSD has one size, of its anchors
            network.transform.min_size, network.transform.max_size = (128,), 160
    return network


def build(source: str, name: str) -> tuple[nn.Module, Size]:
    """A network and the smallest image that all its wide convolutions see more than a pixel of."""
    attempts: list[tuple[dict[str, int], Size]] = [({}, size) for size in SIZES]
    if source == "timm":
        import timm

        declared = timm.get_pretrained_cfg(name)
        least = max((declared.min_input_size or (0,))[1:], default=0)
        attempts = [({}, (max(h, least), max(w, least))) for h, w in SIZES]
        if declared.fixed_input_size:
            attempts = [({"img_size": h}, (h, w)) for _, (h, w) in attempts if h == w]
        attempts.append(({}, declared.input_size[1:]))
    elif "detection" in models_module(name):
        attempts = [({}, (128, 160))]
    failures: list[str] = []
    fallback: tuple[nn.Module, Size] | None = None
    built: dict[str, int] | None = None
    for options, size in attempts:
        try:
            if options != built:
                network, built = construct(source, name, **options), options
            if smallest_grid(network, size) > 1:
                return network, size
            fallback = fallback or (network, size)
        except Exception as error:
            failures.append(f"{size}: {type(error).__name__}: {error}")
    if fallback is None:
        raise RuntimeError(f"{name} ran at no size: " + "; ".join(failures))
    return fallback


def smallest_grid(network: nn.Module, size: Size) -> float:
    """Output pixels of the wide convolution with the fewest; on one pixel a kernel hardly shows."""
    areas = [float("inf")]
    handles = [
        conv.register_forward_hook(lambda _m, _a, y: areas.append(y.shape[-2] * y.shape[-1]))
        for conv in wide(network).values()
    ]
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, *size))
    finally:
        for handle in handles:
            handle.remove()
    return min(areas)


def models_module(name: str) -> str:
    """The module of a torchvision network."""
    from torchvision import models

    return models.get_model_builder(name).__module__


def _tv_names() -> list[str]:
    from torchvision import models

    return models.list_models()


def wide(network: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions with kernel area > 1, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size not in ((1, 1), 1)
    }


# Giving every value a part


def shake(network: nn.Module, images: Tensor, seed: int = 0) -> None:
    """Random non-zero values for every norm, scale, bias and statistic, in a sane range."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: torch.Size, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def normal(shape: torch.Size, std: float) -> Tensor:
        return std * torch.randn(shape, generator=generator)

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            shape = parameter.shape
            if not parameter.numel() or (parameter != parameter.flatten()[0]).any():
                continue  # random already
            start = parameter.flatten()[0].item()
            if name.endswith("bias"):
                parameter.copy_(normal(shape, 0.1))
            elif parameter.numel() == max(shape, default=1):  # a vector, whatever its shape
                low, high = (0.5, 1.5) if abs(start) > 0.5 else (0.2, 0.6)
                parameter.copy_(uniform(shape, low, high))
            else:
                parameter.copy_(normal(shape, shape[1:].numel() ** -0.5))

    def fit(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach()
        x = x.transpose(0, 1).flatten(1) if x.dim() > 2 else x.T
        # By the size of all values, not by each channel's deviation: that may be next to nothing,
        # on a map of a few pixels, and dividing by it would blow up every rounding error.
        scale = 0.5 * x.square().mean(1).sqrt() + 0.5 * x.square().mean().sqrt() + 1e-3
        module.running_mean.copy_(0.3 * scale * normal(scale.shape, 1.0))
        module.running_var.copy_((scale * uniform(scale.shape, 0.7, 1.4)) ** 2)

    handles = [
        module.register_forward_pre_hook(fit)
        for module in network.modules()
        if getattr(module, "running_mean", None) is not None
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
