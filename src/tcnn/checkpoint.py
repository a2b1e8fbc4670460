"""A hybrid on disk: a folder with model.safetensors (the weights) and tcnn.json (how to build it).

Loading builds the network from timm, torchvision or this package, recasts the layers that the JSON
names, and copies the tensors in. No code named or held by the files is ever run: a network that
comes from anywhere else must be handed to `load`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import tcnn
from tcnn import sources, surgery
from tcnn.errors import TCNNError
from tcnn.gpsa_config import GPSAConfig
from tcnn.layers import gpsa_layers

WEIGHTS = "model.safetensors"
SETTINGS = "tcnn.json"
_FORMAT = 1
# Modules that pass their input on in eval mode.
_IDLE = {"Identity", "Dropout", "Dropout2d", "DropPath", "DropBlock2d", "StochasticDepth"}


class CheckpointError(TCNNError):
    """A folder cannot be written or read as a saved hybrid; the message says why and what to do."""


def save(model: nn.Module, folder: str | Path, *, classes: Sequence[str] | None = None) -> None:
    """Write a hybrid (or a CNN) to a folder; each file appears whole or not at all.

    Args:
        model: the network; `load` needs nothing else if `load_model` built it or its CNN.
        folder: made if it is not there; other files in it are left alone. Hooks, and buffers that
            a state dict leaves out, are not part of it.
        classes: names of the classes in the order of the outputs; None keeps those it came with.

    Raises:
        CheckpointError: the folder cannot be written to; the network's settings are not plain data;
            there are more or fewer classes than outputs.
    """
    folder = Path(folder)
    origin = sources.origin(model)
    names = origin.classes if classes is None else _checked(classes)
    _check_class_count(model, names)
    made = not folder.exists()
    written = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as passing:
            weights, settings = Path(passing) / WEIGHTS, Path(passing) / SETTINGS
            safetensors.torch.save_model(model, str(weights))
            content = {
                "format": _FORMAT,
                "tcnn": tcnn.__version__,
                "model": {"name": origin.name, "settings": origin.settings},
                "layers": {
                    name: asdict(layer.config) for name, layer in gpsa_layers(model).items()
                },
                "structure": _structure(model),
                "classes": None if names is None else list(names),
                "channels_last": _is_channels_last(model),
                "weights_sha256": _digest(weights),
            }
            text = json.dumps(content, indent=2, ensure_ascii=False)
            settings.write_text(text + "\n", encoding="utf-8")
            weights.chmod(settings.stat().st_mode)  # safetensors lets nobody else read its files
            # Both are whole by now. Should the second move not happen, the digest gives it away.
            weights.replace(folder / WEIGHTS)
            settings.replace(folder / SETTINGS)
        written = True
    except OSError as error:
        raise CheckpointError(
            f"Expected to write to the folder {str(folder)!r}, but it says: "
            f"{error.strerror or error}."
        ) from error
    except TypeError as error:
        raise CheckpointError(
            f"Expected model settings that are plain data, but {error}: {origin.settings!r}"
        ) from error
    except Exception as error:  # tensors of a kind, or on a device, that safetensors cannot write
        raise CheckpointError(
            f"Expected a network that can be saved, but {type(model).__name__} in {str(folder)!r} "
            f"raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    finally:
        if made and not written:
            with contextlib.suppress(OSError):
                folder.rmdir()


def load(
    folder: str | Path, *, cnn: nn.Module | None = None, classes: Sequence[str] | None = None
) -> nn.Module:
    """Read a saved hybrid, in eval mode, on the CPU.

    Args:
        folder: what `save` wrote.
        cnn: the network before recasting, of any weights, where the folder does not say how to
            build it from timm, torchvision or this package. It is left as it was.
        classes: the class names that are expected, in order.

    Raises:
        CheckpointError: a file is missing or damaged, of an unknown format, or does not fit the
            network; the saved classes are not the expected ones.
    """
    folder = Path(folder)
    settings = _settings(folder)
    saved_classes = settings["classes"]
    if classes is not None and list(classes) != saved_classes:
        raise CheckpointError(_class_difference(folder, list(classes), saved_classes))
    state = _weights(folder, settings["weights_sha256"])
    model = cnn if cnn is not None else _build(folder, settings["model"])
    layers = settings["layers"]
    try:
        if layers or model is cnn:  # replacing, even of nothing, copies
            model = surgery.replace_convolutions(
                model, {name: GPSAConfig(**options) for name, options in layers.items()}
            )
        _check_structure(model, settings["structure"])
        sources.parameters_like(model, state)
        if settings["channels_last"]:
            for parameter in model.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        _load_state(model, state)
    except (TCNNError, TypeError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:400]
        raise CheckpointError(
            f"Expected {str(folder)!r} to fit {type(model).__name__}, but {said}"
        ) from error
    _check_class_count(model, saved_classes)
    sources.set_origin(
        model,
        sources.Origin(
            settings["model"]["name"],
            settings["model"]["settings"],
            None if saved_classes is None else tuple(saved_classes),
        ),
    )
    return model.eval()


def builds_itself(folder: str | Path) -> bool:
    """Whether `load` needs no network passed in.

    Raises:
        CheckpointError: as from `load`, of tcnn.json.
    """
    model = _settings(Path(folder))["model"]
    return model["name"] is not None and sources.is_self_contained(model["name"], model["settings"])


def _build(folder: Path, model: dict[str, Any]) -> nn.Module:
    name = model["name"]
    if name is None:
        raise CheckpointError(
            f"Expected {str(folder)!r} to say how to build its network, but load_model did not "
            "build the one that was saved: pass the network with cnn= (--cnn of a command)."
        )
    if not sources.is_self_contained(name, model["settings"]):
        raise CheckpointError(
            f"{str(folder)!r} names {name!r}, which would run code or read files that the folder "
            "chose: "
            "build the network yourself and pass it with cnn= (--cnn of a command)."
        )
    try:
        return sources.build(name, False, model["settings"])
    except sources.ModelError as error:
        raise CheckpointError(f"{str(folder)!r}: {error}") from error


def _settings(folder: Path) -> dict[str, Any]:
    """The folder's tcnn.json, checked."""
    if not folder.is_dir():
        raise CheckpointError(
            f"Expected a folder with a saved hybrid, but {str(folder)!r} is not one."
        )
    file = folder / SETTINGS
    if not file.is_file():
        pickles = sorted(
            p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
        )
        said = (
            f"{pickles[0]} is a pickle, which is refused: reading it can run code"
            if pickles
            else "it is missing"
        )
        raise CheckpointError(f"Expected {SETTINGS} in {str(folder)!r}, but {said}.")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"Expected JSON in {str(file)!r}, but it is damaged: {error}"
        ) from error
    version = settings.get("format") if isinstance(settings, dict) else None
    if version != _FORMAT:
        raise CheckpointError(
            f"Expected format {_FORMAT} in {str(file)!r}, but got {repr(version)[:40]}: "
            "it was written by another version of tcnn, or is not its file."
        )
    if not _well_formed(settings):
        raise CheckpointError(
            f"Expected model, layers, classes and weights_sha256 in {str(file)!r} as tcnn writes "
            "them, but it was changed."
        )
    return settings  # type: ignore[no-any-return]


def _well_formed(settings: dict[str, Any]) -> bool:
    model, layers, classes = (settings.get(key) for key in ("model", "layers", "classes"))
    return (
        isinstance(model, dict)
        and isinstance(model.get("name"), str | None)
        and isinstance(model.get("settings"), dict)
        and isinstance(layers, dict)
        and all(isinstance(options, dict) for options in layers.values())
        and (
            classes is None
            or (isinstance(classes, list) and all(isinstance(c, str) for c in classes))
        )
        and isinstance(settings.get("structure"), dict)
        and isinstance(settings.get("channels_last"), bool)
        and isinstance(settings.get("weights_sha256"), str)
    )


def _weights(folder: Path, digest: str) -> dict[str, Any]:
    """The folder's tensors, checked against the digest beside them."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"Expected weights in {str(file)!r}, but that is missing or no file.")
    try:
        state = safetensors.torch.load_file(file)
        intact = _digest(file) == digest
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Expected whole weights in {str(file)!r}, but the file is damaged: {error}"
        ) from error
    if not intact:
        raise CheckpointError(
            f"Expected the weights that {SETTINGS} was written with, but {str(file)!r} has changed "
            "since: save the hybrid again."
        )
    return state


def _load_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy the tensors in; of tied tensors a file holds one."""
    own = model.state_dict(keep_vars=True)
    versioned = OrderedDict(state)
    # A safetensors file has no place for the versions of modules, which some of them ask for.
    versioned._metadata = own._metadata  # type: ignore[attr-defined]
    missing, unexpected = model.load_state_dict(versioned, strict=False)
    loaded = {id(own[name]) for name in state if name in own}
    missing = [name for name in missing if id(own[name]) not in loaded]
    if missing or unexpected:
        raise CheckpointError(
            f"{', '.join(missing[:3]) or 'nothing'} is missing and "
            f"{', '.join(unexpected[:3]) or 'nothing'} is not expected"
        )


def _class_difference(folder: Path, wanted: list[str], saved: list[str] | None) -> str:
    if saved is None:
        return (
            f"Expected {len(wanted)} classes, but {str(folder)!r} was saved without a class list."
        )
    where = f"Expected the classes of {str(folder)!r} in its order"
    if len(wanted) != len(saved):
        return f"{where}, but got {len(wanted)} classes where it has {len(saved)}."
    index = next(i for i, (a, b) in enumerate(zip(wanted, saved, strict=True)) if a != b)
    return f"{where}, but class {index} is {wanted[index]!r} where it has {saved[index]!r}."


def _checked(classes: Sequence[str]) -> tuple[str, ...]:
    """The class names, if that is what they are."""
    names = tuple(classes)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"Expected `classes` as a list of names, but got {repr(classes)[:80]}."
        )
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"Expected class names that are Unicode, but {error}.") from None
    return names


def _structure(model: nn.Module) -> dict[str, str]:
    """Each module's class and settings, by name: what a state dict does not tell of a network.

    Left out is what changes nothing of the function: modules that pass their input on in eval mode,
    and settings of training. Settings are taken from classes that are known to state them plainly.
    """
    return {
        name: type(module).__name__ + _settings_of(module)
        for name, module in model.named_modules()
        if type(module).__name__ not in _IDLE
    }


def _settings_of(module: nn.Module) -> str:
    if type(module).__module__.partition(".")[0] not in ("torch", "torchvision", "timm", "tcnn"):
        return ""
    try:
        said = module.extra_repr()
    except Exception:  # it was changed in a way that its own description does not take
        return ""
    said = re.sub(r"(, )?\b(inplace|momentum)=\w[\w.+-]*", "", said)
    return f"({re.sub(r' at 0x[0-9a-f]+', '', said)})"


def _check_structure(model: nn.Module, saved: dict[str, str]) -> None:
    built = _structure(model)
    for name in dict.fromkeys([*saved, *built]):
        if built.get(name) != saved.get(name):
            raise CheckpointError(
                f"{name or 'the network'} was {str(saved.get(name, 'not there'))[:80]} when it was "
                f"saved and is {built.get(name, 'not there')[:80]} now: change the network as it "
                "was changed then and pass it with cnn=, or use the versions it was saved with"
            )


def _check_class_count(model: nn.Module, classes: Sequence[str] | None) -> None:
    outputs = getattr(model, "num_classes", None)
    if classes is not None and isinstance(outputs, int) and outputs not in (0, len(classes)):
        raise CheckpointError(
            f"Expected a name for each of the {outputs} classes of {type(model).__name__}, "
            f"but the class list has {len(classes)}."
        )


def _is_channels_last(model: nn.Module) -> bool:
    """Whether a kernel lies in memory channel by channel, which the file does not keep."""
    return any(
        p.dim() == 4
        and not p.is_contiguous()
        and p.is_contiguous(memory_format=torch.channels_last)
        for p in model.parameters()
    )


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
