"""The records of a run brought to one form, whichever command wrote them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tcnn.errors import TCNNError
from tcnn.report.contents import Contents
from tcnn.study_result import verdict

_REACH = 1.96  # standard errors to either side of a mean that a 95 % interval takes
Epoch = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A network against its control on the same images, in points of top-1.

    Attributes:
        measure: what both were tested on.
        arm, control: names of the two.
        top1, control_top1: of each, from 0 to 1.
        difference, low, high: their difference with the ends of its 95 % interval; None where one
            seed cannot tell.
        interval: what the interval ranges over.
    """

    measure: str
    arm: str
    control: str
    top1: float
    control_top1: float
    difference: float
    low: float | None
    high: float | None
    interval: str

    @property
    def verdict(self) -> str:
        """What the interval says."""
        return verdict(self.low, self.high)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.difference:+.2f}"
        return f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Levels:
    """Accuracy at each level of one change to the images.

    Attributes:
        suite: of the change.
        name: of the change; empty where the suite is one.
        levels: severities, sizes of an attack, …
        top1: network → accuracy from 0 to 1 at each level.
    """

    suite: str
    name: str
    levels: tuple[float, ...]
    top1: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Findings:
    """What a run found.

    Attributes:
        equivalence: of recasting, as `EquivalenceReport.to_json` gives it; None where not kept.
        plan: as `Plan.to_json` gives it; None where not kept.
        comparisons: of the network that is shown first, then of all others.
        shown: name of the arm that is shown.
        curves: name → epochs of training.
        gates: content shares of the network that is shown, by epoch and layer.
        corruptions: corruption → network → accuracy, over all severities.
        levels: accuracy by level.
        made: versions and hardware, in words.
        commands: that made the records.
        remarks: what a reader needs to read the figures rightly.
    """

    equivalence: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    comparisons: tuple[Comparison, ...] = ()
    shown: str = "hybrid"
    curves: dict[str, list[Epoch]] = field(default_factory=dict)
    gates: tuple[dict[str, list[float]], ...] = ()
    corruptions: dict[str, dict[str, float]] = field(default_factory=dict)
    levels: tuple[Levels, ...] = ()
    made: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def findings(contents: Contents) -> Findings:
    """What the records of a run say.

    Raises:
        TCNNError: a record is not as tcnn writes it.
    """
    parts: dict[str, Any] = {"comparisons": (), "made": (), "commands": (), "remarks": ()}
    try:
        for record, read in (
            (contents.recast, _of_recast),
            (contents.demo, _of_demo),
            (contents.study, _of_study),
            (contents.run, _of_run),
            (contents.robustness, _of_robustness),
        ):
            if record is None:
                continue
            for key, value in read(record, contents).items():
                more = key in ("comparisons", "remarks")
                parts[key] = (*parts[key], *value) if more else value
            parts["made"] = tuple(dict.fromkeys((*parts["made"], _made(record))))
            command = (record["command"],) if record.get("command") else ()
            parts["commands"] = (*parts["commands"], *command)
    except (KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise TCNNError(
            f"Expected the records in {str(contents.folder)!r} as tcnn writes them, but one was "
            f"changed or is of another version ({type(error).__name__}: {error}): run its command "
            "again."
        ) from error
    return Findings(**parts)


def _of_recast(record: dict[str, Any], contents: Contents) -> dict[str, Any]:
    return {"plan": record["plan"], "equivalence": record["equivalence"]}


def _of_demo(record: dict[str, Any], contents: Contents) -> dict[str, Any]:
    results, arms = record["results"], ("hybrid", "control")
    test = {arm: results["test"][arm] for arm in arms}
    columns = {"clean": "clean", "corrupted": "mean corrupted"}
    comparisons = []
    for measure, found in results["hybrid_minus_control"].items():
        difference, reach = 100 * found["top1"], 100 * _REACH * found["standard_error"]
        tops = [test[arm][columns[measure]]["top1"] for arm in arms]
        comparisons.append(
            Comparison(
                measure=measure,
                arm="hybrid",
                control="control",
                top1=tops[0],
                control_top1=tops[1],
                difference=difference,
                low=difference - reach,
                high=difference + reach,
                interval="over test images, of one pair of networks",
            )
        )
    training = results["training"]
    return {
        "plan": results["plan"],
        "equivalence": results["equivalence"],
        "comparisons": comparisons,
        "curves": {name: training[name]["history"] for name in ("control", "hybrid")},
        "gates": _gates(training["hybrid"]["history"]),
        "corruptions": {
            name: {arm: test[arm][name]["top1"] for arm in arms}
            for name in test["hybrid"]
            if name not in columns.values()
        },
    }


def _of_study(record: dict[str, Any], contents: Contents) -> dict[str, Any]:
    control, arms = record["control"], record["arms"]
    shown, seed = contents.shown or (control, record["seeds"][0])
    order = [shown, *(arm for arm in arms if arm not in (shown, control))]
    measures = sorted(arms[control], key=lambda name: (name != "clean", name != "corrupted", name))
    comparisons = [
        Comparison(
            measure,
            arm,
            control,
            _mean(arms[arm][measure]["top1"]),
            _mean(arms[control][measure]["top1"]),
            found["mean"],
            found["low"],
            found["high"],
            f"over {found['seeds']} seeds and images",
        )
        for arm in order
        for measure in measures
        if (found := arms[arm][measure]["minus_control"]) is not None
    ]
    runs = {(run["arm"], run["seed"]): run for run in record["runs"]}
    histories = {
        arm: [
            run["fit"]["history"] for (name, _), run in runs.items() if name == arm and run["fit"]
        ]
        for arm in arms
    }
    fitted = runs[shown, seed]["fit"]
    corruptions = {
        name: {
            arm: _mean([runs[arm, s]["corrupted"]["by_corruption"][name] for s in record["seeds"]])
            for arm in dict.fromkeys((shown, control))
        }
        for name in runs[shown, seed].get("corrupted", {}).get("by_corruption", {})
    }
    return {
        "equivalence": runs[shown, seed].get("equivalence"),
        "comparisons": comparisons,
        "shown": shown,
        "curves": {arm: _mean_history(found) for arm, found in histories.items() if found},
        "gates": _gates(fitted["history"]) if fitted else (),
        "corruptions": corruptions,
        "remarks": (
            f"The gates and the explorer are of arm {shown!r} with seed {seed}; training curves "
            f"are means over {len(record['seeds'])} seeds.",
            "Of many intervals of 95 %, one in twenty misses by chance.",
        ),
    }


def _of_run(record: dict[str, Any], contents: Contents) -> dict[str, Any]:
    history = record["result"]["history"]
    start = record.get("start") or {}
    found = {
        "curves": {"": history},
        "gates": _gates(history),
        "equivalence": start.get("equivalence") or _kept(start.get("model")),
    }
    return {key: value for key, value in found.items() if value is not None}


def _of_robustness(record: dict[str, Any], contents: Contents) -> dict[str, Any]:
    models = record["models"]
    comparisons = [
        Comparison(
            measure=group["title"],
            arm=models[0],
            control=models[1],
            top1=group["top1"][models[0]],
            control_top1=group["top1"][models[1]],
            difference=100 * group["comparison"]["difference"],
            low=100 * group["comparison"]["low"],
            high=100 * group["comparison"]["high"],
            interval="over images, of one pair of networks",
        )
        for group in record["groups"]
        if group["comparison"] is not None
    ]
    by_change: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for part in record["parts"]:
        if part["level"] is not None:
            by_change.setdefault((part["suite"], part["name"]), []).append(part)
    levels = tuple(
        Levels(
            *change,
            tuple(part["level"] for part in parts),
            {m: tuple(part["scores"][m]["top1"] for part in parts) for m in models},
        )
        for change, parts in by_change.items()
    )
    corruptions = {
        row["corruption"]: row["top1"] for rows in record["by_corruption"].values() for row in rows
    }
    found = {
        "comparisons": comparisons,
        "levels": levels,
        "corruptions": corruptions,
        "remarks": record["remarks"],
    }
    return found if contents.study or contents.demo else {**found, "shown": models[0]}


def _kept(model: str | None) -> dict[str, Any] | None:
    """The equivalence that was measured when a saved hybrid was made, if it is still there."""
    try:
        found = json.loads((Path(str(model)) / "recast.json").read_text(encoding="utf-8"))
        return dict(found["equivalence"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _gates(history: list[Epoch]) -> tuple[dict[str, list[float]], ...]:
    return tuple(epoch["content_share"] for epoch in history if epoch["content_share"])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _mean_history(histories: list[list[Epoch]]) -> list[Epoch]:
    keys = ("train_loss", "train_top1", "val_loss", "val_top1", "mean_content_share")
    return [
        {
            key: None if epochs[0][key] is None else _mean([epoch[key] for epoch in epochs])
            for key in keys
        }
        for epochs in zip(*histories, strict=False)
    ]


def _made(record: dict[str, Any]) -> str:
    of = record if "versions" in record else record["runs"][0]
    versions = ", ".join(f"{name} {version}" for name, version in of["versions"].items())
    hardware = of["hardware"]
    return (
        f"{versions}; {hardware['processor']}, {hardware['threads']} threads, "
        f"GPU {hardware['gpu'] or 'none'}"
    )
