"""A progress bar over a whole run: images a second, and the time left."""

from __future__ import annotations

from typing import Any

import lightning
from tqdm import tqdm

from tcnn.loaders import ImageData


class ProgressBar(lightning.Callback):
    """One bar for all epochs, on stderr, from the first process.

    Args:
        epochs: of the run.
        data: its images.
        start: epoch and batch that the run begins with.
    """

    def __init__(self, epochs: int, data: ImageData, start: tuple[int, int]) -> None:
        self.epochs, self.data, self.start = epochs, data, start
        self.bar: Any = None

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if not trainer.is_global_zero:
            return
        images, batch = self.data.steps * self.data.batch_size, self.data.batch_size
        self.bar = tqdm(
            total=self.epochs * images,
            initial=self.start[0] * images + self.start[1] * batch // self.data.accumulate,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
            leave=False,
        )

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.bar is not None:
            self.bar.set_description_str(
                f"epoch {self.start[0] + trainer.current_epoch + 1}/{self.epochs}", refresh=False
            )
            self.bar.update(len(batch[1]) * trainer.world_size)

    def on_exception(self, *_: Any) -> None:
        self.teardown()

    def teardown(self, *_: Any, **__: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def say(line: str) -> None:
    """Print a line above the bar, where there is one."""
    with tqdm.external_write_mode():
        print(line, flush=True)
