"""What a run's folder holds: the records that commands left there, and the hybrid to look into."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from tcnn.checkpoint import SETTINGS
from tcnn.data_config import DataConfig
from tcnn.errors import TCNNError

PAGE = "report.html"
_RECORDS = {  # field of `Contents` → its file, and keys that show it to be what it is called
    "recast": ("recast.json", ("plan", "equivalence")),
    "run": ("run.json", ("result", "data", "view")),
    "study": ("study.json", ("setting", "arms", "runs", "control")),
    "robustness": ("robustness.json", ("models", "networks", "groups", "parts")),
    "demo": ("metrics.json", ("results", "config", "seed")),
}
Record = dict[str, Any] | None


@dataclass(frozen=True)
class Contents:
    """The records of a run; None for those that it has not.

    Attributes:
        folder: of the run.
        recast: plan and equivalence, from `tcnn recast`.
        run: of `tcnn finetune`.
        study: of `tcnn study`.
        robustness: of `tcnn robustness`.
        demo: of `tcnn demo`.
    """

    folder: Path
    recast: Record = None
    run: Record = None
    study: Record = None
    robustness: Record = None
    demo: Record = None

    @property
    def kind(self) -> str:
        """What the folder is, in a few words."""
        names = {
            "demo": "demonstration",
            "study": "study",
            "run": "fine-tuning",
            "robustness": "robustness test",
            "recast": "recast network",
        }
        found = (name for key, name in names.items() if getattr(self, key) is not None)
        return next(found, "saved network")

    @cached_property
    def network(self) -> Path | None:
        """The folder of the hybrid to look into; None where none is there.

        Of a study it is the first hybrid arm that was trained, with its first seed.
        """
        for folder in self._networks():
            if _settings(folder).get("layers"):
                return folder
        return None

    @property
    def is_cnn(self) -> bool:
        """Whether the run is of a network that was not recast: a control."""
        own = _settings(self.folder)
        return self.network is None and "layers" in own and not own["layers"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The tcnn.json of `network`, or else of the run; empty where there is none."""
        return _settings(self.network or self.folder)

    @cached_property
    def shown(self) -> tuple[str, int] | None:
        """Arm and seed of a study that `network` is of."""
        runs = self.study["runs"] if self.study else []
        for run in runs:
            if self.network == self._arm(run):
                return run["arm"], run["seed"]
        return None

    @property
    def data(self) -> DataConfig | None:
        """The images that the run was tested on, as it was told; None where it does not say."""
        said: Any = None
        if self.run is not None:
            said = self.run["data"]
        elif self.study is not None:
            said = self.study["setting"]["data"]
        elif self.robustness is not None:
            said = self.robustness["data"]
        if said is None:
            return None
        known = {field.name for field in fields(DataConfig)}
        return DataConfig(**plain_options({k: v for k, v in said.items() if k in known}))

    def _networks(self) -> Iterator[Path]:
        yield self.folder
        yield self.folder / "hybrid"  # of the demonstration
        if self.study is not None:
            yield from (self._arm(run) for run in self.study["runs"] if run["fit"])
            yield from (self._arm(run) for run in self.study["runs"])
        if self.robustness is not None:
            yield from (Path(name) for name in self.robustness["networks"].values())

    def _arm(self, run: dict[str, Any]) -> Path:
        return self.folder / "arms" / str(run["arm"]) / f"seed{run['seed']}" / "model"


def plain_options(said: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON has them, with lists as the tuples that they were."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in said.items()}


def read(folder: str | Path) -> Contents:
    """The records of a run's folder.

    Args:
        folder: what `tcnn demo`, `recast`, `finetune`, `study` or `robustness` wrote.

    Raises:
        TCNNError: it is no such folder, its run is not finished, or a record is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TCNNError(f"Expected the folder of a run, but {str(folder)!r} is not a folder.")
    records = {
        name: _record(folder / file, keys)
        for name, (file, keys) in _RECORDS.items()
        if (folder / file).is_file()
    }
    if not records and not (folder / SETTINGS).is_file():
        if (folder / "last.ckpt").exists() or (folder / "arms").is_dir():
            raise TCNNError(
                f"Expected a run that is done, but {str(folder)!r} holds one that was cut: go on "
                "with it (the same command again, for tcnn finetune with --resume)."
            )
        raise TCNNError(
            f"Expected the folder of a run, but {str(folder)!r} holds none of "
            f"{', '.join(file for file, _ in _RECORDS.values())} and {SETTINGS}: give the --out of "
            "tcnn demo, recast, finetune, study or robustness."
        )
    return Contents(folder, **records)


def _record(file: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TCNNError(
            f"Expected JSON in {str(file)!r}, but it is damaged: {error}: run its command again."
        ) from error
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise TCNNError(
            f"Expected {', '.join(keys)} in {str(file)!r}, as tcnn writes them, but it was changed "
            "or is another program's: run its command again, or take that file away."
        )
    return content


def _settings(folder: Path) -> dict[str, Any]:
    """What a saved network's tcnn.json says, if it is one; loading it checks more."""
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
