"""Adversarial images: projected gradient descent (PGD) and its one-step form, the fast gradient
sign method (FGSM).

An image whose gradient is zero everywhere comes back as it was: the network has not withstood the
attack, it has hidden from it. Such images are counted as masked, to be told beside any accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcnn.errors import TCNNError
from tcnn.running import eval_mode


@dataclass(frozen=True)
class Attack:
    """Adversarial images.

    Attributes:
        images: (B, C, H, W), pixels in [0, 1].
        masked: (B,) of bool, whether the gradient of an image was zero everywhere, at every step.
    """

    images: Tensor
    masked: Tensor


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    normalize: Callable[[Tensor], Tensor],
) -> Attack:
    r"""One step of size ε up the loss in every pixel.

    .. math::
        x' = \text{clip}(x + ε \, \text{sign} \nabla_x L(f(\text{normalize}(x)), y), 0, 1)

    L is the cross-entropy, summed over the batch: the gradient of an image is its own.

    Args:
        model: f, maps (B, C, H, W) to class scores (B, K); attacked in eval mode, left as it was.
        images: x, (B, C, H, W), pixels in [0, 1], on the model's device.
        labels: y, (B,).
        epsilon: for pixels in [0, 1]: 1/255 is one grey level.
        normalize: pixels to what the network takes.

    Raises:
        TCNNError: the images or `epsilon` are not in [0, 1], or a gradient is not a number.

    Source: Goodfellow, Shlens, Szegedy 2015 (arXiv 1412.6572) §4.
    """
    return pgd(model, images, labels, epsilon, normalize=normalize, steps=1, step_size=epsilon)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    normalize: Callable[[Tensor], Tensor],
    steps: int = 10,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Attack:
    r"""Steps of size α up the loss, none further than ε from the image in any pixel.

    .. math::
        x_{t+1} = \text{clip}(Π_ε(x_t + α \, \text{sign} \nabla_x L_t), 0, 1)

    Π_ε projects every pixel to within ε of x; L_t is the loss of `fgsm` at x_t. One step from the
    image itself is `fgsm`, to the bit.

    Args:
        model, images, labels, epsilon, normalize: as of `fgsm`.
        steps: how many.
        step_size: α; None takes 2.5 ε / steps, which can reach the other side of the ball.
        start: x_0 - x, (B, C, H, W), within ±ε, such as uniform noise (Madry et al.'s random
            start); None starts at the image.

    Raises:
        TCNNError: as from `fgsm`, or `steps`, `step_size` or `start` is out of its range.

    Source: Madry, Makelov, Schmidt, Tsipras, Vladu 2018 (arXiv 1706.06083) §2.1.
    """
    _check_epsilon(epsilon)
    _check_pixels(images)
    alpha = 2.5 * epsilon / max(steps, 1) if step_size is None else step_size
    if steps < 1 or not 0 <= alpha < math.inf:
        raise TCNNError(
            "Expected `steps` of at least 1 and `step_size` of at least 0, but got "
            f"{steps} and {step_size}."
        )
    # Copies, for tensors of inference mode have no part in a gradient.
    with torch.inference_mode(False), torch.enable_grad(), eval_mode(model), _frozen(model):
        clean, labels = images.detach().clone(), labels.clone()
        # Sizes in the type of the pixels, lest a step and a bound of one size round apart.
        reach, step = clean.new_tensor(epsilon), clean.new_tensor(alpha)
        low, high = (clean - reach).clamp(0, 1), (clean + reach).clamp(0, 1)
        attacked = clean
        if start is not None:
            _check_start(start, clean, reach)
            attacked = (clean + start.detach()).clamp(low, high)
        masked = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
        for _ in range(steps):
            gradient = _gradient(model, normalize, attacked, labels)
            attacked = (attacked + step * gradient.sign()).clamp(low, high)
            masked &= (gradient == 0).flatten(1).all(dim=1)
    return Attack(attacked, masked)


def _gradient(
    model: nn.Module, normalize: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
) -> Tensor:
    """Of the loss of each image in its pixels."""
    pixels = images.detach().requires_grad_()
    loss = F.cross_entropy(model(normalize(pixels)), labels, reduction="sum")
    if not loss.requires_grad:  # the network cuts its input off
        return torch.zeros_like(images)
    (gradient,) = torch.autograd.grad(loss, pixels, materialize_grads=True)
    if bool(gradient.isnan().any()):
        raise TCNNError(
            "Expected numbers as gradients, but got NaN: attack the network in a wider "
            "floating-point type, and mind operations without a derivative (a root at 0)."
        )
    return gradient


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient: recast layers then skip the content of shut heads."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon <= 1:
        raise TCNNError(
            f"Expected `epsilon` in [0, 1], as the pixels are, but got {epsilon}: "
            "8 grey levels are 8/255."
        )


def _check_pixels(images: Tensor) -> None:
    if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
        raise TCNNError(
            "Expected `images` as floating-point pixels in [0, 1], but got "
            f"{str(images.dtype).removeprefix('torch.')} from {images.min().item():.3g} to "
            f"{images.max().item():.3g}: pass them before they are normalised."
        )


def _check_start(start: Tensor, images: Tensor, reach: Tensor) -> None:
    if start.shape != images.shape or not bool((start.abs() <= reach).all()):
        raise TCNNError(
            f"Expected `start` as {tuple(images.shape)} within ±{reach.item():.3g}, but got "
            f"{tuple(start.shape)} as far as {start.abs().max().item():.3g}."
        )
