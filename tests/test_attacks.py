"""FGSM and PGD against closed forms and finite differences, and what it leaves as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import lively
from tcnn import GPSAConfig, recast
from tcnn.attacks import fgsm, pgd
from tcnn.errors import TCNNError
from tcnn.layers import gpsa_layers


def as_is(pixels: Tensor) -> Tensor:
    return pixels


def shifted(pixels: Tensor) -> Tensor:
    return (pixels - 0.4) / 0.3


def pixels(n: int = 4, channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(n))


def labels(n: int = 4) -> Tensor:
    return torch.arange(n) % 3


class Linear(nn.Module):
    """Scores W x of an image of two pixels, for three classes."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def network() -> nn.Module:
    """Batch norm right before and after a convolution, which is recast with every gate open."""
    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Tanh(),
        nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(6 * 4 * 4, 3),
    )  # fmt: skip
    hybrid = recast(lively(cnn), ["2", "5"], GPSAConfig(gate_init=0.7), input_size=(3, 8, 8))
    for layer in gpsa_layers(hybrid).values():
        nn.init.normal_(layer.qk.weight)  # as initialised, attention hardly depends on content
    return hybrid


@pytest.mark.parametrize("label", [0, 1, 2])
def test_linear_model_by_hand(label: int) -> None:
    x = torch.tensor([0.5, 0.25]).view(1, 1, 1, 2)
    # p ∝ (e², e¹, e⁰); the gradient of the loss is Wᵀ (p - y), so its signs are those of p - y.
    total = math.exp(2) + math.exp(1) + 1
    p = (math.exp(2) / total, math.exp(1) / total)
    signs = [math.copysign(1, p[i] - (label == i)) for i in (0, 1)]
    attack = fgsm(Linear(), x, torch.tensor([label]), 0.125, normalize=as_is)
    assert attack.images.flatten().tolist() == [0.5 + 0.125 * signs[0], 0.25 + 0.125 * signs[1]]
    assert attack.masked.tolist() == [False]


def test_clipped_at_black_and_white() -> None:
    x = torch.tensor([[0.05, 0.95], [0.0, 1.0]]).view(2, 1, 1, 2)
    attack = fgsm(Linear(), x, torch.tensor([0, 0]), 0.125, normalize=as_is)
    assert attack.images.flatten(1).tolist() == [[0, 1], [0, 1]]


def test_it_is_the_pixels_that_move() -> None:
    """A normalisation that turns the image into its negative turns the attack, not its size."""
    x = torch.tensor([0.5, 0.25]).view(1, 1, 1, 2)
    attack = fgsm(Linear(), x, torch.tensor([0]), 0.125, normalize=lambda p: -100 * p)
    assert attack.images.flatten().tolist() == [0.625, 0.125]


def central_differences(model: nn.Module, image: Tensor, label: int) -> Tensor:
    """The gradient of one image's loss, in float64."""
    model = copy.deepcopy(model).double().eval()
    step = 1e-6 * torch.eye(image.numel(), dtype=torch.float64).view(-1, *image.shape)
    losses = []
    for moved in (image.double() + step, image.double() - step):
        with torch.no_grad():
            scores = model(shifted(moved))
        losses.append(F.cross_entropy(scores, torch.full((len(step),), label), reduction="none"))
    return ((losses[0] - losses[1]) / 2e-6).view(image.shape)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_recast_network_against_finite_differences(n: int, layout: torch.memory_format) -> None:
    # In [0.2, 0.8], so that nothing is clipped.
    model, x, y = network(), 0.2 + 0.6 * pixels(n), labels(n)
    images = x.contiguous(memory_format=layout)
    moved = fgsm(model.to(memory_format=layout), images, y, 0.125, normalize=shifted).images - x
    for got, image, label in zip(moved, x, y.tolist(), strict=True):
        gradient = central_differences(model, image, label)
        clear = gradient.abs() > 1e-4 * gradient.abs().max()
        assert clear.double().mean() > 0.99
        assert torch.equal(got.sign()[clear], gradient.sign()[clear].float())
        torch.testing.assert_close(got.abs(), torch.full_like(got, 0.125))


def test_an_image_does_not_depend_on_its_batch() -> None:
    model, x, y = network().double(), pixels().double(), labels()
    together = fgsm(model, x, y, 0.1, normalize=shifted).images
    alone = [fgsm(model, x[i, None], y[i, None], 0.1, normalize=shifted).images for i in range(4)]
    assert torch.equal(together, torch.cat(alone))


def test_epsilon_zero_gives_the_images() -> None:
    x = pixels()
    attack = fgsm(network(), x, labels(), 0, normalize=shifted)
    assert torch.equal(attack.images, x)
    assert not attack.masked.any()


class Apart(nn.Module):
    """Bright images have scores that do not change with them."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean((1, 2, 3)).clamp(max=0.5), torch.zeros(len(x))], dim=1)


def constant(x: Tensor) -> Tensor:
    return torch.zeros(len(x), 3)


def detached(x: Tensor) -> Tensor:
    return x.detach().flatten(1)[:, :3]


class Constant(nn.Module):
    """Scores by a function that no gradient passes through, with or without a parameter after."""

    def __init__(self, function: Callable[[Tensor], Tensor], bias: bool) -> None:
        super().__init__()
        self.function = function
        self.bias = nn.Parameter(torch.zeros(3)) if bias else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) + self.bias


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("function", [constant, detached])
def test_no_gradient_at_all(function: Callable[[Tensor], Tensor], bias: bool) -> None:
    x, y = pixels(), labels()
    attack = fgsm(Constant(function, bias), x, y, 0.1, normalize=shifted)
    assert attack.masked.all()
    assert torch.equal(attack.images, x)


def test_masked_images_are_told_from_the_others() -> None:
    x = torch.full((3, 1, 4, 4), 0.3)
    x[1] = 0.7
    attack = fgsm(Apart(), x, torch.zeros(3, dtype=torch.long), 0.1, normalize=as_is)
    assert attack.masked.tolist() == [False, True, False]
    assert torch.equal(attack.images[1], x[1])
    torch.testing.assert_close(attack.images[0], x[0] - 0.1)


def test_the_model_stays_as_it_was() -> None:
    model = network().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[9].bias.grad = torch.ones(3)
    model.register_buffer("unused", torch.zeros(1))
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    x, y = pixels(), labels()
    images, truth = x.clone(), y.clone()

    fgsm(model, x, y, 0.1, normalize=shifted)
    with pytest.raises(RuntimeError):
        fgsm(model, pixels(channels=2), y, 0.1, normalize=shifted)

    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == {"9.bias"}
    assert torch.equal(grads["9.bias"], torch.ones(3))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(x, images)
    assert torch.equal(y, truth)
    assert not x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_under_callers_without_gradients(caller: Callable[[], torch.no_grad]) -> None:
    model = network()
    expected = fgsm(model, pixels(), labels(), 0.1, normalize=shifted).images
    with caller():
        attack = fgsm(model, pixels(), labels(), 0.1, normalize=shifted)
        assert not torch.is_grad_enabled()
    assert torch.equal(attack.images, expected)
    assert not attack.images.requires_grad


def test_images_that_ask_for_a_gradient_themselves() -> None:
    x = pixels().requires_grad_()
    assert not fgsm(network(), x, labels(), 0.1, normalize=shifted).images.requires_grad
    assert x.grad is None


def test_accuracy_falls_and_at_zero_is_the_clean_one() -> None:
    model, x = network().eval(), pixels(12)
    y = model(shifted(x)).argmax(dim=1)  # right on every clean image
    tops = []
    for epsilon in (0, 0.02, 0.3):
        attacked = fgsm(model, x, y, epsilon, normalize=shifted).images
        tops.append((model(shifted(attacked)).argmax(dim=1) == y).double().mean())
    assert tops[0] == 1
    assert tops[0] >= tops[1] >= tops[2]
    assert tops[2] < 0.5


@pytest.mark.parametrize("epsilon", [-0.1, 8, math.nan])
def test_epsilon_of_another_scale(epsilon: float) -> None:
    for call in (
        lambda: fgsm(Linear(), pixels(), labels(), epsilon, normalize=as_is),
        lambda: pgd(Linear(), pixels(), labels(), epsilon, normalize=as_is),
    ):
        with pytest.raises(TCNNError, match=r"`epsilon` in \[0, 1\].*8/255"):
            call()


@pytest.mark.parametrize(
    "images", [255 * pixels(), pixels() - 0.5, (255 * pixels()).byte(), pixels() * math.nan]
)
def test_images_that_are_no_pixels(images: Tensor) -> None:
    for attack in (fgsm, pgd):
        with pytest.raises(TCNNError, match="before they are normalised"):
            attack(network(), images, labels(), 0.1, normalize=as_is)


def test_gradients_that_are_no_numbers() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (0 * x).sqrt().flatten(1)

    for attack in (fgsm, pgd):
        with pytest.raises(TCNNError, match="NaN"):
            attack(Root(), pixels(), labels(), 0.1, normalize=as_is)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("epsilon", [0, 1 / 255, 8 / 255, 0.3, 1])
def test_pgd_of_one_step_is_fgsm(dtype: torch.dtype, epsilon: float) -> None:
    model, x, y = network().to(dtype), pixels(12).to(dtype), labels(12)
    expected = fgsm(model, x, y, epsilon, normalize=shifted)
    attack = pgd(model, x, y, epsilon, normalize=shifted, steps=1)
    assert torch.equal(attack.images, expected.images)
    assert torch.equal(attack.masked, expected.masked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fgsm_is_its_formula_to_the_bit(dtype: torch.dtype) -> None:
    model, x, y = network().to(dtype).eval(), pixels(12).to(dtype), labels(12)
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(shifted(leaf)), y, reduction="sum").backward()
    assert leaf.grad is not None
    expected = (x + 8 / 255 * leaf.grad.sign()).clamp(0, 1)
    assert torch.equal(fgsm(model, x, y, 8 / 255, normalize=shifted).images, expected)


def test_pgd_on_a_linear_model_by_hand() -> None:
    """The gradient keeps its signs: steps of 1/16 from (1/2, 3/16), the ball's end at 5/32."""
    x = torch.tensor([0.5, 0.1875]).view(1, 1, 1, 2)
    label = torch.tensor([0])
    for steps, expected in ((1, [0.4375, 0.25]), (2, [0.375, 0.3125]), (3, [0.34375, 0.34375])):
        attack = pgd(Linear(), x, label, 0.15625, normalize=as_is, steps=steps, step_size=0.0625)
        assert attack.images.flatten().tolist() == expected
        assert attack.masked.tolist() == [False]


def test_pgd_against_a_loop_over_pixels() -> None:
    """Autograd of each step anew, projected pixel by pixel in plain numbers."""
    model, x, y = network().double().eval(), pixels().double(), labels()
    epsilon, alpha = 0.1, 0.04
    current = x.clone()
    for _ in range(5):
        leaf = current.clone().requires_grad_()
        F.cross_entropy(model(shifted(leaf)), y, reduction="sum").backward()
        assert leaf.grad is not None
        moved = []
        for origin, now, slope in zip(
            x.flatten().tolist(), current.flatten().tolist(), leaf.grad.flatten().tolist(),
            strict=True,
        ):  # fmt: skip
            new = now + math.copysign(alpha, slope)
            moved.append(min(max(new, origin - epsilon, 0), origin + epsilon, 1))
        current = torch.tensor(moved, dtype=torch.float64).view(x.shape)
    attack = pgd(model, x, y, epsilon, normalize=shifted, steps=5, step_size=alpha)
    torch.testing.assert_close(attack.images, current, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("random", [False, True])
def test_pgd_stays_in_the_ball_and_in_the_image(steps: int, random: bool) -> None:
    x = pixels(12)
    start = torch.empty_like(x).uniform_(-0.2, 0.2) if random else None
    attack = pgd(network(), x, labels(12), 0.2, normalize=shifted, steps=steps, start=start)
    assert attack.images.min() >= 0
    assert attack.images.max() <= 1
    assert ((attack.images - x).abs() <= 0.2 + 1e-7).all()
    assert not torch.equal(attack.images, x)


def test_pgd_climbs_higher_than_fgsm() -> None:
    """On a small network trained to tell bright left halves from bright right ones."""
    torch.manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(64, 1, 8, 8)
    y = torch.arange(64) % 2
    x[y == 0, :, :, :4] += 0.1
    x[y == 1, :, :, 4:] += 0.1
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(128, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = F.cross_entropy(model(shifted(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    losses = []
    for attack in (fgsm, pgd, partial(pgd, steps=40)):
        moved = attack(model, x, y, 0.05, normalize=shifted).images
        losses.append(F.cross_entropy(model(shifted(moved)), y).item())
    assert loss.item() < losses[0] < losses[1]
    assert losses[2] > 0.99 * losses[1]


def test_pgd_at_epsilon_zero_gives_the_images() -> None:
    x = pixels()
    attack = pgd(network(), x, labels(), 0, normalize=shifted, start=torch.zeros_like(x))
    assert torch.equal(attack.images, x)
    assert not attack.masked.any()


def test_pgd_starts_where_it_is_told() -> None:
    x = pixels()
    start = torch.empty_like(x).uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(1))
    still = pgd(network(), x, labels(), 0.1, normalize=shifted, steps=1, step_size=0, start=start)
    torch.testing.assert_close(still.images, (x + start).clamp(0, 1))
    free = pgd(network(), x, labels(), 0.1, normalize=shifted, start=start)
    again = pgd(network(), x, labels(), 0.1, normalize=shifted, start=start)
    assert torch.equal(free.images, again.images)
    assert not torch.equal(free.images, pgd(network(), x, labels(), 0.1, normalize=shifted).images)


def test_pgd_tells_masked_images() -> None:
    x = torch.full((3, 1, 4, 4), 0.3)
    x[1] = 0.7
    attack = pgd(Apart(), x, torch.zeros(3, dtype=torch.long), 0.1, normalize=as_is)
    assert attack.masked.tolist() == [False, True, False]
    assert torch.equal(attack.images[1], x[1])
    torch.testing.assert_close(attack.images[0], x[0] - 0.1)


def test_an_image_with_a_gradient_at_one_step_is_not_masked() -> None:
    """From 0.45 the label's score is raised past 0.5, where it no longer changes."""
    x = torch.full((1, 1, 4, 4), 0.45)
    attack = pgd(Apart(), x, torch.ones(1, dtype=torch.long), 0.2, normalize=as_is, step_size=0.1)
    torch.testing.assert_close(attack.images, x + 0.1)
    assert attack.masked.tolist() == [False]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("function", [constant, detached])
def test_pgd_with_no_gradient_at_all(function: Callable[[Tensor], Tensor], bias: bool) -> None:
    attack = pgd(Constant(function, bias), pixels(), labels(), 0.1, normalize=shifted)
    assert attack.masked.all()
    assert torch.equal(attack.images, pixels())


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_pgd_under_callers_without_gradients(caller: Callable[[], torch.no_grad]) -> None:
    model = network().train()
    model[0].weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    start = torch.full((4, 3, 8, 8), 0.05)
    expected = pgd(model, pixels(), labels(), 0.1, normalize=shifted, start=start).images
    with caller():
        start = torch.full((4, 3, 8, 8), 0.05)
        attack = pgd(model, pixels(), labels(), 0.1, normalize=shifted, start=start)
        assert not torch.is_grad_enabled()
    assert torch.equal(attack.images, expected)
    assert not attack.images.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "`steps` of at least 1"),
        ({"step_size": -0.1}, "`step_size` of at least 0"),
        ({"step_size": math.nan}, "`step_size` of at least 0"),
        ({"start": torch.full((4, 3, 8, 8), 0.2)}, "within ±0.1.*as far as 0.2"),
        ({"start": torch.zeros(4, 1, 8, 8)}, r"`start` as \(4, 3, 8, 8\)"),
    ],
)
def test_pgd_settings_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TCNNError, match=message):
        pgd(network(), pixels(), labels(), 0.1, normalize=shifted, **wrong)
