"""Images read and transformed, in worker processes that a fork of this one does not make.

Without Lightning, so that the workers start soon.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tcnn.data_config import DataConfig
from tcnn.decoding import UnreadableImage
from tcnn.images import Images
from tcnn.view import View

Unread = tuple[str, str]  # name of an image, and why it cannot be read
PADDING = -1  # where an image should be, in the last batch of validation


class Pictures(Dataset[Any]):
    """Images transformed; its items are asked for by (epoch, index)."""

    def __init__(self, images: Images, view: View, config: DataConfig, seed: int | None) -> None:
        self.images, self.view, self.seed = images, view, seed
        self.transform = view.transform(None if seed is None else config)
        # In training the next image takes the place of one that cannot be read.
        self.tries = 1 if seed is None or config.unreadable == "fail" else len(images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, list[Unread]]:
        """An image, its label, and what could not be read; a label of -1 for no image."""
        epoch, index = key
        unread: list[Unread] = []
        for tried in range(0 if index == PADDING else self.tries):
            at = (index + tried) % len(self.images)
            try:
                with warnings.catch_warnings(action="ignore"), _randomness(self.seed, epoch, at):
                    picture = self.view.channels(self.images.read(at))
                    return self.transform(picture), int(self.images.labels[at]), unread
            except UnreadableImage as error:
                unread.append((error.name, error.reason))
        return torch.zeros(self.view.input_size), PADDING, unread


@contextmanager
def _randomness(seed: int | None, epoch: int, index: int) -> Iterator[None]:
    """Random numbers of Python, NumPy and PyTorch's CPU for one image alone."""
    if seed is None:
        yield
        return
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = np.random.SeedSequence([seed, epoch, index]).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


def batch_of(items: list[tuple[Tensor, int, list[Unread]]]) -> tuple[Tensor, Tensor, list[Unread]]:
    images, labels, unread = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels), [line for lines in unread for line in lines]


def reader_options(workers: int, module: str) -> dict[str, Any]:
    """What a `DataLoader` is told of the processes that read for it.

    Args:
        workers: how many.
        module: where the dataset is defined; imported once for all of them.

    They are not forks of this process: it has threads (of gloo, OpenMP, TensorBoard) whose locks a
    fork may find taken, and then it waits for ever. A server without threads forks them instead.
    """
    if workers == 0:
        return {"num_workers": 0}
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([module, "timm.data"])
    return {
        "num_workers": workers,
        "multiprocessing_context": context,
        "worker_init_fn": _follow,
    }


def _follow(worker: int) -> None:
    """Live as long as the process that the reading is for, which alone hears of Ctrl-C.

    PyTorch's own watch is over the process that forked this one. That is the server, which stays
    while its workers do: after a kill all of them would be left.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(
        target=_end_with, args=(multiprocessing.parent_process(),), daemon=True
    ).start()


def _end_with(process: Any) -> None:
    process.join()
    os._exit(1)
