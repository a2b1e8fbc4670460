"""Fine-tune a network on images, and leave a folder with everything that came of it."""

from __future__ import annotations

import copy
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from tcnn import checkpoint, sources
from tcnn.analysis import plots
from tcnn.classifier import with_new_classifier
from tcnn.data_config import DataConfig
from tcnn.engine import fit
from tcnn.errors import TCNNError
from tcnn.files import clear_leftovers, make_folder, write_json, write_text, write_whole
from tcnn.keeping import CHECKPOINT, is_first_process
from tcnn.layers import gpsa_layers
from tcnn.loaders import ImageData, open_data
from tcnn.provenance import provenance
from tcnn.run_record import FitResult
from tcnn.tables import csv_text
from tcnn.train import output_width
from tcnn.train_config import EngineConfig, TrainConfig
from tcnn.view import View

_BEST = "best"
LEFT = 0.1  # |content share| from which a head is said to have left the convolution


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned network, and what was measured on the way.

    Attributes:
        model: the network, in eval mode.
        classes: names of its outputs.
        fit: figures by epoch.
        new: parameters of the classifier, if it is a new one.
        out: the folder of the run.
    """

    model: nn.Module
    classes: tuple[str, ...]
    fit: FitResult
    new: tuple[str, ...]
    out: Path


def finetune(
    model: nn.Module,
    out: str | Path,
    data: DataConfig,
    train: TrainConfig,
    engine: EngineConfig | None = None,
    *,
    new_head: bool = False,
    resume: bool = False,
    start: dict[str, Any] | None = None,
    echo: Callable[[str], None] = lambda line: None,
    bar: bool = False,
) -> FinetuneResult:
    """Fine-tune a network and write it, its figures and its curves to a folder.

    The folder holds model.safetensors and tcnn.json (the network after the last epoch, averaged if
    the recipe says so), best (that of the highest validation accuracy), run.json, history.csv,
    gates.csv, curves.png, unreadable.csv if there is cause, and last.ckpt and tensorboard.

    Args:
        model: the network; with a class list, the images must be of these classes. Left as it was.
        out: the folder.
        data: the images.
        train: the recipe.
        engine: what to run on.
        new_head: take a new classifier though the number of classes may be the same.
        resume: go on with the run in the folder; begin one where there is none.
        start: where the network came from, as plain data, to stand in run.json.
        echo: called with each line of what happens.
        bar: show a progress bar.

    Raises:
        TCNNError: the folder holds a run already or cannot be written to; the images are not there
            or of other classes; or as from `fit`.
    """
    engine, out = engine or EngineConfig(), Path(out)
    first = is_first_process(engine.processes)
    if first:
        make_folder(out)
        clear_leftovers(out / _BEST)
        if (out / checkpoint.SETTINGS).exists() and not (out / CHECKPOINT).exists():
            raise TCNNError(
                f"Expected a folder of its own for the run, but {str(out)!r} holds a network that "
                "would be overwritten: give another --out."
            )
        if (out / CHECKPOINT).exists() and not resume:
            raise TCNNError(
                f"Expected a folder without a run, but {str(out)!r} holds one: go on with it with "
                "--resume, or give another --out."
            )
    known = None if new_head else sources.origin(model).classes
    images = open_data(data, known)
    classes = images[0].classes
    view = View.of(model, data)
    model, new = for_classes(model, len(classes), view, new_head, train.seed)
    if new and train.distill:
        raise TCNNError(
            "Expected a classifier to distil from, but that of the network is new, for "
            f"{len(classes)} classes: set --train.distill 0, or train the CNN on them first."
        )
    echo(
        f"{len(images[0])} training and {len(images[1])} validation images of {len(classes)} "
        f"classes in {data.root!r}" + (f"; a new classifier: {', '.join(new)}" if new else "")
    )
    if first:  # what cannot be saved is better known now
        with tempfile.TemporaryDirectory(dir=out, prefix=".saving-") as passing:
            checkpoint.save(model, passing, classes=classes)
    batches = ImageData(*images, view, data, train.batch_size, train.seed, engine.accumulate)
    result = fit(
        model,
        batches,
        train,
        engine,
        out=out,
        resume=resume,
        identity={"model": _identity(model)},
        progress=echo,
        bar=bar,
        callbacks=(_Best(out / _BEST, classes),),
    )
    finished = FinetuneResult(model, classes, result, tuple(new), out)
    if first:
        checkpoint.save(model, out, classes=classes)
        _write(finished, data, engine, view, start or {})
    return finished


def for_classes(
    model: nn.Module, classes: int, view: View, new_head: bool, seed: int
) -> tuple[nn.Module, list[str]]:
    """A float32 copy of the network with as many outputs as there are classes, and what is new."""
    model = copy.deepcopy(model).float()
    try:
        outputs = output_width(model, torch.zeros(1, *view.input_size))
    except TCNNError:
        raise
    except Exception as error:  # a network says in its own way what it does not take
        size = "×".join(map(str, view.input_size))
        reason = str(error).strip().partition("\n")[0]
        raise TCNNError(
            f"Expected a network that runs on images of {size}, but {type(model).__name__} says: "
            f"{reason}: give --data.input_size."
        ) from error
    if new_head or outputs != classes:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return with_new_classifier(model, classes)
    return model, []


def _identity(model: nn.Module) -> dict[str, Any]:
    """What a network that a run goes on with must have in common with the one it began with."""
    return {
        "class": type(model).__name__,
        "layers": {name: asdict(layer.config) for name, layer in gpsa_layers(model).items()},
        "weights": {
            name: zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes())
            for name, tensor in model.state_dict().items()
        },
    }


class _Best(Checkpoint):
    """Saves the network whenever its validation accuracy is the highest so far."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder, self.classes = folder, classes
        self.top1 = -1.0

    def state_dict(self) -> dict[str, Any]:
        return {"top1": self.top1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.top1 = state_dict["top1"]

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        top1 = float(trainer.callback_metrics["val_top1"])
        if top1 > self.top1:
            self.top1 = top1
            if trainer.is_global_zero:
                checkpoint.save(pl_module.result, self.folder, classes=self.classes)


def _write(
    result: FinetuneResult,
    data: DataConfig,
    engine: EngineConfig,
    view: View,
    start: dict[str, Any],
) -> None:
    out, fitted = result.out, result.fit
    figure, _ = plots.curves_plot({"": [e.to_json() for e in fitted.history]})
    write_whole(out / "curves.png", partial(figure.savefig, dpi=150))
    unreadable = out / "unreadable.csv"
    unreadable.unlink(missing_ok=True)
    if fitted.unreadable:
        text = csv_text(("image", "reason"), sorted(fitted.unreadable.items()))
        write_text(unreadable, text)
    content = {
        "start": start,
        "layers": {n: asdict(layer.config) for n, layer in gpsa_layers(result.model).items()},
        "data": asdict(data),
        "view": asdict(view),
        "train": asdict(fitted.config),
        "engine": asdict(engine),
        "classes": len(result.classes),
        "new_parameters": list(result.new),
        "result": fitted.to_json(),
        "heads_left": heads_left(result.model),
        **provenance(),
    }
    write_json(out / "run.json", content)


def heads_left(model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """The heads whose content share is at least `LEFT` in size, by layer, the furthest first."""
    return {
        name: sorted(
            (
                {"tap": list(divmod(head, layer.kernel_size[1])), "content_share": share}
                for head, share in enumerate(layer.content_share.detach().tolist())
                if abs(share) >= LEFT
            ),
            key=lambda head: -abs(head["content_share"]),
        )
        for name, layer in gpsa_layers(model).items()
    }


def closing(result: FinetuneResult) -> str:
    """The last lines: how it ended, which heads left, what was not read, where everything lies."""
    fitted, out = result.fit, result.out
    last, best = fitted.last, fitted.best
    lines = [
        "",
        f"Validation top-1 {last.val_top1:.2%} after {last.epoch} epochs (best {best.val_top1:.2%} "
        f"after {best.epoch}); {fitted.images_per_second:.0f} images/s in training, "
        f"{fitted.seconds:.0f} s in all; batch norm {fitted.batch_norm}.",
    ]
    layers = gpsa_layers(result.model)
    for name, heads in heads_left(result.model).items():
        told = ", ".join(f"{tuple(h['tap'])} {h['content_share']:+.2f}" for h in heads[:3])
        lines.append(
            f"  {name}: {len(heads)} of {layers[name].heads} heads left the convolution "
            f"(|content share| from {LEFT} up)" + (f"; furthest, by tap: {told}" if told else "")
        )
    if fitted.unreadable:
        name, reason = next(iter(sorted(fitted.unreadable.items())))
        lines.append(
            f"{len(fitted.unreadable)} images could not be read; others took their place in "
            f"training. {name}: {reason}. All of them: {out / 'unreadable.csv'}"
        )
    lines.append(f"Wrote {out}. Read it in Python with tcnn.load({str(out)!r}).")
    return "\n".join(lines)
