"""The gates of every head through a run of training, read from the run's folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcnn.errors import TCNNError
from tcnn.tables import text_table

FILE = "gates.csv"
_COLUMNS = ("epoch", "layer", "head", "gate", "content_share")


@dataclass(frozen=True)
class GateHistory:
    """Gates at the end of each epoch.

    Attributes:
        epochs: numbers of the epochs, rising.
        gates: layer → for each epoch the gate of each head; 1 is the convolution.
    """

    epochs: tuple[int, ...]
    gates: dict[str, tuple[tuple[float, ...], ...]]

    def mean_content_share(self, layer: str) -> tuple[float, ...]:
        """Mean over heads of |1 - g|, for each epoch."""
        return tuple(sum(abs(1 - g) for g in gates) / len(gates) for gates in self.gates[layer])

    def table(self) -> str:
        """One row for each epoch: the mean |content share| of each layer."""
        shares = [self.mean_content_share(layer) for layer in self.gates]
        rows = [(epoch, *values) for epoch, *values in zip(self.epochs, *shares, strict=True)]
        return text_table(("epoch", *(f"{layer} |1 - g|" for layer in self.gates)), rows)

    def to_json(self) -> dict[str, Any]:
        """The gates as plain data."""
        gates = {layer: [list(row) for row in rows] for layer, rows in self.gates.items()}
        return {"epochs": list(self.epochs), "gates": gates}


def gate_history(run_folder: str | Path) -> GateHistory:
    """The gates of a run of `tcnn finetune`, or of one that still goes on.

    Args:
        run_folder: what the run wrote; its gates.csv is read.

    Raises:
        TCNNError: it has no such file, or one that a run did not write, or no recast layer.
    """
    file = Path(run_folder) / FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise TCNNError(
            f"Expected the gates of a run in {str(file)!r}, but got: {reason}. Give the folder of "
            "a run of tcnn finetune that has ended its first epoch."
        ) from error
    try:
        lines = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise _odd(file, str(error)) from error
    if not lines or tuple(lines[0]) != _COLUMNS:
        raise _odd(file, f"the columns {lines[0] if lines else 'of an empty file'}")
    if len(lines) == 1:
        raise TCNNError(
            f"Expected the gates of a hybrid in {str(file)!r}, but its network has no recast layer."
        )
    found: dict[str, dict[int, list[float]]] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            epoch, layer, head, gate, _ = line
            heads = found.setdefault(layer, {}).setdefault(int(epoch), [])
            whole = len(heads) == int(head)
            heads.append(float(gate))
        except ValueError as error:
            raise _odd(file, f"line {number}: {','.join(line)!r}") from error
        if not whole:
            raise _odd(file, f"heads out of order in line {number}")
    epochs = tuple(next(iter(found.values())))
    for layer, by_epoch in found.items():
        if tuple(by_epoch) != epochs or len({len(heads) for heads in by_epoch.values()}) > 1:
            raise _odd(file, f"epochs or heads missing of {layer}")
    gates = {layer: tuple(map(tuple, by_epoch.values())) for layer, by_epoch in found.items()}
    return GateHistory(epochs, gates)


def _odd(file: Path, got: str) -> TCNNError:
    return TCNNError(
        f"Expected {str(file)!r} as a run writes it, {','.join(_COLUMNS)} by epoch, layer and "
        f"head, but got {got}: give the folder of a run."
    )
