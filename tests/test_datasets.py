"""Every layout of labelled images, read in this process and in others, and files of every kind."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from tcnn.datasets import open_images
from tcnn.decoding import UnreadableImage, decode
from tcnn.errors import TCNNError
from tcnn.images import DataError, Images, Subset, hold_out, take

Pixels = npt.NDArray[np.uint8]
Samples = list[tuple[str, Pixels]]  # class, picture


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no connection to other machines."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def encoded(pixels: Pixels | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


PNG = encoded(np.zeros((1, 1, 3), np.uint8))


def samples(*names: str, each: int = 2) -> Samples:
    """Pictures that differ in size and colour, class by class."""
    return [
        (name, np.full((2 + i, 3, 3), 20 * place + i, np.uint8))
        for place, name in enumerate(names)
        for i in range(each)
    ]


def write(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


def tar(file: Path, members: dict[str, bytes | str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            content = data.encode() if isinstance(data, str) else data
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def table(items: Samples, names: list[str] | None = None) -> datasets.Dataset:
    """A Hugging Face dataset as its hub has them, with a column that is neither image nor label."""
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=names) if names else datasets.Value("string"),
        width=datasets.Value("int32"),
    )
    rows = {
        "image": [{"bytes": encoded(pixels), "path": None} for _, pixels in items],
        "label": [names.index(name) if names else name for name, _ in items],
        "width": [pixels.shape[1] for _, pixels in items],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def as_folder(root: Path, items: Samples) -> None:
    for i, (name, pixels) in enumerate(items):
        write(root / "train" / name / f"{i:03}.png", encoded(pixels))


def as_tar(root: Path, items: Samples) -> None:
    half = len(items) // 2
    for part, chunk in enumerate((items[:half], items[half:])):
        members = {f"./{name}/{part}{i}.png": encoded(p) for i, (name, p) in enumerate(chunk)}
        tar(root / "train" / f"shard-{part}.tar", members)


def as_webdataset(root: Path, items: Samples) -> None:
    members: dict[str, bytes | str] = {}
    for i, (name, pixels) in enumerate(items):
        members |= {f"{i:03}.png": encoded(pixels), f"{i:03}.cls": f"{name}\n"}
    tar(root / "train-000000.tar", members)


def as_webdataset_json(root: Path, items: Samples) -> None:
    members: dict[str, bytes | str] = {}
    for i, (name, pixels) in enumerate(items):
        members |= {f"{i}.json": json.dumps({"label": name}), f"{i}.image.png": encoded(pixels)}
    tar(root / "train.tar", members)


def as_parquet(root: Path, items: Samples) -> None:
    whole = table(items, sorted({name for name, _ in items}))
    (root / "data").mkdir(parents=True)
    for part in range(2):
        shard = whole.shard(2, part, contiguous=True)
        shard.to_parquet(root / "data" / f"train-0000{part}-of-00002.parquet")


def as_plain_parquet(root: Path, items: Samples) -> None:
    """Without Hugging Face's description: bytes and text."""
    from pyarrow import parquet
    from pyarrow import table as arrow

    (root / "train").mkdir(parents=True)
    columns = {"picture": [encoded(p) for _, p in items], "class": [name for name, _ in items]}
    parquet.write_table(arrow(columns), root / "train" / "a.parquet")


def as_saved(root: Path, items: Samples) -> None:
    datasets.DatasetDict(train=table(items)).save_to_disk(root)


LAYOUTS: list[Callable[[Path, Samples], None]] = [
    as_folder,
    as_tar,
    as_webdataset,
    as_webdataset_json,
    as_parquet,
    as_plain_parquet,
    as_saved,
]


def contents(images: Images) -> list[tuple[str, Pixels]]:
    """Class and pixels of each image."""
    pictures = [images.read(index) for index in range(len(images))]
    assert {picture.mode for picture in pictures} <= {"RGB"}
    names = [images.classes[label] for label in images.labels]
    return list(zip(names, map(np.asarray, pictures), strict=True))


def assert_same(got: Samples, expected: Samples) -> None:
    assert [name for name, _ in got] == [name for name, _ in expected]
    for (_, pixels), (_, other) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(pixels, other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_images_that_were_written(
    layout: Callable[[Path, Samples], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    items = samples("ant", "bee", "cat")
    layout(tmp_path, items)
    capfd.readouterr()
    before = sorted(tmp_path.rglob("*"))
    images = open_images(tmp_path, "train")
    assert capfd.readouterr() == ("", "")  # no progress bars
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written beside the data
    assert not datasets.are_progress_bars_disabled()
    assert images.classes == ("ant", "bee", "cat")
    assert images.labels.dtype == np.int64 and len(images) == 6
    assert_same(contents(images), items)
    assert len({images.name(index) for index in range(6)}) == 6
    assert images.name(0).startswith(("train", "data/train"))


def test_names_say_where_an_image_lies(tmp_path: Path) -> None:
    items = samples("ant", "bee", each=4)
    names = {}
    for layout in LAYOUTS:
        root = tmp_path / f"{layout.__name__} [1] *"  # no pattern
        layout(root, items)
        images = open_images(root, "train")
        names[layout.__name__] = images.name(4)
        assert images.name(-4) == images.name(4)
    assert names == {
        "as_folder": "train/bee/004.png",
        "as_tar": "train/shard-1.tar/bee/10.png",
        "as_webdataset": "train-000000.tar/004.png",
        "as_webdataset_json": "train.tar/4.image.png",
        "as_parquet": "data/train-00001-of-00002.parquet row 0",
        "as_plain_parquet": "train/a.parquet row 4",
        "as_saved": "train row 4",
    }


class Reading(Dataset[tuple[str, int, bytes]]):
    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, int, bytes]:
        label = int(self.images.labels[index])
        return self.images.name(index), label, self.images.read(index).tobytes()


def as_they_are(batch: list[Any]) -> list[Any]:
    return batch


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_worker_processes_read_what_this_one_reads(
    context: str, workers: int, tmp_path: Path
) -> None:
    parts: list[Reading] = []
    for layout in LAYOUTS:
        layout(tmp_path / layout.__name__, samples("ant", "bee", each=3))
        images = open_images(tmp_path / layout.__name__, "train")
        parts.append(Reading(images))
    parts.append(Reading(Subset(images, np.array([5, 0]))))
    whole = ConcatDataset(parts)
    expected = [whole[index] for index in range(len(whole))]
    loader = DataLoader(
        whole, 5, num_workers=workers, multiprocessing_context=context, collate_fn=as_they_are
    )
    assert [item for batch in loader for item in batch] == expected


pictures = st.lists(
    st.tuples(
        st.sampled_from(["1", "10", "2", "b", "a ü"]),
        arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=5).map(lambda s: (*s, 3))),
    ),
    min_size=1,
    max_size=6,
)


@given(pictures)
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_layouts_agree(tmp_path_factory: pytest.TempPathFactory, items: Samples) -> None:
    numbers = all(name.isdecimal() for name, _ in items)
    found = sorted({name for name, _ in items}, key=int if numbers else None)
    items = sorted(items, key=lambda item: found.index(item[0]))
    for layout in (as_folder, as_tar, as_webdataset, as_plain_parquet):
        root = tmp_path_factory.mktemp("layout")
        layout(root, items)
        images = open_images(root, "train")
        assert images.classes == tuple(found)
        assert_same(contents(images), items)


def test_class_folders_of_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    as_folder(tmp_path, samples(*(str(i) for i in range(12)), each=1))
    images = open_images(tmp_path, "train")
    assert images.classes == tuple(str(i) for i in range(12))
    assert images.labels.tolist() == list(range(12))
    assert images.name(2) == "train/2/002.png"


def test_folders_at_any_depth_links_and_what_is_left_out(tmp_path: Path) -> None:
    for name in ("a/2.JPG", "a/10.png", "a/deep/er/x.webp", "a/._2.jpg", "a/.git/x.jpg", "a/n.txt"):
        write(tmp_path / "train" / name, PNG)
    for name in (".ipynb_checkpoints/x.jpg", ".DS_Store", "readme.md"):
        write(tmp_path / "train" / name, PNG)
    write(tmp_path / "elsewhere" / "y.tif", PNG)
    (tmp_path / "train" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
    images = open_images(tmp_path, "train")
    assert [images.name(index) for index in range(len(images))] == [
        "train/a/10.png",
        "train/a/2.JPG",
        "train/a/deep/er/x.webp",
        "train/b/y.tif",
    ]
    flat = open_images(tmp_path / "train", "")
    assert flat.name(3) == "b/y.tif" and flat.read(3).size == (1, 1)


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_names_of_the_validation_split_are_one(name: str, tmp_path: Path) -> None:
    write(tmp_path / name / "a" / "x.png", PNG)
    assert len(open_images(tmp_path, "val")) == len(open_images(tmp_path, "validation")) == 1
    with pytest.raises(DataError, match="'test' images"):
        open_images(tmp_path, "test")
    with pytest.raises(DataError, match="nowhere' is not a folder"):
        open_images(tmp_path / "nowhere", "val")


def test_numbers_stand_for_the_lines_of_classes_txt(tmp_path: Path) -> None:
    items = samples("1", "0", each=1)
    as_webdataset(tmp_path, items)
    assert open_images(tmp_path, "train").classes == ("0", "1")
    write(tmp_path / "classes.txt", "tench\ngoldfish\n")
    images = open_images(tmp_path, "train")
    assert images.classes == ("tench", "goldfish") and images.labels.tolist() == [1, 0]
    for text, message in (("tench\n", "labels below 1"), ("a\na\n", "'a' more than once")):
        write(tmp_path / "classes.txt", text)
        with pytest.raises(DataError, match=message):
            open_images(tmp_path, "train")
    tar(tmp_path / "train.tar", {"1/x.png": PNG, "0/x.png": PNG, "0/._x.png": "", "x.json": "{}"})
    (tmp_path / "train-000000.tar").unlink()
    images = open_images(tmp_path, "train")
    assert images.classes == ("0", "1") and len(images) == 2  # folders are names


def test_of_two_labels_cls_counts(tmp_path: Path) -> None:
    notes = {"x.cls": "a", "x.json": '{"label": "b"}'}
    for order in (notes, dict(reversed(notes.items()))):
        tar(tmp_path / "train.tar", {"x.png": PNG, **order})
        assert open_images(tmp_path, "train").classes == ("a",)


def test_the_models_classes_are_matched_by_name(tmp_path: Path) -> None:
    items = samples("ant", "bee", "cat")
    for layout in (as_folder, as_webdataset, as_parquet):
        root = tmp_path / layout.__name__
        layout(root, items)
        images = open_images(root, "train", classes=["cat", "ant", "bee"])
        assert images.classes == ("cat", "ant", "bee")
        assert images.labels.tolist() == [1, 1, 2, 2, 0, 0]
        assert_same(contents(images), items)
        with pytest.raises(DataError, match=r"1 are missing \('dog'\) and 1 are foreign \('cat'\)"):
            open_images(root, "train", classes=["dog", "ant", "bee"])
        with pytest.raises(DataError, match=r"10 are missing \('0', '1', '2' and 7 more\)"):
            open_images(root, "train", classes=[str(i) for i in range(10)])


def test_a_parquet_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    for name, when in (("ant", 10**9), ("bee", 10**9 + 5)):
        table(samples(name)).to_parquet(tmp_path / "train.parquet")
        os.utime(tmp_path / "train.parquet", (when, when))
        assert open_images(tmp_path, "train").classes == (name,)


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    items = samples("ant", "bee")
    whole = table(items, ["ant", "bee"])
    whole = whole.add_column("coarse", [0, 0, 0, 0], feature=datasets.ClassLabel(names=["animal"]))
    whole.save_to_disk(tmp_path / "label")
    assert_same(contents(open_images(tmp_path, "label")), items)
    whole.rename_column("label", "fine_label").save_to_disk(tmp_path / "fine")
    assert open_images(tmp_path, "fine").classes == ("ant", "bee")
    whole.rename_column("label", "species").save_to_disk(tmp_path / "species")
    with pytest.raises(DataError, match=r"one column of labels .* got 'species', 'coarse' of"):
        open_images(tmp_path, "species")
    stored = whole.cast_column("image", datasets.Image(decode=False))["image"][:]
    two = whole.add_column("more", stored, feature=datasets.Image())
    two.save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match=r"one column of images .* got 'image', 'more' of"):
        open_images(tmp_path, "two")
    whole.remove_columns("image").save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match=r"one column of images .* got none of"):
        open_images(tmp_path, "none")
    whole.cast_column("label", datasets.Value("float32")).save_to_disk(tmp_path / "float")
    with pytest.raises(DataError, match=r"'label' .* as integers or text"):
        open_images(tmp_path, "float")
    for label in (-1, None):
        rows = {"image": stored[:2], "label": [0, label]}
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / f"{label}")
        with pytest.raises(DataError, match="1 of 2 have none"):
            open_images(tmp_path, f"{label}")


def test_rows_whose_image_is_elsewhere_or_nowhere(tmp_path: Path) -> None:
    file = write(tmp_path / "x.png", encoded(np.full((1, 1, 3), 7, np.uint8)))
    rows = {
        "image": [{"bytes": None, "path": path} for path in (str(file), "gone.png", None)],
        "label": [3, 3, 3],
    }
    (tmp_path / "train").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train" / "a.parquet")
    images = open_images(tmp_path, "train")
    assert images.classes == ("3",) and images.read(0).getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(UnreadableImage, match=r"'train/a.parquet row 1' cannot: No such file"):
        images.read(1)
    with pytest.raises(UnreadableImage, match="row 2' cannot: the file is empty"):
        images.read(2)


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ({}, "train", "but it holds none"),
        ({"train/x.jpg": PNG, "notes": ""}, "train", "it holds 'train/x.jpg', 'notes', 'train'"),
        ({"train/a/x.jpg": PNG, "train/b/n.txt": ""}, "train", r"of 1 .* \(empty class\): 'b'"),
        ({"train/a/x.jpg": PNG}, "", "got 'train', which are names of splits"),
        ({"train/a/x.jpg": PNG, "train.tar": ""}, "train", "class folders in .* and .tar files in"),
        ({"val/a/x.jpg": PNG, "valid/a/x.jpg": PNG}, "val", "one set .* and class folders"),
        ({"trainval.tar": ""}, "train", "it holds 'trainval.tar'"),
        ({"train.tar": ""}, "", "it holds 'train.tar'"),
        ({"train.tar": b"\x1f\x8b" + b"x" * 600}, "train", "whole tar file.*train.tar"),
        ({"train.tar": b"\0" * 10240}, "train", "Expected images in .* there is none"),
        ({"train.parquet": "no"}, "train", "whole data for `datasets` in .*train.parquet"),
        ({"train/state.json": "no"}, "train", "whole data for `datasets` in .*train'"),
    ],
)
def test_other_layouts_are_told_in_one_line(
    files: dict[str, bytes | str], split: str, message: str, tmp_path: Path
) -> None:
    for name, data in files.items():
        write(tmp_path / name, data)
    with pytest.raises(DataError, match=message) as error:
        open_images(tmp_path, split)
    assert isinstance(error.value, TCNNError) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.png": PNG}, "<class>/x.jpg, or a label .* got 'x.png'"),
        ({"x.png": PNG, "x.cls": "1", "y.png": PNG}, "none for 'y.png'"),
        ({"x.png": PNG, "x.mask.png": PNG, "x.cls": "1"}, "got several of 'x'"),
        ({"x.png": PNG, "x.json": "{"}, "labels as text or JSON"),
        ({"train/a/x.png": PNG}, "got 'train', which are names of splits"),
        ({"notes.txt": ""}, "there is none"),
    ],
)
def test_tars_that_are_not_understood(
    members: dict[str, bytes | str], message: str, tmp_path: Path
) -> None:
    tar(tmp_path / "train.tar", members)
    with pytest.raises(DataError, match=message):
        open_images(tmp_path, "train")


def test_damaged_tars_are_refused_whole(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {f"a/{i}.png": PNG for i in range(4)}
    file = tar(tmp_path / "train.tar", members)
    data = file.read_bytes()
    for damaged in (data[:1200], data[:1024], data[:1500], data[:1024] + b"x" * 512 + data[1536:]):
        file.write_bytes(damaged)
        if damaged == data[:1024]:  # ends after a whole member: only the end mark is gone
            assert len(open_images(tmp_path, "train")) == 1
            continue
        with pytest.raises(DataError, match=r"whole tar file.*train.tar"):
            open_images(tmp_path, "train")
    with tarfile.open(file, "w") as archive:
        folder = tarfile.TarInfo("a.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        link = tarfile.TarInfo("a/x.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a/y.png"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"'a/x.png' is a link"):
        open_images(tmp_path, "train")


def test_take_is_balanced_fixed_by_its_seed_and_keeps_the_order(tmp_path: Path) -> None:
    items = samples("a", each=10) + samples("b", each=20) + samples("c", each=30)
    as_webdataset(tmp_path, items)
    images = open_images(tmp_path, "train")
    assert take(images, None, 0) is images and take(images, 60, 0) is images
    some = take(images, 12, seed=1)
    assert np.bincount(some.labels).tolist() == [2, 4, 6] and some.classes == images.classes
    names = [some.name(index) for index in range(12)]
    assert names == sorted(set(names))
    again, other = take(images, 12, seed=1), take(images, 12, seed=2)
    assert names == [again.name(index) for index in range(12)]
    assert names != [other.name(index) for index in range(12)]
    for count in range(1, 60):
        shares = np.bincount(take(images, count, 0).labels, minlength=3)
        assert shares.sum() == count
        assert (np.abs(shares - np.array([10, 20, 30]) * count / 60) < 1).all()
    rest, held = hold_out(images, 12, seed=1)
    assert [held.name(index) for index in range(12)] == names and len(rest) == 48
    assert {rest.name(index) for index in range(48)}.isdisjoint(names)
    every = {take(images, 6, seed).name(0) for seed in range(60)}
    assert len(every) == 10  # any image of the class is taken at times


# --- files ---------------------------------------------------------------------------------------


def pixels_of(data: bytes) -> list[Any]:
    return np.asarray(decode(data)).tolist()


def test_transparency_lies_on_white() -> None:
    red = encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))
    assert pixels_of(red) == [[[255, 127, 127]]]
    clear = [
        encoded(Image.new("RGBA", (1, 1), (9, 9, 9, 0))),
        encoded(Image.new("RGBA", (1, 1), (9, 9, 9, 0)), "WEBP", lossless=True),
        encoded(Image.new("LA", (1, 1), (9, 0))),
        encoded(Image.new("PA", (1, 1)), "TIFF"),
        encoded(Image.new("RGB", (1, 1), (9, 8, 7)), transparency=(9, 8, 7)),
        encoded(Image.new("L", (1, 1), 9), transparency=9),
        encoded(Image.new("P", (1, 1), 5), "GIF", transparency=5),
    ]
    assert [pixels_of(data) for data in clear] == [[[[255, 255, 255]]]] * len(clear)


def palette() -> Image.Image:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.putdata([2, 0, 1])
    return picture


def test_palettes() -> None:
    rows = [[[70, 80, 90], [10, 20, 30], [40, 50, 60]]]
    assert pixels_of(encoded(palette())) == rows
    assert pixels_of(encoded(palette(), "GIF")) == rows
    see_through = encoded(palette(), transparency=bytes([255, 0, 255]))
    assert pixels_of(see_through) == [[[70, 80, 90], [10, 20, 30], [255, 255, 255]]]


def test_deep_grey_levels_are_scaled_not_clipped() -> None:
    levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    grey = [[[v, v, v] for v in (0, 0, 1, 128, 255)]]
    for data in (
        encoded(Image.fromarray(levels)),
        encoded(Image.fromarray(levels), "TIFF"),
        encoded(Image.fromarray(levels.astype(">u2")), "TIFF"),
        encoded(Image.fromarray(levels.astype(np.int32)), "TIFF"),
        b"P5 5 1 65535\n" + levels.astype(">u2").tobytes(),
    ):
        assert pixels_of(data) == grey
    floats = np.array([[0, 0.5, 1]], np.float32)
    assert pixels_of(encoded(Image.fromarray(floats), "TIFF")) == [
        [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    ]


def test_grey_levels_of_another_kind_are_refused() -> None:
    deep = Image.fromarray(np.array([[0, 65535]], np.uint16))
    for picture, options in (
        (Image.fromarray(np.array([[0, 65536]], np.int32)), {}),
        (Image.fromarray(np.array([[-1, 5]], np.int32)), {}),
        (Image.fromarray(np.array([[0, 255]], np.float32)), {}),
        (Image.fromarray(np.array([[0, np.nan]], np.float32)), {}),
        (deep, {"tiffinfo": {262: 0}}),
    ):
        with pytest.raises(UnreadableImage, match="grey levels"):
            decode(encoded(picture, "TIFF", **options))
    bits = struct.pack("<HHII", 258, 3, 1, 16)  # how many, as the file says it
    twelve = encoded(deep, "TIFF").replace(bits, struct.pack("<HHII", 258, 3, 1, 12))
    with pytest.raises(UnreadableImage, match="12 bits"):
        decode(twelve)


def test_one_bit_and_one_pixel() -> None:
    bits = Image.fromarray(np.array([[True, False]]))
    assert pixels_of(encoded(bits)) == [[[255] * 3, [0] * 3]]
    assert pixels_of(encoded(Image.new("L", (1, 1), 77))) == [[[77, 77, 77]]]
    assert pixels_of(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "BMP")) == [[[1, 2, 3]]]


def test_the_inks_of_cmyk_jpegs() -> None:
    for inks, colour in (
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 0, 255, 0), (0, 255, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ):
        data = encoded(Image.new("CMYK", (8, 8), inks), "JPEG", quality=100)
        assert np.abs(np.asarray(decode(data), int) - colour).max() <= 2
    # Adobe's YCCK keeps the inks (0, 255, 255) as their Y = 179, Cb = 171, Cr = 0, and 255 - K.
    # The file is written as CMYK, whose inks are kept as 255 - ink, and marked as YCCK.
    data = encoded(Image.new("CMYK", (8, 8), (76, 84, 255, 0)), "JPEG", quality=100)
    marker = data.index(b"Adobe")
    ycck = data[: marker + 11] + b"\x02" + data[marker + 12 :]
    assert np.abs(np.asarray(decode(ycck), int) - (255, 0, 0)).max() <= 3


def test_exif_orientation_is_undone() -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    upright = {  # where the first row and the first column of the stored picture belong
        1: stored,  # top, left
        2: stored[:, ::-1],  # top, right
        3: stored[::-1, ::-1],  # bottom, right
        4: stored[::-1],  # bottom, left
        5: stored.T,  # left, top
        6: stored[::-1].T,  # right, top
        7: stored[::-1, ::-1].T,  # right, bottom
        8: stored[:, ::-1].T,  # left, bottom
    }
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
            got = np.asarray(decode(encoded(stored, format, exif=exif, **options)))
            np.testing.assert_array_equal(got[..., 0], expected)
        blocks = np.kron(stored, np.ones((8, 8), np.uint8))
        got = np.asarray(decode(encoded(blocks, "JPEG", exif=exif)))[4::8, 4::8, 0]
        assert np.abs(got.astype(int) - expected).max() <= 2
    damaged = encoded(stored, exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(np.asarray(decode(damaged))[..., 0], stored)


def test_animations_show_their_first_frame() -> None:
    first, second = Image.new("RGB", (2, 1), (255, 0, 0)), Image.new("RGB", (2, 1), (0, 0, 255))
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(first, format, save_all=True, append_images=[second], **options)
        assert pixels_of(data) == [[[255, 0, 0]] * 2]


@pytest.fixture(scope="module")
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_truncated_files_are_refused(format: str, noise: Image.Image) -> None:
    data = encoded(noise, format)
    decode(data)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(UnreadableImage) as error:
            decode(data[: int(len(data) * share)])
        assert error.value.reason and "\n" not in str(error.value) and "0x" not in str(error.value)


def test_what_is_no_picture_is_named_with_the_reason(
    tmp_path: Path, noise: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "cut.jpg": (encoded(noise, "JPEG")[:700], "image file is truncated"),
        "empty.jpg": (b"", "the file is empty"),
        "icon.png": (encoded(noise, "ICO"), "it is no JPEG, PNG"),
        "text.jpg": (b"<html>404</html>", "it is no JPEG, PNG"),
    }
    for name, (data, _) in files.items():
        write(tmp_path / "train" / "a" / name, data)
    (tmp_path / "train" / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    reasons = {f"train/a/{name}": reason for name, (_, reason) in files.items()}
    reasons["train/a/gone.jpg"] = "No such file or directory"
    images = open_images(tmp_path, "train")
    assert len(images) == 5
    for index in range(5):
        with pytest.raises(UnreadableImage) as error:
            images.read(index)
        assert error.value.name == images.name(index)
        assert error.value.reason.startswith(reasons.pop(images.name(index)))
        again = pickle.loads(pickle.dumps(error.value))
        assert (again.name, again.reason, str(again)) == (
            error.value.name,
            error.value.reason,
            str(error.value),
        )
    for limit in (500, 100):  # Pillow warns above its limit, and refuses above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableImage, match=r"768 pixels.*bomb"):
            decode(encoded(noise))


@pytest.fixture(scope="module")
def seeds(noise: Image.Image) -> Iterator[list[bytes]]:
    formats = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield [encoded(noise, format) for format in formats] + [
        encoded(noise, "JPEG", exif=exif),
        encoded(palette(), transparency=bytes([255, 0, 255])),
    ]


@given(st.integers(0, 8), st.lists(st.tuples(st.integers(0, 1), st.integers(0, 255)), max_size=9))
@settings(max_examples=150, deadline=None)
def test_damage_gives_a_picture_or_a_reason(
    seeds: list[bytes], which: int, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(seeds[which])
    for place, (near, value) in enumerate(changes):
        at = (value * 7 + place * 31) % (64 if near else len(data))
        data[at % len(data)] = value
    with warnings.catch_warnings(action="error"):
        try:
            assert decode(bytes(data)).mode == "RGB"
        except UnreadableImage as error:
            assert error.reason and "\n" not in str(error)
