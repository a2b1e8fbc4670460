"""The commands that train, `finetune` and `study`, made as those of `tcnn.commands`."""

from __future__ import annotations

import sys
from typing import Any

from tcnn.commands import echo, folder_of, network_of
from tcnn.data_config import DataConfig
from tcnn.gpsa_config import GPSAConfig
from tcnn.study_config import ArmConfig, MeasureConfig
from tcnn.train_config import EngineConfig, TrainConfig


def finetune_network(
    *,
    model: str,
    out: str,
    data: DataConfig,
    train: TrainConfig = TrainConfig(),  # noqa: B008
    engine: EngineConfig = EngineConfig(),  # noqa: B008
    recast: bool = True,
    targets: str | list[str] | None = None,
    gpsa: GPSAConfig = GPSAConfig(),  # noqa: B008
    pretrained: bool | None = None,
    weights: str | None = None,
    model_settings: dict[str, Any] | None = None,
    new_head: bool = False,
    resume: bool = False,
) -> int:
    """Fine-tune a network on images: a saved hybrid, or any CNN, which is recast first.

    The exit code is 130 or 143 where Ctrl-C or SIGTERM ended the run, after a checkpoint.

    Args:
        model: Folder of a saved network, or timm:NAME, torchvision:NAME, package.module:function.
        out: Folder for the trained network, its checkpoint, figures, curves and page.
        data: The images.
        train: The recipe.
        engine: What to run on.
        recast: Recast a network that has no recast layers; false trains the CNN as it is.
        targets: What to recast: a glob over names of convolutions, or a list; null is the default.
        gpsa: Options of the recast layers.
        pretrained: Take the weights that timm or torchvision publish; null does so for their
            networks unless weights are given.
        weights: File of weights, safetensors or a PyTorch file of plain tensors.
        model_settings: Arguments of the function that builds the network.
        new_head: Take a new classifier, for other classes; without it that happens only where their
            number differs and the network has no class list.
        resume: Go on with the run in the folder of --out; begin one where there is none.
    """
    import torch

    from tcnn import finetune, progress, surgery
    from tcnn.equivalence import check_equivalence, random_images
    from tcnn.keeping import Stopped, is_first_process
    from tcnn.layers import gpsa_layers
    from tcnn.report import page
    from tcnn.view import View

    first = is_first_process(engine.processes)
    say = progress.say if first else _nothing
    folder = folder_of(out)
    torch.manual_seed(train.seed)  # of random weights, and of queries and keys
    network = network_of(model, pretrained, weights, model_settings)
    equivalence = None
    if recast and not gpsa_layers(network):
        size = View.of(network, data).input_size
        cnn, network = network, surgery.recast(network, targets, gpsa, size)
        equivalence = check_equivalence(cnn, network, random_images(size)).to_json()
        say(f"Recast, and proved equal on a random image: {', '.join(gpsa_layers(network))}")
    try:
        result = finetune.finetune(
            network,
            folder,
            data,
            train,
            engine,
            new_head=new_head,
            resume=resume,
            start={
                "model": model,
                "pretrained": pretrained,
                "weights": weights,
                "model_settings": model_settings,
                "recast": recast,
                "targets": targets,
                "new_head": new_head,
                "equivalence": equivalence,
            },
            echo=say,
            bar=sys.stderr.isatty(),
        )
    except Stopped as stopped:
        if first:
            print(f"tcnn finetune: {stopped}: go on with --resume", file=sys.stderr)
        return 128 + stopped.number
    say(finetune.closing(result))
    if first:
        page.add(folder, say, "tcnn", model=result.model)
    return 0


def _nothing(line: str) -> None:
    """What a process that is not the first says."""


def run_study(
    *,
    model: str,
    out: str,
    data: DataConfig,
    arms: dict[str, ArmConfig],
    control: str = "control",
    seeds: list[int],
    train: TrainConfig = TrainConfig(),  # noqa: B008
    pretrain: TrainConfig | None = None,
    engine: EngineConfig = EngineConfig(),  # noqa: B008
    measure: MeasureConfig = MeasureConfig(),  # noqa: B008
    targets: str | list[str] | None = None,
    gpsa: GPSAConfig = GPSAConfig(),  # noqa: B008
    pretrained: bool | None = None,
    weights: str | None = None,
    model_settings: dict[str, Any] | None = None,
    jobs: int = 1,
) -> int:
    """Hold hybrids against their controls: arms and seeds, a table with intervals, curves, a page.

    A study that was cut goes on where it was when it is asked for again.

    Args:
        model: timm:NAME, torchvision:NAME, package.module:function, or a saved CNN's folder.
        out: Folder for study.json, study.md, the page, the curves, and every trained network.
        data: The images.
        arms: The arms by name.
        control: The arm that the others are held against.
        seeds: Every arm is trained with each.
        train: Recipe of the fine-tuning, for all arms alike but for what they say.
        pretrain: Recipe of the CNN's training, if it comes without weights.
        engine: What to run on.
        measure: What to test on.
        targets: What to recast: a glob over names of convolutions, or a list; null is the default.
        gpsa: Options of the recast layers.
        pretrained: Take the weights that timm or torchvision publish; null does so for their
            networks unless weights or a recipe for pretraining are given.
        weights: File of weights, safetensors or a PyTorch file of plain tensors.
        model_settings: Arguments of the function that builds the network.
        jobs: Runs at a time, each in its own process.
    """
    import shlex

    from tcnn.keeping import Stopped
    from tcnn.report import page
    from tcnn.study import study
    from tcnn.study_setting import Setting

    if pretrained is None:
        published = model.startswith(("timm:", "torchvision:"))
        pretrained = published and weights is None and pretrain is None
    setting = Setting(
        out=folder_of(out),
        model=model,
        model_settings=model_settings or {},
        pretrained=pretrained,
        weights=weights,
        targets=targets,
        gpsa=gpsa,
        data=data,
        engine=engine,
        measure=measure,
        train=train,
        pretrain=pretrain,
        arms=arms,
    )
    command = shlex.join(["tcnn", *sys.argv[1:]])
    try:
        result = study(setting, seeds, control, jobs=jobs, echo=echo, command=command)
    except Stopped as stopped:
        print(f"tcnn study: {stopped}: it goes on when it is asked for again", file=sys.stderr)
        return 128 + stopped.number
    echo(f"\n{result.table()}\n\n{result.verdicts()}\n")
    names = ", ".join(["study.md", "study.json", *result.pictures])
    echo(f"Wrote {out}: {names}, and the networks in arms.")
    page.add(setting.out, echo, "tcnn")
    return 0
