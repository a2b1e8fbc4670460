"""Published suites: what a network must score, whatever its order of classes, and what is said of
files that are not as published."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from published_trees import Tree, answer, colour, standard
from tcnn import imagenet
from tcnn.decoding import UnreadableImage
from tcnn.images import DataError, Images
from tcnn.published import (
    EXTRA,
    STANDARD,
    SUITES,
    PublishedImages,
    PublishedPart,
    open_published,
)
from tcnn.published_cifar import CIFAR10

WNIDS = tuple(sorted(standard()))


def shuffled(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(np.random.default_rng(0).permutation(names).tolist())


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """One of each suite, with wrong answers planted; for reading alone."""
    tree = Tree(tmp_path_factory.mktemp("trees"))
    tree.imagenet_c(["gaussian_noise", "weather/fog"], wrong=3)
    tree.cifar10_c(["fog", "saturate"], wrong=2)
    tree.subset("imagenet-a", wrong=5)
    tree.subset("imagenet-r", wrong=7)
    tree.imagenet_v2(wrong=11)
    tree.imagenet_sketch("sketch", wrong=13)
    for folder in tree.root.iterdir():
        (folder / "README.txt").write_text("as published")
        (folder / ".hidden").mkdir()
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def some(trees: Tree, tree: Tree) -> Iterator[Callable[[str], Path]]:
    """Copies of a suite, whose names can be changed."""

    def copy(suite: str, below: str = "") -> Path:
        target = tree.root / suite
        shutil.copytree(trees.root / suite / below, target, copy_function=os.link)
        return target

    yield copy


def right(part: PublishedPart, names: tuple[str, ...], favourite: str | None = None) -> list[bool]:
    """Which images a network gets right that answers what their colours say.

    Args:
        part: what it is shown.
        names: the class of each of its outputs.
        favourite: a class that it puts above every other.
    """
    known = CIFAR10 if len(names) == 10 else WNIDS
    opened = part.open()
    results = []
    for index, label in enumerate(opened.images.labels):
        logits = np.zeros(len(names))
        logits[names.index(known[answer(opened.images.read(index))])] = 1
        if favourite is not None:
            logits[names.index(favourite)] = 2
        competing = logits if part.outputs is None else logits[part.outputs]
        best = int(competing.argmax())
        results.append(best == label if opened.accepted is None else best in opened.accepted[index])
    return results


def counts(suite: str, folder: Path, classes: tuple[str, ...] | None) -> dict[Any, tuple[int, int]]:
    """Images that are wrong, and all, by part."""
    names = classes or (CIFAR10 if suite == "cifar10-c" else WNIDS)
    result = {}
    for part in open_published(suite, folder, len(names), classes):
        hits = right(part, names)
        result[part.name, part.severity] = len(hits) - sum(hits), len(hits)
    return result


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message and message.startswith("Expected ") and message.endswith(".")
    return message


def opening(suite: str, folder: Path) -> str:
    """What is said of a folder that is refused at once."""
    outputs = 10 if suite == "cifar10-c" else 1000
    return refusal(lambda: open_published(suite, folder, outputs))


WRONG = {
    "imagenet-a": (5, 200),
    "imagenet-r": (7, 200),
    "imagenet-v2": (11, 1000),
    "imagenet-sketch": (13, 1000),
}


@pytest.mark.parametrize("suite", WRONG)
@pytest.mark.parametrize("classes", [None, shuffled(WNIDS)], ids=["standard", "shuffled"])
def test_planted_mistakes_are_all_that_is_wrong(
    trees: Tree, suite: str, classes: tuple[str, ...] | None
) -> None:
    assert counts(suite, trees.root / suite, classes) == {("", None): WRONG[suite]}


@pytest.mark.parametrize("classes", [None, shuffled(WNIDS)], ids=["standard", "shuffled"])
def test_imagenet_c(trees: Tree, classes: tuple[str, ...] | None) -> None:
    expected = {
        (name, severity): (3 * severity, 1000)
        for name in ("gaussian_noise", "fog")
        for severity in (1, 2, 3, 4, 5)
    }
    parts = open_published("imagenet-c", trees.root / "imagenet-c", 1000, classes)
    assert [(part.name, part.severity) for part in parts] == list(expected)
    assert all(part.view_fixed and part.outputs is None for part in parts)
    for part in parts[::4]:  # (noise, 1), (noise, 5), (fog, 4): reading all of them takes long
        hits = right(part, classes or WNIDS)
        assert (len(hits) - sum(hits), len(hits)) == expected[part.name, part.severity]
    opened = parts[5].open()
    assert opened.note == "1000 images, but 50000 were published"
    assert opened.images.name(0) == "weather/fog/1/n01440764/n01440764.JPEG"
    assert opened.images.classes == (classes or WNIDS)


@pytest.mark.parametrize("classes", [None, shuffled(CIFAR10)], ids=["standard", "shuffled"])
def test_cifar10_c(trees: Tree, classes: tuple[str, ...] | None) -> None:
    expected = {(n, s): (2 * s, 20) for n in ("fog", "saturate") for s in (1, 2, 3, 4, 5)}
    assert counts("cifar10-c", trees.root / "cifar10-c", classes) == expected


@pytest.mark.parametrize("suite", ["imagenet-a", "imagenet-r"])
def test_a_class_outside_the_200_does_not_compete(tree: Tree, suite: str) -> None:
    folder = tree.subset(suite)
    names = shuffled(WNIDS)
    (part,) = open_published(suite, folder, 1000, names)
    inside = set(imagenet.wnids_a() if suite == "imagenet-a" else imagenet.wnids_r())
    outside = next(name for name in names if name not in inside)
    assert part.outputs is not None and part.outputs.dtype == np.int64
    assert [names[output] for output in part.outputs] == sorted(inside)
    assert sum(right(part, names, favourite=outside)) == 200
    assert sum(right(part, names, favourite=min(inside))) == 1


def test_timms_lists_agree() -> None:
    assert imagenet.wnids() == WNIDS and len(WNIDS) == 1000
    for letter, names in (("a", imagenet.wnids_a()), ("r", imagenet.wnids_r())):
        file = resources.files("timm") / "data" / "_info" / f"imagenet_{letter}_indices.txt"
        assert [standard()[name] for name in names] == [int(n) for n in file.read_text().split()]
    assert len(imagenet.real_labels()) == 50_000
    assert sum(not labels for labels in imagenet.real_labels()) == 3163


def test_v2s_folders_are_numbers(trees: Tree) -> None:
    """As text, "10" comes before "2"."""
    (part,) = open_published("imagenet-v2", trees.root / "imagenet-v2", 1000)
    images = part.open().images
    assert images.labels.tolist() == list(range(1000))
    assert [images.name(place) for place in (2, 10)] == ["2/2.JPEG", "10/10.JPEG"]


@pytest.mark.parametrize("below", ["", "sketch", "val"])
def test_sketch_in_a_folder_of_its_own(some: Callable[..., Path], below: str) -> None:
    folder = some("imagenet-sketch", "sketch")
    if below:
        folder.rename(folder.parent / below)
        folder.mkdir()
        (folder.parent / below).rename(folder / below)
    (part,) = open_published("imagenet-sketch", folder, 1000)
    name = part.open().images.name(0)
    assert name.removeprefix(f"{below}/") == "n01440764/n01440764.JPEG"


@pytest.mark.parametrize("below", ["", "n01440764", "val", "val/n01440764"])
@pytest.mark.parametrize("classes", [None, shuffled(WNIDS)], ids=["standard", "shuffled"])
def test_real_takes_any_of_several_labels(
    tree: Tree, below: str, classes: tuple[str, ...] | None
) -> None:
    """Images 2 and 3 have two labels each, image 1 none, image 4 one."""
    assert imagenet.real_labels()[:4] == ((), (970, 795), (230, 231), (809,))
    folder = tree.imagenet_real({1: 5, 2: 970, 3: 231, 4: 231}, below)
    (folder / below / "notes.csv").write_text("no picture")
    (part,) = open_published("imagenet-real", folder, 1000, classes)
    names = classes or WNIDS
    assert right(part, names) == [True, True, False]
    opened = part.open()
    assert opened.accepted is not None
    assert [{WNIDS.index(names[label]) for label in labels} for labels in opened.accepted] == [
        {970, 795},
        {230, 231},
        {809},
    ]
    assert [names[label] for label in opened.images.labels] == [WNIDS[k] for k in (970, 230, 809)]
    assert opened.note == (
        "4 images, but 50000 were published; 1 of 4 images have no ReaL label and are left out"
    )
    assert opened.images.name(0) == os.path.join(below, "ILSVRC2012_val_00000002.JPEG")


def test_real_takes_hugging_faces_names(tree: Tree) -> None:
    folder = tree.imagenet_real({2: 795})
    (folder / "ILSVRC2012_val_00000002.JPEG").rename(
        folder / "ILSVRC2012_val_00000002_n04550184.JPEG"
    )
    (part,) = open_published("imagenet-real", folder, 1000)
    assert right(part, WNIDS) == [True]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ILSVRC2012_val_00050001.JPEG", "but got 'ILSVRC2012_val_00050001.JPEG': move it"),
        ("ILSVRC2012_val_00000000.JPEG", "but got 'ILSVRC2012_val_00000000.JPEG': move it"),
        ("cat.jpg", "but got 'cat.jpg': move it"),
        ("n01440764/ILSVRC2012_val_00000002.JPEG", "each validation image once"),
        (None, "got 1 images, of which none has a ReaL label"),
    ],
)
def test_real_refuses(tree: Tree, name: str | None, said: str) -> None:
    folder = tree.imagenet_real({1 if name is None else 2: 5})
    if name is not None:
        (folder / name).parent.mkdir(exist_ok=True)
        tree.link(folder / name, 5)
    (part,) = open_published("imagenet-real", folder, 1000)
    assert said in refusal(part.open)


SHOWN = [("imagenet-c", "weather/fog/3"), ("imagenet-r", ""), ("imagenet-sketch", "sketch")]


@pytest.mark.parametrize(("suite", "below"), [*SHOWN, ("imagenet-v2", "")])
def test_class_folders_are_exactly_the_published_ones(
    some: Callable[..., Path], suite: str, below: str
) -> None:
    folder = some(suite)
    first = sorted(path for path in (folder / below).iterdir() if path.name[0] in "n1")[0]
    first.rename(folder / below / "zebra")
    message = opening(suite, folder)
    count = 200 if suite == "imagenet-r" else 1000
    assert f"Expected {suite}'s {count} class folders in {str(folder / below)!r}" in message
    assert f"1 are missing ({first.name!r}) and 1 foreign ('zebra')" in message
    shutil.rmtree(folder / below / "zebra")
    assert f"1 are missing ({first.name!r}) and 0 foreign (none)" in opening(suite, folder)


@pytest.mark.parametrize(("suite", "below"), SHOWN)
def test_an_empty_class_is_told_when_its_part_is_opened(
    some: Callable[..., Path], suite: str, below: str
) -> None:
    folder = some(suite)
    name = imagenet.wnids_r()[1]
    for file in (folder / below / name).iterdir():
        file.unlink()
    parts = open_published(suite, folder, 1000)
    part = next(part for part in parts if (part.name, part.severity) in {("", None), ("fog", 3)})
    message = refusal(part.open)
    assert f"class folder of {str(folder / below)!r}, but 1 are empty ({name!r})" in message


def test_a_class_that_goes_away_is_told(some: Callable[..., Path]) -> None:
    folder = some("imagenet-a")
    (part,) = open_published("imagenet-a", folder, 1000)
    shutil.rmtree(folder / imagenet.wnids_a()[0])
    assert "1 are missing ('n01498041')" in refusal(part.open)


def bare_c(root: Path) -> Path:
    """ImageNet-C without pictures."""
    folder = root / "c"
    for severity in range(1, 6):
        for name in WNIDS:
            (folder / "fog" / str(severity) / name).mkdir(parents=True)
    return folder


def test_imagenet_c_refuses(tmp_path: Path) -> None:
    folder = bare_c(tmp_path)
    assert [part.severity for part in open_published("imagenet-c", folder, 1000)] == [1, 2, 3, 4, 5]
    (folder / "fog" / "2").rename(folder / "fog" / "6")
    message = opening("imagenet-c", folder)
    assert "5 severities of fog" in message and "missing ('2') and 1 foreign ('6')" in message
    (folder / "fog" / "6").rename(folder / "fog" / "2")
    (folder / "weather" / "fog").mkdir(parents=True)
    assert "each corruption once" in opening("imagenet-c", folder)
    (folder / "weather" / "fog").rename(folder / "weather" / "mist")
    assert "but got 'weather/mist'" in opening("imagenet-c", folder)
    (folder / "weather" / "mist").rename(folder / "mist")
    assert "but got 'mist'" in opening("imagenet-c", folder)
    (folder / "mist").rmdir()
    (folder / "fog").rename(tmp_path / "fog")
    assert "it has none" in opening("imagenet-c", folder)
    (folder / "digital").symlink_to(tmp_path / "linked")  # the corruption in a linked group
    (tmp_path / "linked").mkdir()
    (tmp_path / "fog").rename(tmp_path / "linked" / "fog")
    assert len(open_published("imagenet-c", folder, 1000)) == 5


@pytest.mark.parametrize("suite", SUITES)
def test_a_folder_that_is_none(tmp_path: Path, suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"folder with {suite}" in opening(suite, tmp_path / "missing")
    (tmp_path / "file").touch()
    assert "is no folder" in opening(suite, tmp_path / "file")
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    assert "it is empty" in opening(suite, tmp_path / "empty")

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert "Permission denied" in opening(suite, tmp_path / "empty")


@pytest.mark.parametrize("suite", SUITES)
def test_the_networks_classes_are_the_suites(trees: Tree, suite: str) -> None:
    folder = trees.root / suite
    names = CIFAR10 if suite == "cifar10-c" else WNIDS
    said = refusal(lambda: open_published(suite, folder, len(names) + 1))
    assert f"{len(names)} classes for {suite}, but got one with {len(names) + 1} outputs" in said
    other = ("other", *names[1:])
    said = refusal(lambda: open_published(suite, folder, len(names), other))
    assert f"1 are missing ({names[0]!r}) and 1 foreign ('other')" in said
    twice = (names[1], *names[1:])
    assert "more than once" in refusal(lambda: open_published(suite, folder, len(names), twice))


def test_no_such_suite(tmp_path: Path) -> None:
    assert "imagenet-sketch" in refusal(lambda: open_published("imagenet-b", tmp_path, 1000))


def test_the_corruptions_are_19() -> None:
    assert len(STANDARD) == 15 and len(EXTRA) == 4 and len({*STANDARD, *EXTRA}) == 19


def test_rows_of_the_published_array(trees: Tree) -> None:
    parts = open_published("cifar10-c", trees.root / "cifar10-c", 10)
    pixels = np.load(trees.root / "cifar10-c" / "saturate.npy")
    part = next(part for part in parts if (part.name, part.severity) == ("saturate", 3))
    opened = part.open()
    assert part.view_fixed and opened.note == "20 images, but 10000 were published"
    for images in (opened.images, pickle.loads(pickle.dumps(opened.images))):
        assert images.name(7) == "saturate.npy, row 47"
        assert images.read(7).mode == "RGB"
        np.testing.assert_array_equal(np.asarray(images.read(7)), pixels[47])
        assert images.data(7) == pixels[47].tobytes()
    opened.images.read(0)
    assert len(pickle.dumps(opened.images)) < 2000  # the array itself has 300 kB


class Answers(Dataset[int]):
    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, index: int) -> int:
        return answer(self.images.read(index))

    def __len__(self) -> int:
        return len(self.images)


def test_rows_are_read_in_worker_processes(trees: Tree) -> None:
    part = open_published("cifar10-c", trees.root / "cifar10-c", 10)[0]
    images = part.open().images
    batches = DataLoader(
        Answers(images), 7, num_workers=1, multiprocessing_context="spawn", timeout=60
    )
    found = np.concatenate([batch.numpy() for batch in batches])
    assert (found != images.labels).sum() == 2


def test_a_picture_that_cannot_be_read_is_named(tree: Tree) -> None:
    folder = tree.cifar10_c(["fog"])
    images = open_published("cifar10-c", folder, 10)[0].open().images
    (folder / "fog.npy").write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"fog\.npy, row 0"):
        images.read(0)
    (folder / "fog.npy").unlink()
    with pytest.raises(UnreadableImage, match=r"fog\.npy, row 0"):
        images.read(0)

    folder = tree.imagenet_real({2: 795})
    images = open_published("imagenet-real", folder, 1000)[0].open().images
    (folder / "ILSVRC2012_val_00000002.JPEG").write_bytes(b"\xff\xd8 cut off")
    with pytest.raises(UnreadableImage, match="ILSVRC2012_val_00000002"):
        images.read(0)


PIXELS = np.zeros((20, 32, 32, 3), np.uint8)
LABELS = np.tile(np.arange(4), 5)


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("fog", PIXELS[:15], "but got uint8 (15, 32, 32, 3)"),
        ("fog", PIXELS.astype(np.float32), "but got float32 (20, 32, 32, 3)"),
        ("fog", PIXELS[..., :1], "but got uint8 (20, 32, 32, 1)"),
        ("fog", np.array([{}]), "Python objects"),
        ("labels", np.array([{}]), "Python objects"),
        ("labels", LABELS.astype(float), "but got float64 (20,)"),
        ("labels", LABELS[:19], "but got int64 (19,)"),
        ("labels", LABELS[:0], "but got int64 (0,)"),
        ("labels", LABELS[:, None], "but got int64 (20, 1)"),
        ("labels", LABELS + 7, "but got 7 to 10"),
        ("labels", LABELS - 1, "but got -1 to 2"),
        ("labels", LABELS.astype(np.uint64) + np.uint64(2**63), "but got 9223372036854775808"),
        ("labels", np.arange(20) % 10, "but they differ"),
        ("mist", PIXELS, "but got 'mist.npy'"),
        ("corruption_1", PIXELS, "but got 'corruption_1.npy'"),
    ],
)
def test_arrays_other_than_published(
    tmp_path: Path, name: str, array: npt.NDArray[Any], said: str
) -> None:
    np.save(tmp_path / "fog.npy", PIXELS)
    np.save(tmp_path / "labels.npy", LABELS)
    np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    message = opening("cifar10-c", tmp_path)
    assert said in message and (f"{name}.npy" in message)


@pytest.mark.parametrize("kept", ["fog", "labels", "README"])
def test_arrays_that_are_not_there(tmp_path: Path, kept: str) -> None:
    np.save(tmp_path / f"{kept}.npy", LABELS)
    if kept == "README":
        (tmp_path / "README.npy").rename(tmp_path / "README.txt")
    assert "as labels.npy and corruptions such as" in opening("cifar10-c", tmp_path)


HEAD = b"\x93NUMPY\x01\x00"


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_arrays_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Any bytes, whole files cut off, and heads that are text of any kind."""
    np.save(tmp_path / "labels.npy", LABELS)
    whole = (tmp_path / "labels.npy").read_bytes()
    head = st.text(st.sampled_from("{}()[],:'\"0123456789-<>|uOVbfdescrtanoshpTFl e"), max_size=200)
    cut = st.integers(0, len(whole) - 1).map(lambda end: whole[:end])
    formed = st.builds(
        "{{'descr': {!r}, 'fortran_order': {}, 'shape': {}}}\n".format,
        st.sampled_from(["|u1", "<i8", "<f4", "|O", "<U3", "|V0", [("a", "<i8")]]),
        st.booleans(),
        st.lists(st.sampled_from([0, 1, 20, 32, -1, 2**31, 2**62, 2**70]), max_size=5).map(tuple),
    )
    texts = (head | formed).map(lambda text: HEAD + len(text).to_bytes(2, "little") + text.encode())
    damaged = data.draw(st.one_of(st.binary(max_size=200), cut, texts))
    (tmp_path / "fog.npy").write_bytes(damaged)
    assert "fog.npy" in opening("cifar10-c", tmp_path)
    np.save(tmp_path / "fog.npy", PIXELS)
    (tmp_path / "labels.npy").write_bytes(damaged)
    assert "labels.npy" in opening("cifar10-c", tmp_path)


@pytest.mark.parametrize("kind", ["|V0", "<U0", "|S0"])
@pytest.mark.parametrize("shape", [(20,), (0,), (20, 32, 32, 3)])
def test_items_of_no_bytes(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    """NumPy divides by their size, which would end the process."""
    np.save(tmp_path / "labels.npy", LABELS)
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}}}\n"
    damaged = HEAD + len(text).to_bytes(2, "little") + text.encode()
    (tmp_path / "fog.npy").write_bytes(damaged + bytes(64))
    assert "no bytes" in opening("cifar10-c", tmp_path)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    np.save(tmp_path / "labels.npy", LABELS)
    (tmp_path / "fog.npy").write_bytes(pickle.dumps(Trap()))
    opening("cifar10-c", tmp_path)
    np.save(tmp_path / "fog.npy", np.array([Trap()]), allow_pickle=True)
    opening("cifar10-c", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_colours_survive_jpeg(trees: Tree) -> None:
    """The reader of colours is itself right on every class."""
    assert len({colour(label) for label in range(1000)}) == 1000
    (part,) = open_published("imagenet-v2", trees.root / "imagenet-v2", 1000)
    opened: PublishedImages = part.open()
    found = [answer(opened.images.read(index)) for index in range(1000)]
    assert found == [label + (label < 11) for label in range(1000)]
