"""What a study found: arms over seeds, paired differences with their intervals, table and page."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from tcnn.study_run import RunResult
from tcnn.study_setting import Setting
from tcnn.tables import markdown_table, text_table

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """An arm minus the control, in points of top-1, on the same seeds and images.

    Attributes:
        mean: over seeds and images.
        low, high: ends of the 95 % interval; None where one seed cannot tell.
        seeds: how many both arms have.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def ends(self) -> tuple[float, float | None, float | None]:
        """Mean, low and high."""
        return self.mean, self.low, self.high

    @property
    def verdict(self) -> str:
        """What the interval says."""
        return verdict(self.low, self.high)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def verdict(low: float | None, high: float | None) -> str:
    """What the interval of a difference says."""
    if low is None or high is None:
        return "one seed: not known"
    if low > 0:
        return "gain"
    return "loss" if high < 0 else "no difference shown"


def paired(arm: np.ndarray[Any, Any], control: np.ndarray[Any, Any]) -> Difference:
    r"""Paired difference with an interval that knows both of seeds and of images.

    .. math::
        d ± \sqrt{t_{S-1}² s_S² / S + t_{N-1}² s_N² / N}

    s_S² is the variance of the seeds' mean differences, s_N² that of the images' (each the mean
    over seeds), t the quantile of Student's distribution. The part that seeds and images have in
    common is in both, so the interval is rather too wide than too narrow.

    Args:
        arm, control: scores in [0, 1], (S seeds, N images).
    """
    difference = 100 * (arm.astype(np.float64) - control.astype(np.float64))
    mean = float(difference.mean())
    if len(difference) < 2:
        return Difference(mean, None, None, len(difference))
    reaches = [
        stats.t.ppf(0.5 + CONFIDENCE / 2, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5
        for means in (difference.mean(axis=1), difference.mean(axis=0))
    ]
    reach = math.hypot(*reaches)
    return Difference(mean, mean - reach, mean + reach, len(difference))


@dataclass(frozen=True)
class StudyResult:
    """All runs of a study.

    Attributes:
        setting: what the arms have in common.
        seeds: the seeds.
        control: name of the arm that the others are held against.
        runs: by arm and seed.
        command: that made it.
    """

    setting: Setting
    seeds: tuple[int, ...]
    control: str
    runs: dict[tuple[str, int], RunResult]
    command: str

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what was measured: clean, corrupted, then the attacks."""
        names = next(iter(self.runs.values())).scores
        return tuple(sorted(names, key=lambda name: (name != "clean", name != "corrupted", name)))

    def scores(self, arm: str, measure: str) -> np.ndarray[Any, Any]:
        """Scores of an arm, (seeds, images)."""
        return np.stack([self.runs[arm, seed].scores[measure] for seed in self.seeds])

    def difference(self, arm: str, measure: str) -> Difference:
        """An arm against the control."""
        return paired(self.scores(arm, measure), self.scores(self.control, measure))

    def _mean(self, arm: str, key: str) -> float | None:
        """Mean of a figure of training over an arm's seeds; None where it was not trained."""
        fits = [self.runs[arm, seed].figures["fit"] for seed in self.seeds]
        return None if None in fits else float(np.mean([fit[key] for fit in fits]))

    def _share(self, arm: str) -> float | None:
        runs = [self.runs[arm, seed].figures["fit"] for seed in self.seeds]
        shares = [run["history"][-1]["mean_content_share"] for run in runs if run]
        return None if not shares or None in shares else float(np.mean(shares))

    def _rows(self) -> list[list[object]]:
        rows: list[list[object]] = []
        for arm in self.setting.arms:
            row: list[object] = [arm]
            for measure in self.measures:
                means = 100 * self.scores(arm, measure).mean(axis=1)
                spread = f" ± {means.std(ddof=1):.2f}" if len(means) > 1 else ""
                row.append(f"{means.mean():.2f}{spread}")
            for measure in self.measures:
                row.append(None if arm == self.control else str(self.difference(arm, measure)))
            chosen = self.setting.arms[arm]
            row.append(0 if chosen.epochs == 0 else self.setting.recipe(arm, 0).epochs)
            seconds, rate = self._mean(arm, "seconds"), self._mean(arm, "images_per_second")
            row += [None if v is None else round(v) for v in (seconds, rate)]
            share = self._share(arm)
            row.append(None if share is None else round(share, 3))
            rows.append(row)
        return rows

    def _headers(self) -> list[str]:
        return [
            "arm",
            *(f"{measure} top-1 %" for measure in self.measures),
            *(f"{measure} - control" for measure in self.measures),
            *("epochs", "seconds", "images/s", "|content share|"),
        ]

    def table(self) -> str:
        """Arms by measures: mean ± standard deviation over seeds, and paired differences."""
        return text_table(self._headers(), self._rows())

    def verdicts(self) -> str:
        """Each arm against the control in words, one line for each measure."""
        lines = []
        for arm in self.setting.arms:
            if arm != self.control:
                for measure in self.measures:
                    difference = self.difference(arm, measure)
                    lines.append(
                        f"{arm}, {measure}: {difference} points against {self.control}: "
                        f"{difference.verdict}."
                    )
        return "\n".join(lines)

    def markdown(self) -> str:
        """The study as a page."""
        first = next(iter(self.runs.values())).figures
        versions = ", ".join(f"{k} {v}" for k, v in first["versions"].items())
        hardware = first["hardware"]
        setting, measure = self.setting, self.setting.measure
        epochs = f"{setting.train.epochs} epochs of fine-tuning"
        if setting.pretrain:
            epochs = f"{setting.pretrain.epochs} epochs of pretraining and {epochs}"
        return "\n".join(
            [
                f"# Study: {setting.model}",
                "",
                f"`{self.command}`",
                "",
                f"{first['images'][0]} training and {first['images'][1]} validation images of "
                f"`{setting.data.root}`; {epochs}; seeds {', '.join(map(str, self.seeds))}; "
                f"corruptions (made here, no published files) and attacks on "
                f"{first['tested']['corrupted and attacked']} validation images, "
                f"severities {', '.join(map(str, measure.severities)) or 'none'}. "
                f"{versions}; {hardware['processor']}, {hardware['threads']} threads, "
                f"GPU {hardware['gpu'] or 'none'}.",
                "",
                markdown_table(self._headers(), self._rows()),
                "",
                "Mean ± standard deviation over seeds; differences in points of top-1 against "
                f"`{self.control}`, paired over seeds and images, with 95 % intervals. Intervals "
                "of many arms and measures: one in twenty misses by chance. Epochs and seconds are "
                "the arm's own: an arm that starts from a network had that network's training "
                "before. Seconds depend on what else the machine did.",
                "",
                *self._masked(),
                *(f"- {line}" for line in self.verdicts().splitlines()),
                "",
                *(f"![{what}]({name})\n" for name, what in self.pictures.items()),
            ]
        )

    @property
    def pictures(self) -> dict[str, str]:
        """What there is to draw: file name → what it shows."""
        arms = self.setting.arms
        found = {}
        if any(arm.epochs != 0 for arm in arms.values()):
            found["curves.png"] = "Learning curves"
        if len(arms) > 1:
            found["differences.png"] = "Differences to the control"
        return found

    def _masked(self) -> list[str]:
        """A warning for each run that FGSM had no gradient to attack."""
        return [
            f"{run.arm}, seed {run.seed}: {attack['masked']} images had no gradient for FGSM to "
            "follow; they count as withstood and say nothing.\n"
            for run in self.runs.values()
            for attack in run.figures["fgsm"]
            if attack["masked"]
        ]

    def to_json(self) -> dict[str, Any]:
        """The study as plain data."""
        setting = asdict(self.setting)
        setting["out"] = str(self.setting.out)
        return {
            "command": self.command,
            "setting": setting,
            "seeds": list(self.seeds),
            "control": self.control,
            "arms": {
                arm: {
                    measure: {
                        "top1": self.scores(arm, measure).mean(axis=1).tolist(),
                        "minus_control": None
                        if arm == self.control
                        else {
                            **asdict(difference := self.difference(arm, measure)),
                            "verdict": difference.verdict,
                        },
                    }
                    for measure in self.measures
                }
                for arm in self.setting.arms
            },
            "runs": [run.figures for run in self.runs.values()],
        }
