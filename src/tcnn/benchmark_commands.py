"""The command that measures speed and memory, `benchmark`, made as those of `tcnn.commands`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tcnn.commands import echo, network_of
from tcnn.errors import TCNNError


def benchmark_network(
    model: str,
    *,
    batch: int = 8,
    size: list[int] | None = None,
    runs: int = 15,
    threads: int | None = None,
    bf16: bool = False,
    channels_last: bool = False,
    compile: bool = False,
    out: str | None = None,
    cnn: str | None = None,
    model_settings: dict[str, Any] | None = None,
) -> int:
    """Measure a hybrid's speed and memory beside the CNN that it came from.

    A CNN is recast with the default targets, as it is and with every gate open. Runs on a GPU where
    there is one. Weights change no speed, so none are fetched.

    Args:
        model: Folder of a saved network, or timm:NAME, torchvision:NAME, package.module:function.
        batch: Images at a time.
        size: Side of the images in pixels; give it several times for several sizes. null is the
            network's own.
        runs: Rounds in which the networks take turns.
        threads: Threads of the CPU; null leaves it to PyTorch.
        bf16: Mixed precision, bfloat16.
        channels_last: Keep kernels and images channel by channel in memory.
        compile: Compile the networks with torch.compile.
        out: JSON file to write the figures to, with versions and hardware.
        cnn: The network that was recast, as package.module:function, if its folder cannot build it.
        model_settings: Arguments of the function that builds the network, as '{num_classes: 10}'.
    """
    import shlex
    import sys

    import torch

    from tcnn import checkpoint
    from tcnn.benchmark import benchmark, opponents
    from tcnn.files import make_folder, write_json
    from tcnn.timing import threads as with_threads
    from tcnn.tracing import own_input_size

    for name, number, least in (("batch", batch, 1), ("runs", runs, 3), ("threads", threads, 1)):
        if number is not None and number < least:
            raise TCNNError(f"Expected --{name} from {least} up, but got {number}.")
    if size is not None and (not size or min(size) < 1):
        raise TCNNError(f"Expected --size from 1 up, but got {size}.")
    if out is not None:
        if not Path(out).name or Path(out).is_dir():
            raise TCNNError(f"Expected --out to be a file, but got {out!r}.")
        make_folder(Path(out).parent)
    torch.manual_seed(0)
    if Path(model).is_dir():
        other = None if cnn is None else network_of(cnn, pretrained=False, settings=model_settings)
        network = checkpoint.load(model, cnn=other)
    else:
        network = network_of(model, pretrained=False, settings=model_settings)
    own = own_input_size(network)
    sizes = [own] if size is None else [(own[0], side, side) for side in dict.fromkeys(size)]
    found = opponents(network, sizes[0])
    echo(f"{model}\n{found.remark}\n")
    with with_threads(threads):
        result = benchmark(
            found.networks,
            sizes,
            batch=batch,
            runs=runs,
            bf16=bf16,
            channels_last=channels_last,
            compiled=compile,
            say=echo,
        )
    echo(f"\n{result.table()}")
    if out is not None:
        command = shlex.join(["tcnn", *sys.argv[1:]])
        content = {"command": command, "model": model, "remark": found.remark, **result.to_json()}
        write_json(Path(out), content)
        echo(f"Wrote {out}.")
    return 0
