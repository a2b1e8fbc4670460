"""Order and augmentation that depend on the seed, the epoch and the image alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tcnn.data import ArrayImages, ImageSet
from tcnn.data_config import DataConfig
from tcnn.decoding import UnreadableImage
from tcnn.images import DataError, Images
from tcnn.loaders import ImageData, open_data
from tcnn.train_config import TrainConfig
from tcnn.view import View
from training import batches, cnn, trained

RGB = View((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)
AUGMENTED = {"aa": "rand-m9-mstd0.5-inc1", "reprob": 0.5, "hflip": 0.5}


def told(n: int = 40) -> ImageSet:
    """Images whose pixels are their index, so that an image can be told from any other."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 8, 8, 3))
    return ImageSet(images.copy(), np.arange(n) % 4, tuple("abcd"))


def noise(n: int = 20) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 12, 9, 3)).astype(np.uint8)
    return ImageSet(pixels, np.arange(n) % 2, ("a", "b"))


def images(
    source: ImageSet | Images, batch_size: int = 8, accumulate: int = 1, **config: Any
) -> ImageData:
    options = {"crop": "none", "hflip": 0, "workers": 0} | config
    sets = [
        source if isinstance(source, Images) else ArrayImages(source, name)
        for name in ("train", "val")
    ]
    return ImageData(*sets, RGB, DataConfig(**options), batch_size, 3, accumulate)


class Trainer:
    """What the data ask of a trainer."""

    training = True

    def __init__(self, world: int = 1, rank: int = 0, epoch: int = 0) -> None:
        self.world_size, self.global_rank, self.current_epoch = world, rank, epoch


def epoch(data: ImageData, *place: int, split: str = "train") -> list[Any]:
    """The batches that a trainer at a place (processes, rank, epoch) gets."""
    data.trainer = Trainer(*place)  # type: ignore[assignment]
    return list(data.train_dataloader() if split == "train" else data.val_dataloader())


def indices(found: list[Any]) -> list[list[int]]:
    return [((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist() for x, *_ in found]


def flat(lists: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def test_an_epoch_is_a_permutation_and_each_is_another() -> None:
    data = images(told())
    epochs = [flat(indices(epoch(data, 1, 0, e))) for e in range(3)]
    assert all(sorted(order) == list(range(40)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3
    assert flat(indices(epoch(images(told()), 1, 0, 2))) == epochs[2]
    other = ImageData(*data.images.values(), RGB, data.config, 8, seed=4)
    assert flat(indices(epoch(other))) != epochs[0]
    for x, y, unread in epoch(data):
        assert (((x[:, 0, 0, 0] + 1) * 127.5).round().long() % 4 == y).all()
        assert unread == []


def test_what_does_not_fill_a_batch_is_left_out_and_is_another_each_time() -> None:
    data = images(told(), 9)
    assert data.steps == 4
    orders = [set(flat(indices(epoch(data, 1, 0, e)))) for e in range(3)]
    assert [len(order) for order in orders] == [36] * 3
    assert orders[0] != orders[1]


@pytest.mark.parametrize("crop", ["rrc", "pad"])
def test_the_same_to_the_bit_with_any_number_of_readers(crop: str) -> None:
    runs = [
        epoch(images(noise(), 4, crop=crop, workers=workers, **AUGMENTED), 1, 0, 1)
        for workers in (0, 1, 2)
    ]
    for run in runs[1:]:
        for (x, y, _), (other_x, other_y, _) in zip(runs[0], run, strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)
    # And it is random: no image is as in the next epoch.
    next_epoch = epoch(images(noise(), 4, crop=crop, **AUGMENTED), 1, 0, 2)
    seen = {tuple(x.flatten().tolist()) for batch in runs[0] for x in batch[0]}
    assert not seen & {tuple(x.flatten().tolist()) for batch in next_epoch for x in batch[0]}


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_share_the_batches_of_one(world: int, accumulate: int) -> None:
    whole = indices(epoch(images(told(), crop="pad"), 1, 0, 1))
    data = images(told(), accumulate=accumulate, crop="pad")
    parts = [indices(epoch(data, world, rank, 1)) for rank in range(world)]
    for step, batch in enumerate(whole):
        pieces = [part[step * accumulate + turn] for turn in range(accumulate) for part in parts]
        assert {len(piece) for piece in pieces} == {8 // (world * accumulate)}
        assert flat(pieces) == batch


def test_an_epoch_taken_up_in_the_middle_goes_on() -> None:
    whole = [epoch(images(noise(), 4, **AUGMENTED), 1, 0, e) for e in (1, 2)]
    data = images(noise(), 4, **AUGMENTED)
    data.start = (1, 3)
    rest, after = epoch(data, 1, 0, 0), epoch(data, 1, 0, 1)
    for found, expected in ((rest, whole[0][3:]), (after, whole[1])):
        for (x, *_), (y, *_) in zip(found, expected, strict=True):
            assert torch.equal(x, y)


def test_random_numbers_of_the_process_are_left_alone() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    pictures = images(noise(), 4, crop="rrc", **AUGMENTED).train_dataloader().dataset
    assert pictures[0, 1][0].shape == (3, 8, 8)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_sees_every_image_once(world: int) -> None:
    data = images(told(37))
    found, counts = [], set()
    for rank in range(world):
        run = epoch(data, world, rank, 5, split="val")
        counts.add(len(run))
        found += [i for (x, y, _) in run for i in indices([(x[y >= 0],)])[0]]
    assert sorted(found) == list(range(37))
    assert len(counts) == 1  # as many batches everywhere, or they wait for each other


# Images that cannot be read


class Holed(ArrayImages):
    """The images named by `holes` cannot be read."""

    def __init__(self, source: ImageSet, holes: set[int]) -> None:
        super().__init__(source, "x")
        self.holes = holes

    def read(self, index: int) -> Any:
        if index in self.holes:
            raise UnreadableImage(self.name(index), "a hole")
        return super().read(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_readable_image_takes_the_place(workers: int) -> None:
    holes = {3, 4, 39}
    data = images(Holed(told(), holes), workers=workers)
    plain = flat(indices(epoch(images(told()))))
    run = epoch(data)
    expected = [{3: 5, 4: 5, 39: 0}.get(index, index) for index in plain]
    assert flat(indices(run)) == expected
    for x, y, _ in run:
        assert (((x[:, 0, 0, 0] + 1) * 127.5).round().long() % 4 == y).all()
    named = {line for *_, unread in run for line in unread}
    assert named == {(f"x {index}", "a hole") for index in holes}


def test_validation_leaves_it_out() -> None:
    run = epoch(images(Holed(told(), {3, 39})), split="val")
    labels = torch.cat([y for _, y, _ in run])
    assert (labels == -1).nonzero().flatten().tolist() == [3, 39]
    assert [unread for *_, unread in run if unread] == [[("x 3", "a hole")], [("x 39", "a hole")]]


def bars_with(holes: set[int], holes_in: str, **config: Any) -> ImageData:
    data = batches(16, 8, 8, **config)
    data.images[holes_in] = Holed(ImageSet(*_parts(data.images[holes_in])), holes)
    return data


def _parts(source: Any) -> Any:
    return source._pixels, source.labels, source.classes


RECIPE = TrainConfig(epochs=1, batch_size=8)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_it_ends_the_run_on_request(split: str, workers: int) -> None:
    data = bars_with({2}, split, unreadable="fail", workers=workers)
    with pytest.raises(UnreadableImage) as error:
        trained(cnn(), RECIPE, data)
    assert str(error.value) == "Expected an image that can be read, but 'x 2' cannot: a hole."


@pytest.mark.parametrize(("split", "words"), [("train", "training"), ("val", "validation")])
def test_not_one_can_be_read(split: str, words: str) -> None:
    data = bars_with(set(range(16)), split, workers=1)
    with pytest.raises(DataError, match=f"{words} images that can be read, but not one can; the "):
        trained(cnn(), RECIPE, data)


def test_a_run_names_what_it_could_not_read() -> None:
    data = bars_with({2, 5}, "train")
    result = trained(cnn(), RECIPE, data)
    assert result.unreadable == {"x 2": "a hole", "x 5": "a hole"}
    result = trained(cnn(), RECIPE, bars_with({1}, "val"))
    assert result.unreadable == {"x 1": "a hole"}
    assert (result.last.val_top1 * 7) % 1 == pytest.approx(0, abs=1e-5)


# Which images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six training and two validation images."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            place = root / split / name
            place.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (9, 8), (index, 0, 0)).save(place / f"{index}.png")
    return root


def test_open_data(folder: Path) -> None:
    def names(**options: Any) -> list[list[str]]:
        sets = open_data(DataConfig(root=str(folder), **options))
        return [[part.name(i) for i in range(len(part))] for part in sets]

    train, val = names()
    assert (len(train), len(val)) == (12, 4)
    rest, held = names(holdout=4)
    assert len(held) == 4
    assert set(rest) | set(held) == set(train)
    assert not set(rest) & set(held)
    assert sum("cat" in name for name in held) == 2
    few, fewer = names(max_train=6, max_val=2)
    assert set(few) < set(train)
    assert sum("cat" in name for name in few) == 3
    assert sum("cat" in name for name in fewer) == 1
    assert names(holdout=4) == [rest, held]
    with pytest.raises(DataError, match="`holdout` below the 12 training images, but got 12"):
        names(holdout=12)


def test_the_classes_of_a_model(folder: Path) -> None:
    config = DataConfig(root=str(folder))
    turned = open_data(config, ("dog", "cat"))
    assert [part.classes for part in turned] == [("dog", "cat")] * 2
    assert [part.labels[0] for part in turned] == [1, 1]  # cats come first
    with pytest.raises(DataError, match=r"1 are missing \('bird'\) and 1 are foreign \('dog'\)"):
        open_data(config, ("cat", "bird"))
    (folder / "train" / "empty").mkdir()
    with pytest.raises(DataError, match=r"of 1 there is none .*'empty'"):
        open_data(config)
    (folder / "train" / "empty").rmdir()


def test_digits() -> None:
    train, val = open_data(DataConfig(root="digits"))
    assert (len(train), len(val)) == (1079, 359)
    assert train.read(0).size == (32, 32)
    few, held = open_data(DataConfig(root="digits", holdout=20, max_train=30), train.classes)
    assert (len(few), len(held)) == (30, 20)
    assert set(np.bincount(few.labels).tolist()) <= {2, 3, 4}
    assert few.read(0).mode == "RGB"
    with pytest.raises(DataError, match="a model of the ten digits"):
        open_data(DataConfig(root="digits"), ("a", "b"))


def test_too_few_for_a_batch() -> None:
    with pytest.raises(DataError, match="one batch of 64 training images, but got 40"):
        images(told(), 64)


def test_identity_tells_runs_apart() -> None:
    def identity(**options: Any) -> dict[str, Any]:
        return images(told(), **options).identity()

    assert identity() == identity(workers=2, unreadable="fail")
    assert identity() != identity(reprob=0.1)
    other = told()
    other.labels[0] = 1
    assert identity() != images(other).identity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "`workers` to be 0 or more, but got -1"),
        ({"holdout": -1}, "`holdout`"),
        ({"max_train": 0}, "`max_train` to be 1 or more, or null"),
        ({"max_val": -1}, "`max_val`"),
        ({"hflip": 1.1}, r"`hflip` to be in \[0, 1\]"),
        ({"reprob": -0.1}, "`reprob`"),
        ({"scale": (0.5, 0.1)}, "`scale` to be two rising shares"),
        ({"scale": (0.0, 1.0)}, "`scale`"),
        ({"color_jitter": -1.0}, "`color_jitter` to be 0 or more"),
        ({"color_jitter": 0.4, "aa": "rand-m9"}, "`color_jitter` to be 0 where `aa` is given"),
        ({"crop": "centre"}, "`crop` to be one of rrc, pad, none"),
        ({"unreadable": "ask"}, "`unreadable` to be one of skip, fail"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


FOREVER = """
import os, time
from torch.utils.data import DataLoader
from tcnn.reading import Pictures, reader_options

class Pids:
    def __len__(self): return 2
    def __getitem__(self, index): return os.getpid(), os.getppid()

if __name__ == "__main__":
    for batch in DataLoader(Pids(), batch_size=None, **reader_options(1, Pictures.__module__)):
        print(*batch, flush=True)
        time.sleep(600)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "forever.py").write_text(FOREVER)
    run = subprocess.Popen(
        [sys.executable, tmp_path / "forever.py"], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    processes = [int(word) for word in run.stdout.readline().split()]
    assert len(processes) == 2
    run.kill()
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 60
    while any(_alive(process) for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # One that nobody has waited for is dead nevertheless.
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
