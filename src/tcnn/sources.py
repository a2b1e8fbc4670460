"""Where networks and their weights come from: timm, torchvision, any importable function, files."""

from __future__ import annotations

import importlib
import inspect
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tcnn.errors import TCNNError

SCHEMES = (
    '"timm:NAME", "torchvision:NAME", "package.module:function", or the folder of a saved hybrid'
)
_OWN = "tcnn.networks:"


class ModelError(TCNNError):
    """A network cannot be built or its weights cannot be read; the message says why."""


@dataclass(frozen=True)
class Origin:
    """How to build a network again: what `load_model` was called with.

    Attributes:
        name: the model's name.
        settings: keyword arguments of the function that builds it.
        classes: names of its classes in the order of its outputs, where they are known.
    """

    name: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None


def origin(model: nn.Module) -> Origin:
    """Where a network came from; an empty origin where that is not known."""
    found = model.__dict__.get("_tcnn_origin")
    return found if isinstance(found, Origin) else Origin()


def set_origin(model: nn.Module, value: Origin) -> None:
    """Note on a network where it came from; copies of the network carry the note along."""
    model.__dict__["_tcnn_origin"] = value


def is_self_contained(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether building the network takes only what timm, torchvision or this package ship.

    No code from elsewhere is run, and neither files nor addresses are read.
    """
    scheme, _, rest = name.partition(":")
    shipped = scheme in ("timm", "torchvision") or name.startswith(_OWN)
    reads = [key for key in settings if key.startswith(("pretrained", "weights", "checkpoint"))]
    return shipped and ":" not in rest and not any(settings[key] for key in reads)


def build(name: str, pretrained: bool, settings: Mapping[str, Any]) -> nn.Module:
    """The network of that name, untouched.

    Raises:
        ModelError: there is no such network, or its published weights cannot be had.
    """
    scheme, _, rest = name.partition(":")
    if not rest:
        raise ModelError(
            f"Expected a model as {SCHEMES}, but got {name!r}, which is none of these."
        )
    if scheme == "timm":
        model = _from_timm(rest, pretrained, settings)
    elif scheme == "torchvision":
        model = _from_torchvision(rest, pretrained, settings)
    else:
        model = _from_function(scheme, rest, pretrained, settings)
    if not isinstance(model, nn.Module):
        raise ModelError(f"Expected {name!r} to give an nn.Module, but got {type(model).__name__}.")
    return model


def load_weights(model: nn.Module, file: str | Path) -> None:
    """Load a file of weights into a network; nothing in the file is ever executed.

    PyTorch files may wrap the weights in "state_dict" or "model", and their names in "module." (as
    `DataParallel` does).

    Raises:
        ModelError: the file is not there, is damaged, needs code to be read, or does not fit.
    """
    state = _read(Path(file))
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    named = OrderedDict((name.removeprefix("module."), value) for name, value in state.items())
    try:
        try:
            model.load_state_dict(named)
        except ValueError:  # of a module that asks for its version, which such files do not hold
            named._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
            model.load_state_dict(named)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ModelError(
            f"Expected weights of {type(model).__name__} in {str(file)!r}, but they do not fit: "
            f"{' '.join(lines[1:3])[:300]}"
        ) from None


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise ModelError(f"Expected a file of weights, but {str(file)!r} is not there.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ModelError(
            f"Expected safetensors in {str(file)!r}, but the file is damaged: {error}"
        ) from None
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"Expected plain tensors in {str(file)!r}, but reading it would run code from it, "
            "which is refused: save its state_dict() with safetensors or torch.save first "
            f"({str(error).strip().partition(chr(10))[0][:160]})"
        ) from None
    except Exception as error:  # a damaged file can make the reader raise anything
        raise ModelError(
            f"Expected weights in {str(file)!r}, but it cannot be read: "
            f"{str(error).strip().partition(chr(10))[0]}"
        ) from None
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ModelError(
            f"Expected a dictionary of named tensors in {str(file)!r}, "
            f"but got {type(content).__name__}."
        )
    return content


def _from_timm(name: str, pretrained: bool, settings: Mapping[str, Any]) -> nn.Module:
    timm = _need("timm")
    if settings.get("checkpoint_path"):
        raise ModelError(
            "Expected a file of weights as `weights`, but got `checkpoint_path`: timm reads that "
            "as a pickle, which can run code."
        )
    try:
        return timm.create_model(name, pretrained=pretrained, **settings)  # type: ignore[no-any-return]
    except Exception as error:
        near = timm.list_models(f"*{name.partition('.')[0][:6]}*")
        raise _failed(f"timm:{name}", error, name.partition(".")[0], near, pretrained) from error


def _from_torchvision(name: str, pretrained: bool, settings: Mapping[str, Any]) -> nn.Module:
    models = _need("torchvision.models")
    known = models.list_models()
    try:
        builder = models.get_model_builder(name)
        options = dict(settings)
        if not pretrained and "weights_backbone" in inspect.signature(builder).parameters:
            options.setdefault("weights_backbone", None)  # its default is a download
        return builder(weights="DEFAULT" if pretrained else None, **options)  # type: ignore[no-any-return]
    except Exception as error:
        raise _failed(f"torchvision:{name}", error, name, known, pretrained) from error


def _from_function(
    module: str, function: str, pretrained: bool, settings: Mapping[str, Any]
) -> nn.Module:
    name = f"{module}:{function}"
    if pretrained:
        raise ModelError(
            f"Expected `pretrained=False` for {name!r}: only timm and torchvision publish weights; "
            "give a file with `weights`."
        )
    try:
        target = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing runs the module, and that can raise anything
        said = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"Expected a model as {SCHEMES}, but {name!r} gives {type(error).__name__}: {said}."
        ) from error
    try:
        return target(**settings)  # type: ignore[no-any-return]
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"Expected {name!r} to build a network, but it raised {type(error).__name__}: {said}"
        ) from error


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelError(
            f"Expected {module.partition('.')[0]} to be installed, but it is not ({error}): "
            "pip install 'transformed-cnn[models]'"
        ) from error


def _failed(
    name: str, error: Exception, wanted: str, known: list[str], pretrained: bool
) -> ModelError:
    import difflib

    said = str(error).strip().partition("\n")[0]
    if wanted not in known and (near := difflib.get_close_matches(wanted, known, n=1, cutoff=0.0)):
        said += f"; nearest: {near[0]}"
    elif pretrained:
        said += "; without a connection, give a file of weights (--weights)"
    return ModelError(f"Expected {name!r} to be built, but {type(error).__name__}: {said}")


def parameters_like(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the dtypes of a state dict, in place; ties between them stay.

    Buffers that a state dict leaves out follow where the whole network changed its dtype.
    """
    own, saved = (
        {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        for tensors in (model.state_dict(), state)
    )
    if len(own) == len(saved) == 1:
        model.to(dtype=saved.pop())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)
