"""One set of images to the answers of one or several networks, on one process or several.

Batches are dealt out to the processes whole, so that every image is computed in the company it has
on one process, and is counted once.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tcnn.attacks import Attack, fgsm, pgd
from tcnn.data_config import ImagesConfig
from tcnn.decoding import UnreadableImage
from tcnn.errors import TCNNError
from tcnn.evaluate import EvaluationResult, answers, joined
from tcnn.evaluate_config import InferenceConfig
from tcnn.images import DataError, Images
from tcnn.pixels import Change, PixelImages, Shown, as_listed
from tcnn.processes import gather, shared_errors
from tcnn.reading import Unread, reader_options
from tcnn.running import eval_mode
from tcnn.view import View

Opened = tuple[Images, Sequence[Collection[int]] | None, str]


@dataclass(frozen=True)
class AttackConfig:
    """An attack on every image.

    Attributes:
        kind: fgsm, or pgd from a random start.
        epsilon: its size in grey levels (of 255).
        steps: of pgd.
        seed: of pgd's random starts, which follow from it and the image's place.
    """

    kind: Literal["fgsm", "pgd"]
    epsilon: float
    steps: int = 1
    seed: int = 0

    def __call__(
        self,
        model: nn.Module,
        pixels: Tensor,
        labels: Tensor,
        index: Tensor,
        normalize: Callable[[Tensor], Tensor],
    ) -> Attack:
        size = self.epsilon / 255
        if self.kind == "fgsm":
            return fgsm(model, pixels, labels, size, normalize=normalize)
        start = torch.stack(
            [
                torch.from_numpy(
                    np.random.default_rng([self.seed, zlib.crc32(b"pgd"), place])
                    .uniform(-size, size, tuple(pixels.shape[1:]))
                    .astype(np.float32)
                )
                for place in index.tolist()
            ]
        ).to(pixels)
        return pgd(model, pixels, labels, size, normalize=normalize, steps=self.steps, start=start)


@dataclass(frozen=True)
class Part:
    """One set of images that networks are scored on.

    Attributes:
        suite: what it belongs to.
        name: which of the suite's sets; "" where there is one.
        level: severity, size, share, …; None where there is none.
        open: gives the images, for each all its right classes (None: its label alone), and what a
            reader should know of them.
        source: the images before any change, as plain data; equal for equal images.
        change: what is done to their pixels.
        attack: what is done to them against each network.
        scale: sides of the network's input, by its own.
        whole: whether the files are as a network should see them, and are not cropped again.
        outputs: the network's outputs that compete; labels are places in it. None is all of them.
    """

    suite: str
    name: str
    level: float | None
    open: Callable[[], Opened]
    source: Any
    change: Change | None = None
    attack: AttackConfig | None = None
    scale: float = 1.0
    whole: bool = False
    outputs: tuple[int, ...] | None = None

    @property
    def title(self) -> str:
        """Suite, name and level."""
        return title_of(self.suite, self.name, self.level)

    def seen_by(self, view: View) -> View:
        """The view of a network whose own is `view`."""
        scaled = view.scaled(self.scale)
        return scaled.uncropped() if self.whole else scaled


def title_of(suite: str, name: str, level: float | None) -> str:
    """What a part is called."""
    return " ".join(word for word in (suite, name, "" if level is None else f"{level:g}") if word)


@dataclass(frozen=True)
class Score:
    """One network on one part.

    Attributes:
        result: its answers.
        checksums: CRC-32 of each image's pixels, before any attack, (N,) of int64.
        masked: whether an image had no gradient to attack along, (N,) of bool.
        unread: names of images that could not be read, and why.
        seconds: of the reading and the changing of images (summed over all that read), of the
            network's computing (summed over processes), and on the clock, with that of other
            networks that were shown the same images.
        note: what a reader should know of the images.
    """

    result: EvaluationResult
    checksums: Tensor = field(repr=False)
    masked: Tensor = field(repr=False)
    unread: tuple[Unread, ...]
    seconds: dict[str, float]
    note: str = ""

    @property
    def pixels(self) -> str:
        """A hash of all images' pixels, in their order."""
        return f"{zlib.crc32(self.checksums.numpy().astype('<i8').tobytes()):08x}"


def score(
    models: Mapping[str, tuple[nn.Module, View]],
    part: Part,
    data: ImagesConfig,
    config: InferenceConfig,
    fabric: Fabric,
    counted: Callable[[int], object] = lambda images: None,
) -> dict[str, Score]:
    """Score networks on the images of a part.

    Networks that see images alike are shown the same ones: they are read and changed once.

    Args:
        models: the networks, each with its own view; moved to the fabric's device, and left in
            their modes.
        part: the images.
        data: who reads them, and what to do about those that cannot be read.
        config: batch size and memory format.
        fabric: as from `make_fabric`.
        counted: called with the number of images after each batch of this process.

    Returns:
        A score for each network, the same in every process.

    Raises:
        DataError: the images are not as they should be, or none can be read.
        TCNNError: a network does not run on them.
    """
    with shared_errors(fabric):
        images, accepted, note = part.open()
    groups: dict[View, list[str]] = {}
    for name, (_, view) in models.items():
        groups.setdefault(part.seen_by(view).in_pixels_alike(), []).append(name)
    scores = {}
    for view, names in groups.items():
        begin = time.perf_counter()
        watch = {"reading": 0.0, "changing": 0.0}
        scorers = {
            name: _Scorer(models[name][0], part.seen_by(models[name][1]), part, config, fabric)
            for name in names
        }
        unread: list[Unread] = []
        with shared_errors(fabric):
            shown = PixelImages(images, view, part.change)
            for batch in _loader(shown, data, config, fabric):
                seen = _seen(batch, data, unread, watch)
                if seen is not None:
                    right = None if accepted is None else [accepted[i] for i in seen.index.tolist()]
                    for scorer in scorers.values():
                        scorer.take(seen, right)
                counted(len(batch))
        for name, scorer in scorers.items():
            wall = time.perf_counter() - begin
            shares = gather((scorer.columns(), unread, {**watch, "computing": scorer.seconds}))
            with shared_errors(fabric):
                scores[name] = _score(shares, images, wall, note)
    return scores


@contextmanager
def explained(model: nn.Module, size: Sequence[int], what: str) -> Iterator[None]:
    """Say in one line that a network does not run on images (C, H, W).

    Raises:
        TCNNError: whatever the network raised inside, but for want of memory.
    """
    try:
        yield
    except (TCNNError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # networks check sizes with assertions and with errors of any kind
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise TCNNError(
            f"Expected a network that runs on images of {'×'.join(map(str, size))} ({what}), but "
            f"{type(model).__name__} says: {reason.rstrip('.')}: give --data.input_size, or leave "
            "this out."
        ) from error


@dataclass(frozen=True)
class _Seen:
    """The images of a batch that could be read."""

    index: Tensor
    pixels: Tensor
    labels: Tensor
    checksums: Tensor


def _seen(
    batch: Sequence[Shown], data: ImagesConfig, unread: list[Unread], watch: dict[str, float]
) -> _Seen | None:
    there = []
    for shown in batch:
        watch["reading"] += shown.seconds[0]
        watch["changing"] += shown.seconds[1]
        if shown.unread is None:
            there.append(shown)
        elif data.unreadable == "fail":
            raise UnreadableImage(*shown.unread)
        else:
            unread.append(shown.unread)
    if not there:
        return None
    return _Seen(
        torch.tensor([shown.place for shown in there]),
        torch.stack([shown.pixels for shown in there if shown.pixels is not None]),
        torch.tensor([shown.label for shown in there]),
        torch.tensor([shown.checksum for shown in there]),
    )


class _Scorer:
    """One network, and its answers so far."""

    def __init__(
        self, model: nn.Module, view: View, part: Part, config: InferenceConfig, fabric: Fabric
    ) -> None:
        self.view, self.part, self.fabric = view, part, fabric
        layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.model = fabric.to_device(model).to(memory_format=layout)
        self.outputs = None
        if part.outputs is not None:
            self.outputs = torch.tensor(part.outputs, device=fabric.device)
        self.results: list[EvaluationResult] = []
        self.checksums: list[Tensor] = []
        self.masked: list[Tensor] = []
        self.seconds = 0.0

    def take(self, seen: _Seen, accepted: Sequence[Collection[int]] | None) -> None:
        begin = time.perf_counter()
        pixels = seen.pixels.to(self.fabric.device).float() / 255
        masked = torch.zeros(len(pixels), dtype=torch.bool)
        size = tuple(pixels.shape[1:])
        running = explained(self.model, size, self.part.title)
        with eval_mode(self.model), self.fabric.autocast(), running:
            if self.part.attack is not None:
                labels = seen.labels.to(pixels.device)
                attack = self.part.attack(
                    self.model, pixels, labels, seen.index, self.view.normalize
                )
                pixels, masked = attack.images, attack.masked.cpu()
            with torch.no_grad():
                logits = self.model(self.view.normalize(pixels))
        if logits.isnan().any():
            raise TCNNError(
                f"Expected numbers as scores ({self.part.title}), but {type(self.model).__name__} "
                "gives NaN: give --engine.precision 32, or other weights."
            )
        if self.outputs is not None:
            logits = logits[:, self.outputs]
        self.results.append(answers(logits, seen.index, seen.labels, accepted))
        self.checksums.append(seen.checksums)
        self.masked.append(masked)
        self.seconds += time.perf_counter() - begin

    def columns(self) -> list[tuple[EvaluationResult, Tensor, Tensor]]:
        return list(zip(self.results, self.checksums, self.masked, strict=True))


def _score(shares: Sequence[Any], images: Images, wall: float, note: str) -> Score:
    """What all processes found, as one."""
    columns = [column for found, _, _ in shares for column in found]
    if not columns:
        raise DataError(f"Expected images that can be read, but none of {len(images)} can.")
    places = torch.cat([result.index for result, _, _ in columns]).argsort()
    return Score(
        result=joined([result for result, _, _ in columns]),
        checksums=torch.cat([checksums for _, checksums, _ in columns])[places],
        masked=torch.cat([masked for _, _, masked in columns])[places],
        unread=tuple(sorted(line for _, unread, _ in shares for line in unread)),
        seconds={
            **{key: sum(watch[key] for _, _, watch in shares) for key in shares[0][2]},
            "clock": wall,
        },
        note=note,
    )


def _loader(
    images: PixelImages, data: ImagesConfig, config: InferenceConfig, fabric: Fabric
) -> Iterable[list[Shown]]:
    starts = range(0, len(images), config.batch_size)
    batches = [
        list(range(start, min(start + config.batch_size, len(images))))
        for start in starts[fabric.global_rank :: fabric.world_size]
    ]
    return DataLoader(
        images,
        batch_sampler=batches,
        collate_fn=as_listed,
        **reader_options(data.workers, PixelImages.__module__),
    )
