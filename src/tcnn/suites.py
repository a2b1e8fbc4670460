"""Names of suites, as the command line takes them, to the sets of images that they are made of."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tcnn.corruptions import CORRUPTIONS
from tcnn.errors import TCNNError
from tcnn.evaluate_config import RobustnessConfig
from tcnn.images import Images
from tcnn.pixels import Change, Corrupted, Occluded, Shuffled
from tcnn.published import SUITES, PublishedPart, open_published
from tcnn.scoring import AttackConfig, Opened, Part

GENERATED = ("corruptions", "fgsm", "pgd", "patch-shuffle", "occlusion", "resolution")
CLEAN = "clean"


def parts_of(
    suites: Sequence[str],
    config: RobustnessConfig,
    images: Images | None,
    outputs: int,
    classes: Sequence[str] | None,
) -> tuple[Part, ...]:
    """The parts of suites, in the order they are asked for; the clean images are first.

    Args:
        suites: NAME for those that are made of `images`, NAME=DIR for published ones.
        config: what to make of the images.
        images: those of the data set; None where there is none.
        outputs: number of the network's outputs.
        classes: their names, if known.

    Raises:
        TCNNError: there is no such suite, or it is asked for twice or without what it needs.
    """
    parts = [] if images is None else [clean(images)]
    names = [suite.partition("=")[0] for suite in suites]
    for name, suite in zip(names, suites, strict=True):
        folder = suite.partition("=")[2]
        if names.count(name) > 1:
            raise TCNNError(f"Expected each suite once, but got {name!r} twice: leave one out.")
        if name in SUITES:
            if not folder:
                raise TCNNError(
                    f"Expected the folder of {name}, but got none: give --suite {name}=DIR."
                )
            found = open_published(name, folder, outputs, classes)
            parts += [_published(name, folder, part) for part in found]
        elif name in GENERATED:
            if folder:
                raise TCNNError(
                    f"Expected no folder for {name}, which is made of the images of --data.root, "
                    f"but got {suite!r}: leave out what follows {name}."
                )
            if images is None:
                raise TCNNError(
                    f"Expected images for {name}, which is made of them, but got none: give "
                    "--data.root DIR."
                )
            parts += _generated(name, config, images)
        else:
            known = ", ".join((*GENERATED, *(f"{name}=DIR" for name in SUITES)))
            raise TCNNError(f"Expected a suite out of {known}, but got {suite!r}.")
    titles = [part.title for part in parts]
    if twice := [title for title in titles if titles.count(title) > 1]:
        raise TCNNError(f"Expected each set once, but got {twice[0]!r} twice: leave one out.")
    return tuple(parts)


def clean(images: Images) -> Part:
    """Images as they are."""
    return Part(CLEAN, "", None, _opened(images), _described(images))


def corrupted(
    images: Images, names: Sequence[str], severities: Sequence[int], seed: int
) -> list[Part]:
    """Images under every corruption and severity, made here."""
    for name in names:
        if name not in CORRUPTIONS:
            raise TCNNError(
                f"Expected corruptions out of {', '.join(CORRUPTIONS)}, but got {name!r}."
            )
    return [
        _made(images, "corruptions", name, severity, change=Corrupted(name, severity, seed))
        for name in names
        for severity in severities
    ]


def attacked(images: Images, attacks: Sequence[AttackConfig]) -> list[Part]:
    """Images attacked against each network by itself."""
    return [_made(images, attack.kind, "", attack.epsilon, attack=attack) for attack in attacks]


def _generated(suite: str, config: RobustnessConfig, images: Images) -> list[Part]:
    seed = config.seed
    if suite == "corruptions":
        names = CORRUPTIONS if config.corruptions is None else config.corruptions
        return corrupted(images, names, config.severities, seed)
    if suite == "fgsm":
        return attacked(images, [AttackConfig("fgsm", size) for size in config.epsilons])
    if suite == "pgd":
        steps = config.pgd_steps
        return attacked(images, [AttackConfig("pgd", e, steps, seed) for e in config.epsilons])
    if suite == "patch-shuffle":
        grids = config.shuffle_grids
        return [_made(images, suite, "", grid, change=Shuffled(grid, seed)) for grid in grids]
    if suite == "occlusion":
        grid = config.occlusion_grid
        return [
            _made(images, suite, "", share, change=Occluded(share, grid, seed))
            for share in config.occlusion_shares
        ]
    return [_made(images, suite, "", scale, scale=scale) for scale in config.scales]


def _made(
    images: Images,
    suite: str,
    name: str,
    level: float,
    *,
    change: Change | None = None,
    attack: AttackConfig | None = None,
    scale: float = 1.0,
) -> Part:
    return Part(suite, name, level, _opened(images), _described(images), change, attack, scale)


def _published(suite: str, folder: str, part: PublishedPart) -> Part:
    def opened() -> Opened:
        found = part.open()
        return found.images, found.accepted, found.note

    return Part(
        suite,
        part.name,
        part.severity,
        opened,
        [suite, str(Path(folder).resolve())],
        whole=part.view_fixed,
        outputs=None if part.outputs is None else tuple(part.outputs.tolist()),
    )


def _opened(images: Images) -> Callable[[], Opened]:
    return lambda: (images, None, "")


def _described(images: Images) -> list[Any]:
    """How many, their classes, labels and names, as plain data."""
    names = "\n".join(images.name(index) for index in range(len(images)))
    return [
        len(images),
        zlib.crc32("\n".join(images.classes).encode("utf-8", "backslashreplace")),
        zlib.crc32(images.labels.tobytes()),
        zlib.crc32(names.encode("utf-8", "backslashreplace")),
    ]
