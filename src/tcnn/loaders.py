"""Images to batches, in an order and with an augmentation that can be taken up anywhere.

All randomness of an image follows from the seed, the epoch and the image's place in its set, and
from nothing else: neither from the number of processes that read or train, nor from whatever was
drawn before. So a run can go on from the middle of an epoch, and two processes see between them
what one sees.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Sampler

from tcnn.data import ArrayImages, digits, split
from tcnn.data_config import DataConfig, ImagesConfig
from tcnn.datasets import open_images
from tcnn.decoding import UnreadableImage
from tcnn.images import DataError, Images, hold_out, take
from tcnn.reading import PADDING, Pictures, batch_of, reader_options
from tcnn.view import View


def open_data(config: DataConfig, classes: Sequence[str] | None = None) -> tuple[Images, Images]:
    """The training and the validation images that a configuration names.

    Args:
        config: where they are, and how many to take.
        classes: those that a model was saved with; None takes the training set's own.

    Raises:
        DataError: as from `open_images`, or more are held out than there are.
    """
    train = _part(config, "train", classes)
    if config.holdout:
        if config.holdout >= len(train):
            raise DataError(
                f"Expected `holdout` below the {len(train)} training images, but got "
                f"{config.holdout}."
            )
        train, val = hold_out(train, config.holdout, seed=0)
    else:
        val = _part(config, "val", train.classes)
    return take(train, config.max_train, seed=0), take(val, config.max_val, seed=0)


def open_validation(config: ImagesConfig, classes: Sequence[str] | None = None) -> Images:
    """The validation images that a configuration names.

    Args:
        config: where they are, and how many to take.
        classes: those that a model was saved with; None takes the set's own.

    Raises:
        DataError: as from `open_images`.
    """
    return take(_part(config, "val", classes), config.max_val, seed=0)


def _part(config: ImagesConfig, part: str, classes: Sequence[str] | None) -> Images:
    """All images of "train" or "val"."""
    if config.root != "digits":
        return open_images(config.root, getattr(config, part), classes)
    parts = split(digits(), seed=0)
    images = ArrayImages(parts.train if part == "train" else parts.test, f"digits {part}")
    if classes is not None and tuple(classes) != images.classes:
        raise DataError(f"Expected a model of the ten digits, but it was saved with {classes}.")
    return images


class _Order(Sampler[list[tuple[int, int]]]):
    """The batches of one epoch for one process, as lists of (epoch, index).

    A global batch is dealt out in equal parts, the first to the first process.
    """

    def __init__(self, order: npt.NDArray[np.int64], epoch: int, batch: int, start: int) -> None:
        self.order, self.epoch, self.batch, self.start = order, epoch, batch, start

    def __len__(self) -> int:
        return len(self.order) // self.batch - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for at in range(self.start, len(self.order) // self.batch):
            chunk = self.order[at * self.batch : (at + 1) * self.batch]
            yield [(self.epoch, int(index)) for index in chunk]


class ImageData(lightning.LightningDataModule):
    """The images of a run in batches, for Lightning: a new order and new augmentation every epoch.

    For a trainer with `use_distributed_sampler=False` and `reload_dataloaders_every_n_epochs=1`.
    The images that do not fill a training batch are left out, other ones in every epoch. A batch is
    (images, labels, names and reasons of images that could not be read).

    Args:
        train, val: the images.
        view: how the network takes them.
        config: augmentation, and who reads.
        batch_size: images in a step, over all processes and accumulations.
        seed: fixes order and augmentation.
        accumulate: backward passes in a step.

    Attributes:
        start: epoch and batch to begin with.

    Raises:
        DataError: there are fewer training images than a batch takes.
    """

    def __init__(
        self,
        train: Images,
        val: Images,
        view: View,
        config: DataConfig,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.images = {"train": train, "val": val}
        self.view, self.config, self.seed = view, config, seed
        self.batch_size, self.accumulate = batch_size, accumulate
        self.start = (0, 0)
        if len(train) < batch_size:
            raise DataError(
                f"Expected at least one batch of {batch_size} training images, but got "
                f"{len(train)}: give a smaller batch_size."
            )

    @property
    def steps(self) -> int:
        """Steps of the optimiser in an epoch."""
        return len(self.images["train"]) // self.batch_size

    def identity(self) -> dict[str, Any]:
        """What two runs on the same images have in common, as plain data."""
        return {
            "view": asdict(self.view),
            "config": asdict(replace(self.config, root="", workers=0, unreadable="skip")),
            **{
                name: [
                    len(images),
                    list(images.classes),
                    zlib.crc32(images.labels.tobytes()),
                    zlib.crc32(repr([images.name(i) for i in _some(len(images))]).encode()),
                ]
                for name, images in self.images.items()
            },
        }

    def train_dataloader(self) -> DataLoader[Any]:
        """The rest of the epoch that the trainer is in."""
        world, rank, done = self._place()
        epoch, batch = self.start if done == 0 else (self.start[0] + done, 0)
        key = np.random.SeedSequence([self.seed, epoch])
        order = np.random.default_rng(key).permutation(len(self.images["train"]))
        order = order[: self.steps * self.batch_size]
        part = self.batch_size // (world * self.accumulate)
        order = order.reshape(-1, world, part)[:, rank].ravel()
        return self._loader("train", _Order(order, epoch, part, batch), self.seed)

    def val_dataloader(self) -> DataLoader[Any]:
        """All validation images, dealt out to the processes, padded to equal numbers of batches."""
        world, rank, _ = self._place()
        part = max(1, self.batch_size // (world * self.accumulate))
        count = len(self.images["val"])
        order = np.full(-(-count // (world * part)) * world * part, PADDING)
        order[:count] = np.arange(count)
        return self._loader("val", _Order(order.reshape(-1, world)[:, rank], 0, part, 0), None)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Stop on images that cannot be read, here where an error keeps its class and message."""
        _, labels, unread = batch
        if unread:
            name, reason = unread[0]
            if self.config.unreadable == "fail":
                raise UnreadableImage(name, reason)
            if self.trainer is not None and self.trainer.training and (labels == PADDING).any():
                raise DataError(
                    "Expected training images that can be read, but not one can; the first is "
                    f"{name!r}: {reason}."
                )
        return batch

    def _place(self) -> tuple[int, int, int]:
        """Processes, which of them this is, and epochs since the trainer began."""
        trainer = self.trainer
        if trainer is None:
            return 1, 0, 0
        return trainer.world_size, trainer.global_rank, trainer.current_epoch

    def _loader(self, split: str, order: _Order, seed: int | None) -> DataLoader[Any]:
        pictures = Pictures(self.images[split], self.view, self.config, seed)
        return DataLoader(
            pictures,
            batch_sampler=order,
            collate_fn=batch_of,
            pin_memory=torch.cuda.is_available(),
            **reader_options(self.config.workers, Pictures.__module__),
        )


def _some(count: int) -> list[int]:
    """At most 10,000 places, evenly spread."""
    return [round(i) for i in np.linspace(0, count - 1, min(count, 10_000))]
