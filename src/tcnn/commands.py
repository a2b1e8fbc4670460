"""One typed function for each command of `tcnn`; each only composes what the package offers.

Its arguments are the command's options and the keys of its YAML file, and its docstring is their
help. It returns the exit code: 0, or 1 where the answer is no. Everything heavy is imported inside,
so that help is fast; networks are `Any` here, for jsonargparse imports what annotations name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tcnn.errors import TCNNError
from tcnn.gpsa_config import GPSAConfig

_DEFAULT_GPSA = GPSAConfig()


def run_demo(*, out: str = "runs/demo", seed: int = 0) -> int:
    """The whole story on handwritten digits, in minutes: train, recast, fine-tune, compare, look.

    Args:
        out: Folder for the hybrid, metrics.json, the pictures and the page.
        seed: Fixes everything random.
    """
    import shutil
    import sys

    from tcnn.demo import run
    from tcnn.report import page

    called = sys.argv[0] if Path(sys.argv[0]).name == "tcnn" else "python -m tcnn"
    program = "tcnn" if shutil.which("tcnn") else called
    run(folder_of(out), seed, echo, program=program)
    page.add(folder_of(out), echo, program)
    return 0


def show_plan(
    model: str,
    *,
    targets: str | list[str] | None = None,
    gpsa: GPSAConfig = _DEFAULT_GPSA,
    input_size: tuple[int, int, int] | None = None,
    model_settings: dict[str, Any] | None = None,
    json: str | None = None,
) -> int:
    """Show which convolutions of a network would be recast, which not and why, and what it costs.

    Args:
        model: timm:NAME, torchvision:NAME, package.module:function, or a saved network's folder.
        targets: Glob over the names of convolutions, or a list of them; null is the default choice.
        gpsa: Options of the recast layers.
        input_size: Channels, height and width, as '[3, 224, 224]'; null is the network's own.
        model_settings: Arguments of the function that builds the network, as '{num_classes: 10}'.
        json: File to write the plan to, too.
    """
    from tcnn import planning
    from tcnn.files import make_folder, write_json

    network = network_of(model, pretrained=False, settings=model_settings)
    steps = planning.plan(network, targets, gpsa, input_size)
    echo(steps.table())
    if json is not None:
        make_folder(Path(json).parent)
        write_json(Path(json), steps.to_json())
    return 0


def recast_network(
    model: str,
    *,
    out: str,
    targets: str | list[str] | None = None,
    gpsa: GPSAConfig = _DEFAULT_GPSA,
    input_size: tuple[int, int, int] | None = None,
    pretrained: bool | None = None,
    weights: str | None = None,
    model_settings: dict[str, Any] | None = None,
    images: str | None = None,
    batch: int = 8,
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None,
) -> int:
    """Recast a network's convolutions, measure that it computes the same function, and save it.

    Args:
        model: timm:NAME, torchvision:NAME, package.module:function, or a saved network's folder.
        out: Folder for the hybrid: model.safetensors, tcnn.json, and recast.json with the plan and
            the equivalence report.
        targets: Glob over the names of convolutions, or a list of them; null is the default choice.
        gpsa: Options of the recast layers.
        input_size: Channels, height and width, as '[3, 224, 224]'; null is the network's own.
        pretrained: Take the weights that timm or torchvision publish; null does so for their
            networks unless weights are given.
        weights: File of weights, safetensors or a PyTorch file of plain tensors.
        model_settings: Arguments of the function that builds the network, as '{num_classes: 10}'.
        images: Folder of pictures to compare on; null takes random ones.
        batch: How many images to compare on.
        dtype: Arithmetic of the comparison; null is the network's own.
    """
    from tcnn import checkpoint, planning, surgery
    from tcnn.files import write_json
    from tcnn.provenance import provenance

    folder = folder_of(out)
    network = network_of(model, pretrained, weights, model_settings)
    steps = planning.plan(network, targets, gpsa, input_size)
    echo(steps.table() + "\n")
    hybrid = surgery.recast(network, targets, gpsa, input_size)
    report = _compare(network, hybrid, images, batch, steps.input_size, dtype)
    if not report.ok and gpsa.starts_exact:
        raise TCNNError(
            "Expected the hybrid to compute the network's function, but it does not (above), so "
            "nothing was written: leave out the layers that differ, with --targets."
        )
    checkpoint.save(hybrid, folder)
    content = {
        "model": model,
        "plan": steps.to_json(),
        "equivalence": report.to_json(),
        **provenance(),
    }
    write_json(folder / "recast.json", content)
    if not report.ok:
        echo("The options ask for a hybrid that starts out different, and that is what it is.")
    echo(f'\nWrote {folder}. Read it in Python with tcnn.load("{folder}").')
    return 0


def restore_network(
    hybrid: str,
    *,
    out: str,
    cnn: str | None = None,
    input_size: tuple[int, int, int] | None = None,
    images: str | None = None,
    batch: int = 8,
) -> int:
    """Turn recast layers that are exactly convolutions back into convolutions, and name the others.

    Args:
        hybrid: Folder of a saved hybrid.
        out: Folder for the restored network.
        cnn: The network that was recast, as package.module:function, if its folder cannot build it.
        input_size: Channels, height and width, as '[3, 224, 224]'; null is the network's own.
        images: Folder of pictures to compare on; null takes random ones.
        batch: How many images to compare on.
    """
    import warnings

    from tcnn import checkpoint, surgery
    from tcnn.layers import gpsa_layers
    from tcnn.tracing import own_input_size

    folder = folder_of(out)
    network = _saved(hybrid, cnn)
    left = surgery.not_restorable(network)
    layers = len(gpsa_layers(network))
    if len(left) == layers:
        raise TCNNError(
            f"Expected a layer of {hybrid!r} that is exactly a convolution, but none of its "
            f"{layers} is, so nothing was written. {next(iter(left))}: {next(iter(left.values()))}."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it names what is printed below
        restored = surgery.restore(network)
    size = input_size or own_input_size(network)
    report = _compare(network, restored, images, batch, size, None)
    if not report.ok:
        raise TCNNError(
            "Expected the restored network to compute the hybrid's function, but it does not "
            "(above), so nothing was written."
        )
    checkpoint.save(restored, folder)
    (folder / "recast.json").unlink(missing_ok=True)  # of the hybrid that was there
    echo(f"\n{layers - len(left)} of {layers} layers restored; wrote {out}.")
    for name, reason in left.items():
        echo(f"  {name} stays: {reason}")
    return 0


def verify_networks(
    reference: str,
    model: str,
    *,
    cnn: str | None = None,
    pretrained: bool | None = None,
    weights: str | None = None,
    model_settings: dict[str, Any] | None = None,
    input_size: tuple[int, int, int] | None = None,
    images: str | None = None,
    batch: int = 8,
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None,
    json: str | None = None,
) -> int:
    """Measure whether two networks compute the same function; the exit code is 1 if not.

    Args:
        reference: Folder of a saved network, or timm:NAME, torchvision:NAME,
            package.module:function.
        model: Folder of a saved network, to hold against it.
        cnn: The network that was recast, as package.module:function, if folders cannot build it;
            not needed where that is the reference.
        pretrained: Take the weights that timm or torchvision publish for the reference; null does
            so for their networks unless weights are given.
        weights: File of weights of the reference, safetensors or a PyTorch file of plain tensors.
        model_settings: Arguments of the function that builds the reference.
        input_size: Channels, height and width, as '[3, 224, 224]'; null is the network's own.
        images: Folder of pictures to compare on; null takes random ones.
        batch: How many images to compare on.
        dtype: Arithmetic of the comparison; null is the networks' own.
        json: File to write the report to, too.
    """
    from tcnn import checkpoint
    from tcnn.files import make_folder, write_json
    from tcnn.tracing import own_input_size

    if Path(reference).is_dir():
        first, second = _saved(reference, cnn), _saved(model, cnn)
    else:
        first = network_of(reference, pretrained, weights, model_settings)
        second = checkpoint.load(model, cnn=None if checkpoint.builds_itself(model) else first)
    size = input_size or own_input_size(first)
    report = _compare(first, second, images, batch, size, dtype)
    if json is not None:
        make_folder(Path(json).parent)
        write_json(Path(json), report.to_json())
    return 0 if report.ok else 1


def folder_of(out: str) -> Path:
    if not out.strip():
        raise TCNNError("Expected --out to be a folder, but it is empty.")
    return Path(out)


def network_of(
    name: str,
    pretrained: bool | None = None,
    weights: str | None = None,
    settings: dict[str, Any] | None = None,
) -> Any:
    from tcnn.models import load_model

    for key in settings or {}:
        if not isinstance(key, str) or key in ("name", "pretrained", "weights"):
            raise TCNNError(
                f"Expected arguments of the function that builds the network in model_settings, "
                f"but got {key!r}, which is none, or an option of the command."
            )
    if pretrained is None:
        published = name.startswith(("timm:", "torchvision:"))
        pretrained = published and weights is None
    return load_model(name, pretrained, weights=weights, **(settings or {}))


def _saved(folder: str, cnn: str | None) -> Any:
    from tcnn import checkpoint

    return checkpoint.load(folder, cnn=None if cnn is None else network_of(cnn, pretrained=False))


def _compare(
    first: Any,
    second: Any,
    images: str | None,
    batch: int,
    size: tuple[int, int, int],
    dtype: str | None,
) -> Any:
    """Print how far two networks are apart on pictures, or on random images."""
    import torch

    from tcnn.equivalence import check_equivalence, random_images

    if batch < 1 or min(size) < 1:
        raise TCNNError(f"Expected --batch and --input_size from 1 up, but got {batch} and {size}.")
    if images is None:
        what = "random images"
        x = random_images(size, batch)
    else:
        from tcnn.data import pictures

        what = f"pictures of {images}"
        x = pictures(Path(images), first, size, batch)
    number = None if dtype is None else getattr(torch, dtype)
    report = check_equivalence(first, second, x, dtype=number)
    echo(f"On {len(x)} {what}, {'×'.join(map(str, size))}:\n{report.table()}")
    return report


def echo(line: str) -> None:
    print(line, flush=True)
