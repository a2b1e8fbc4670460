"""Scores of networks whose answers are known from the pixels, and what they are shown."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tcnn.data import ArrayImages, ImageSet
from tcnn.data_config import ImagesConfig
from tcnn.decoding import UnreadableImage
from tcnn.errors import TCNNError
from tcnn.evaluate_config import InferenceConfig
from tcnn.images import DataError
from tcnn.pixels import Shuffled
from tcnn.processes import make_fabric
from tcnn.scoring import AttackConfig, Part, Score, score
from tcnn.view import View

VIEW = View((1, 4, 4), (0.5,), (0.25,), "bilinear", 1.0)
CONFIG = InferenceConfig(accelerator="cpu", batch_size=4)
DATA = ImagesConfig(workers=0)
FABRIC = make_fabric(CONFIG)
CLASSES = tuple("0123456789")


def grey(says: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """4×4 pictures of one grey level, which says a class: 10, 35, 60, …"""
    levels = 10 + 25 * np.array(says, np.uint8)
    return np.tile(levels[:, None, None, None], (1, 4, 4, 1))


class Told(ArrayImages):
    """Images that say a class in their grey, some of them unreadable; counts readings."""

    def __init__(self, says: Sequence[int], labels: Sequence[int], holes: Sequence[int] = ()):
        super().__init__(ImageSet(grey(says), np.array(labels), CLASSES), "grey")
        self.holes, self.readings = holes, 0

    def read(self, index: int) -> Any:
        self.readings += 1
        if index in self.holes:
            raise UnreadableImage(self.name(index), "a hole")
        return super().read(index)


class Reader(nn.Module):
    """Answers what the grey says, the classes nearest to it next; `view` is how it is shown it."""

    def __init__(self, view: View = VIEW) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(view.mean[0]))
        self.register_buffer("std", torch.tensor(view.std[0]))
        self.batches: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(tuple(x.shape))
        level = (x * self.std + self.mean).mean((1, 2, 3), keepdim=True)[:, 0, 0] * 255
        return -((level - 10) / 25 - torch.arange(10)).abs()


def part(
    images: ArrayImages, accepted: Sequence[Collection[int]] | None = None, **more: Any
) -> Part:
    return Part("some", "", None, lambda: (images, accepted, "a note"), None, **more)


def one(images: ArrayImages, model: nn.Module | None = None, **more: Any) -> Score:
    """The score of a network on images."""
    config = more.pop("config", CONFIG)
    data = more.pop("data", DATA)
    chosen = {"net": (model or Reader(), more.pop("view", VIEW))}
    return score(chosen, part(images, **more), data, config, FABRIC)["net"]


SAYS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
LABELS = [0, 1, 2, 3, 5, 5, 0, 7, 8, 1, 9]  # wrong at 4, 6, 9 and 10


@pytest.mark.parametrize("batch", [1, 3, 4, 11, 1000])
def test_a_reader_of_grey_scores_what_the_greys_say(batch: int) -> None:
    model = Reader()
    found = one(Told(SAYS, LABELS), model, config=replace(CONFIG, batch_size=batch))
    result = found.result
    assert result.index.tolist() == list(range(11))
    assert result.predicted.tolist() == SAYS
    assert result.labels.tolist() == LABELS
    right = [says == label for says, label in zip(SAYS, LABELS, strict=True)]
    assert result.correct.tolist() == right
    assert result.top1 == 7 / 11
    assert [size[0] for size in model.batches] == [
        min(batch, 11 - start) for start in range(0, 11, batch)
    ]
    hits, loss, bins = 0, 0.0, [0.0] * 15
    for says, label in zip(SAYS, LABELS, strict=True):
        scores = [-abs(says - k) for k in range(10)]
        above = sorted(range(10), key=lambda k: -scores[k])[:5]
        hits += scores[label] >= scores[above[-1]]  # no label lies on a tie of the fifth place
        total = sum(math.exp(s) for s in scores)
        loss += math.log(total) - scores[label]
        sure = math.exp(max(scores)) / total
        bins[math.ceil(sure * 15) - 1] += (says == label) - sure
    assert result.top5 == hits / 11
    assert result.loss == pytest.approx(loss / 11, rel=1e-4)
    assert result.ece == pytest.approx(sum(map(abs, bins)) / 11, rel=1e-3)
    assert found.note == "a note"
    assert not found.masked.any() and found.masked.shape == (11,)
    assert set(found.seconds) == {"reading", "changing", "computing", "clock"}
    assert min(found.seconds.values()) >= 0
    assert found.unread == ()


def test_outputs_that_do_not_compete() -> None:
    """Of 7, 2, 4 the nearest to the grey wins; labels are places among them."""
    found = one(Told([7, 2, 4, 9, 0], [0, 1, 2, 1, 1]), outputs=(7, 2, 4)).result
    assert found.predicted.tolist() == [0, 1, 2, 0, 1]
    assert found.correct.tolist() == [True, True, True, False, True]
    assert found.top5 == 1
    scores = [-0.0, -5.0, -3.0]
    expected = math.log(sum(math.exp(s) for s in scores))
    assert found.losses[0].item() == pytest.approx(expected, rel=1e-3)


def test_several_accepted_answers_follow_their_image() -> None:
    """Also where images before them cannot be read, and in other batches."""
    images = Told([0, 1, 2, 3, 4, 5], [0, 0, 0, 3, 0, 0], holes=[1])
    accepted = [{0}, {1}, {2, 9}, {8}, {4}, {6, 7}]
    found = one(images, accepted=accepted, config=replace(CONFIG, batch_size=2)).result
    assert found.index.tolist() == [0, 2, 3, 4, 5]
    assert found.correct.tolist() == [True, True, False, True, False]
    assert found.losses.isnan().all()


class Linear(nn.Module):
    """Two scores, ± a weighted sum of pixels: the gradient's sign is that of the weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(16, generator=generator))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        total = x.flatten(1) @ self.weight
        return torch.stack([total, -total], dim=1)


def noise(n: int = 6) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1)).astype(np.uint8)
    pixels[0, 0, 0, 0], pixels[1, 0, 0, 0] = 0, 255  # where it is cut off
    return ArrayImages(ImageSet(pixels, np.arange(n) % 2, ("a", "b")), "noise")


@pytest.mark.parametrize("epsilon", [0.0, 2.0, 40.0])
def test_fgsm_on_a_linear_network_in_closed_form(epsilon: float) -> None:
    """The loss of class a falls along the weights, that of class b rises."""
    images, model = noise(), Linear()
    found = one(images, model, attack=AttackConfig("fgsm", epsilon))
    last = torch.cat([model.seen[1], model.seen[3]])  # after the gradients of each batch
    pixels = torch.from_numpy(images._pixels).permute(0, 3, 1, 2).float() / 255
    away = torch.tensor([-1.0, 1.0]).repeat(3).view(6, 1) * model.weight.detach().sign()
    expected = (pixels + epsilon / 255 * away.view(6, 1, 4, 4)).clamp(0, 1)
    assert torch.allclose(last, (expected - 0.5) / 0.25, atol=1e-5)
    total = ((expected - 0.5) / 0.25).flatten(1) @ model.weight.detach()
    assert found.result.predicted.tolist() == (total < 0).long().tolist()
    assert not found.masked.any()
    clean = one(images, model)
    assert found.pixels == clean.pixels  # of images before any attack
    if epsilon == 0:
        assert torch.equal(found.result.confidence, clean.result.confidence)


def test_images_without_a_gradient_are_told() -> None:
    class Cut(Linear):
        def forward(self, x: Tensor) -> Tensor:
            dark = (x.mean((1, 2, 3)) < 0)[:, None]
            return torch.where(dark, super().forward(x).detach(), super().forward(x))

    images = noise(9)
    found = one(images, Cut(), attack=AttackConfig("fgsm", 2.0))
    dark = images._pixels.reshape(9, -1).mean(1) < 127.5
    assert found.masked.tolist() == dark.tolist()
    assert 0 < dark.sum() < 9


def test_pgd_starts_from_seed_and_place_alone() -> None:
    def shown(batch: int, seed: int, order: slice = slice(None)) -> Tensor:
        """What the network sees first of each image, in pixels."""
        model, images = Linear(), noise()
        config = replace(CONFIG, batch_size=batch)
        one(images, model, attack=AttackConfig("pgd", 8.0, 2, seed), config=config)
        starts = model.seen[::3]  # two steps, and the answer
        return torch.cat(starts) * 0.25 + 0.5

    first = shown(6, 0)
    assert torch.allclose(first, shown(2, 0), atol=1e-6)
    assert torch.allclose(first, shown(1, 0), atol=1e-6)
    assert not torch.allclose(first, shown(6, 1), atol=1e-3)
    pixels = torch.from_numpy(noise()._pixels).permute(0, 3, 1, 2).float() / 255
    moved = (first - pixels).flatten(1) * 255
    assert moved.abs().max() <= 8.001
    assert moved.abs().max() > 6
    assert len({tuple(row) for row in moved.round(decimals=2).tolist()}) == 6


def test_epsilon_0_of_pgd_changes_nothing() -> None:
    images, model = noise(), Linear()
    found = one(images, model, attack=AttackConfig("pgd", 0.0, 3, 0))
    assert torch.equal(found.result.confidence, one(images, model).result.confidence)


def test_images_that_cannot_be_read() -> None:
    images = Told(SAYS, LABELS, holes=[1, 8, 9, 10])  # the last batch of three is empty
    config = replace(CONFIG, batch_size=4)
    found = one(images, config=config)
    assert found.result.index.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert found.result.predicted.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert found.unread == tuple(sorted((f"grey {index}", "a hole") for index in (1, 8, 9, 10)))
    assert len(found.checksums) == len(found.masked) == 7
    with pytest.raises(UnreadableImage, match="'grey 1' cannot: a hole"):
        one(images, data=ImagesConfig(workers=0, unreadable="fail"))
    with pytest.raises(DataError, match="images that can be read, but none of 3 can"):
        one(Told([0, 1, 2], [0, 1, 2], holes=[0, 1, 2]))


def test_equal_pixels_have_equal_hashes() -> None:
    plain = one(Told(SAYS, LABELS))
    assert plain.pixels == one(Told(SAYS, [0] * 11)).pixels  # whatever the labels
    assert plain.pixels != one(Told(SAYS[::-1], LABELS)).pixels
    assert len(plain.pixels) == 8


OTHER = replace(VIEW, mean=(0.1,), std=(2.0,))
SMALL = replace(VIEW, input_size=(1, 2, 2))
COLOUR = View((3, 4, 4), (0.5,) * 3, (0.25,) * 3, "bilinear", 1.0)


@pytest.mark.parametrize(
    ("views", "readings"),
    [
        ([VIEW, VIEW], 1),
        ([VIEW, OTHER], 1),
        ([VIEW, OTHER, VIEW], 1),
        ([VIEW, SMALL], 2),
        ([VIEW, COLOUR], 2),
        ([VIEW, SMALL, OTHER, replace(SMALL, mean=(0.0,))], 2),
        ([VIEW, replace(VIEW, crop_pct=0.5)], 2),
        ([VIEW, replace(VIEW, interpolation="bicubic")], 2),
    ],
)
def test_networks_that_see_alike_share_their_images(views: list[View], readings: int) -> None:
    """And each is given them normalised as it takes them."""
    images = Told(SAYS, LABELS)
    models = {str(number): (Reader(view), view) for number, view in enumerate(views)}
    found = score(models, part(images), DATA, CONFIG, FABRIC)
    assert images.readings == 11 * readings
    for name, (model, view) in models.items():
        assert found[name].result.predicted.tolist() == SAYS
        assert {size[1:] for size in model.batches} == {view.input_size}
        # Images of one level, so that only the size tells their hashes apart.
        alike = view.input_size == views[0].input_size
        assert (found[name].pixels == found["0"].pixels) == alike


@pytest.mark.parametrize(("scale", "side"), [(0.5, 2), (0.75, 3), (1.0, 4), (1.5, 6), (0.01, 1)])
def test_scales_of_the_input(scale: float, side: int) -> None:
    model = Reader()
    found = one(Told(SAYS, LABELS), model, scale=scale)
    assert {size[2:] for size in model.batches} == {(side, side)}
    assert found.result.predicted.tolist() == SAYS


def test_whole_pictures_are_not_cropped() -> None:
    """A frame of white about a black middle: half the side is all that a crop of 50 % sees."""
    pixels = np.full((1, 8, 8, 1), 255, np.uint8)
    pixels[:, 2:6, 2:6] = 0
    images = ArrayImages(ImageSet(pixels, np.zeros(1, np.int64), ("a", "b")), "frame")
    view = replace(VIEW, crop_pct=0.5)
    levels = []
    for whole in (False, True):
        model = Linear()
        one(images, model, view=view, whole=whole)
        levels.append((model.seen[0] * 0.25 + 0.5).mean().item())
    assert levels == pytest.approx([0.0, 0.75], abs=0.01)


def test_changes_are_made_once_and_to_all_networks() -> None:
    images = noise()
    models = {name: (Linear(), view) for name, view in (("a", VIEW), ("b", OTHER))}
    found = score(models, part(images, change=Shuffled(2, 0)), DATA, CONFIG, FABRIC)
    assert found["a"].pixels == found["b"].pixels != one(images).pixels
    assert torch.equal(found["a"].checksums, found["b"].checksums)
    shown = [torch.cat(model.seen) * view.std[0] + view.mean[0] for model, view in models.values()]
    assert torch.allclose(shown[0], shown[1], atol=1e-6)
    for image, (index, pixels) in zip(shown[0], enumerate(images._pixels), strict=True):
        expected = Shuffled(2, 0)(pixels, index)[..., 0] / 255
        assert np.allclose(image[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("attack", [None, AttackConfig("pgd", 2.0, 2)])
def test_a_network_is_left_as_it_was(attack: AttackConfig | None) -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 2), nn.Linear(2, 2)
    ).train()
    model[2].eval()
    model[3].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = one(noise(), model, attack=attack)
    assert [m.training for m in model.modules()] == [True, True, True, False, True, True]
    assert [p.requires_grad for p in model.parameters()] == [True] * 2 + [False] + [True] * 3
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    again = one(noise(), model, attack=attack)
    assert torch.equal(first.result.confidence, again.result.confidence)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("bad size\nand more"), AssertionError("bad size."), ValueError("bad size")],
)
def test_a_network_that_fails_at_a_size_is_told(error: Exception) -> None:
    class Picky(Reader):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 4:
                raise error
            return super().forward(x)

    one(Told(SAYS, LABELS), Picky())
    model = Picky().train()
    with pytest.raises(TCNNError) as caught:
        one(Told(SAYS, LABELS), model, scale=1.5)
    assert str(caught.value) == (
        "Expected a network that runs on images of 1×6×6 (some), but Picky says: bad size: give "
        "--data.input_size, or leave this out."
    )
    assert model.training


def test_want_of_memory_is_not_told_as_a_size() -> None:
    class Large(Reader):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        one(Told(SAYS, LABELS), Large())


def test_scores_that_are_no_numbers_are_told() -> None:
    """Where the highest of NaN is taken, class 0 would be right."""

    class Broken(Reader):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    with pytest.raises(TCNNError, match=r"numbers as scores \(some\), but Broken gives NaN"):
        one(Told(SAYS, LABELS), Broken())


def test_progress_counts_every_image() -> None:
    counted: list[int] = []
    models = {"net": (Reader(), VIEW), "small": (Reader(), SMALL)}
    score(models, part(Told(SAYS, LABELS, holes=[3])), DATA, CONFIG, FABRIC, counted.append)
    assert counted == [4, 4, 3] * 2


def test_devices_that_are_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(TCNNError, match="devices of kind 'gpu', but: ") as caught:
        make_fabric(InferenceConfig(accelerator="gpu"))
    assert "\n" not in str(caught.value)
