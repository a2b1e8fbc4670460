"""Networks on suites, part by part, each kept once it is known, so that a run can be cut."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from tcnn.data_config import ImagesConfig
from tcnn.errors import TCNNError
from tcnn.evaluate import EvaluationResult
from tcnn.evaluate_config import InferenceConfig
from tcnn.files import clear_leftovers, make_folder, write_whole
from tcnn.layers import gpsa_layers
from tcnn.processes import gather, shared_errors
from tcnn.robustness_result import PartScore, RobustnessResult
from tcnn.scoring import Part, Score, score
from tcnn.sources import origin
from tcnn.view import View

PARTS = "parts"


def robustness(
    models: Mapping[str, nn.Module],
    parts: Sequence[Part],
    out: Path,
    data: ImagesConfig,
    config: InferenceConfig,
    fabric: Fabric,
    *,
    say: Callable[[str], None] = lambda line: None,
    bar: bool = False,
) -> RobustnessResult | None:
    """Score one network, or two on the same images, on every part.

    Each score is written to `out`/parts as soon as it is there, whole or not at all; one that is
    there already, of the same network and images, is not made again.

    Args:
        models: by name; the second is what the first is held against.
        parts: as from `suites.parts_of`.
        out: folder.
        data, config, fabric: as of `score`.
        say: called with one line for each part.
        bar: show a progress bar.

    Returns:
        The result in the first process, None in others.

    Raises:
        TCNNError: the folder holds scores of another network, other images or settings; or as from
            `score`.
    """
    first = fabric.global_rank == 0
    folder = out / PARTS
    identities = {name: _identity(model, data, config) for name, model in models.items()}
    check_alike(identities, fabric)
    with_views = {name: (model, View.of(model, data)) for name, model in models.items()}
    with shared_errors(fabric):
        for name in models if first else ():
            make_folder(folder / name)
            clear_leftovers(folder / name)
    scores = []
    for number, part in enumerate(parts, 1):
        files = {
            name: folder / name / f"{part.title.replace(' ', '-')}.safetensors" for name in models
        }
        wanted = {name: {**identities[name], **_plain(part)} for name in models}
        known = {}
        with shared_errors(fabric):
            for name, file in files.items() if first else ():
                if (found := _read(file, wanted[name])) is not None:
                    known[name] = found
        missing = gather([name for name in models if name not in known])[0]
        if missing:
            with tqdm(
                desc=f"{number}/{len(parts)} {part.title}",
                unit=" images",
                leave=False,
                disable=not (bar and first),
            ) as shown:
                chosen = {name: with_views[name] for name in missing}
                made = score(chosen, part, data, config, fabric, shown.update)
            if first:
                for name, found in made.items():
                    _write(files[name], found, wanted[name])
                    known[name] = found
        if first:
            scored = PartScore.of(part, {name: known[name] for name in models})
            scores.append(scored)
            say(f"{number}/{len(parts)} {scored.line()}" + ("" if missing else " (done before)"))
    return RobustnessResult(tuple(models), tuple(scores)) if first else None


def _identity(model: nn.Module, data: ImagesConfig, config: InferenceConfig) -> dict[str, Any]:
    """What a score depends on beside its part, as plain data."""
    return {
        "network": [
            type(model).__name__,
            weights_checksum(model),
            {name: asdict(layer.config) for name, layer in gpsa_layers(model).items()},
        ],
        "classes": zlib.crc32("\n".join(origin(model).classes or ()).encode()),
        "view": asdict(View.of(model, data)),
        "unreadable": data.unreadable,
        "precision": config.precision,
    }


def weights_checksum(model: nn.Module) -> int:
    """CRC-32 of all parameters, buffers and extra state, with their names."""
    checksum = 0
    for name, tensor in model.state_dict().items():
        checksum = zlib.crc32(name.encode(), checksum)
        if isinstance(tensor, Tensor):
            values = tensor.detach().cpu().contiguous().view(-1)
            checksum = zlib.crc32(values.view(torch.uint8).numpy().tobytes(), checksum)
        else:  # a module's extra state
            checksum = zlib.crc32(repr(tensor).encode(), checksum)
    return checksum


def check_alike(value: Any, fabric: Fabric) -> None:
    """Refuse networks that are not the same in every process.

    Raises:
        TCNNError: this process and another have different ones.
    """
    others = gather(value)
    with shared_errors(fabric):
        if any(other != value for other in others):
            raise TCNNError(
                "Expected the same network in every process, but their weights differ: seed its "
                "random weights, or give it weights."
            )


def _plain(part: Part) -> dict[str, Any]:
    """Which images a score is of, as plain data."""
    return {
        "set": part.title,
        "images": part.source,
        "change": repr(part.change),
        "attack": repr(part.attack),
        "scale": part.scale,
        "whole": part.whole,
        "outputs": part.outputs,
    }


_COLUMNS = tuple(EvaluationResult.__dataclass_fields__)


def _write(file: Path, found: Score, identity: dict[str, Any]) -> None:
    columns = {name: getattr(found.result, name).contiguous() for name in _COLUMNS}
    columns |= {"checksums": found.checksums, "masked": found.masked}
    content = {
        "identity": identity,
        "unread": found.unread,
        "seconds": found.seconds,
        "note": found.note,
    }
    metadata = {"tcnn": json.dumps(content)}
    write_whole(file, lambda path: save_file(columns, path, metadata))


def _read(file: Path, identity: dict[str, Any]) -> Score | None:
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            content = json.loads(opened.metadata()["tcnn"])
            made = content["identity"]
            columns = {name: opened.get_tensor(name) for name in (*_COLUMNS, "checksums", "masked")}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TCNNError(
            f"Expected a score, but {str(file)!r} cannot be read ({error}): remove it, and it is "
            "made again."
        ) from error
    wanted = json.loads(json.dumps(identity))
    for key in wanted:
        if wanted[key] != made.get(key):
            raise TCNNError(
                f"Expected the score in {str(file)!r} to be of this network and these images, but "
                f"`{key}` was {str(made.get(key))[:90]}, and is {str(wanted[key])[:90]}: give "
                "another --out, or remove that file."
            )
    return Score(
        EvaluationResult(**{name: columns[name] for name in _COLUMNS}),
        columns["checksums"],
        columns["masked"],
        tuple((name, reason) for name, reason in content["unread"]),
        content["seconds"],
        content["note"],
    )
