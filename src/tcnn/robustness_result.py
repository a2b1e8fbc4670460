"""What came of suites: figures by suite, corruption and severity, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tcnn import metrics, robustness_page
from tcnn.corruptions import EXTRA, STANDARD
from tcnn.evaluate import finite
from tcnn.scoring import Part, Score, title_of
from tcnn.tables import csv_text

CORRUPTED = ("corruptions", "imagenet-c", "cifar10-c")
_SETS = {"standard": STANDARD, "extra": EXTRA}


@dataclass(frozen=True)
class PartScore:
    """What each network did on one part.

    Attributes:
        suite, name, level: the part.
        scores: by network.
    """

    suite: str
    name: str
    level: float | None
    scores: Mapping[str, Score] = field(repr=False)

    @classmethod
    def of(cls, part: Part, scores: Mapping[str, Score]) -> PartScore:
        """The scores of a part."""
        return cls(part.suite, part.name, part.level, scores)

    @property
    def title(self) -> str:
        """Suite, name and level."""
        return title_of(self.suite, self.name, self.level)

    def line(self) -> str:
        """One line for who waits."""
        tops = ", ".join(f"{score.result.top1:.2%}" for score in self.scores.values())
        hashes = dict.fromkeys(score.pixels for score in self.scores.values())
        return f"{self.title}: top-1 {tops}; pixels {', '.join(hashes)}"


@dataclass(frozen=True)
class Comparison:
    """The first network minus the second on the same images, in top-1.

    Attributes:
        difference: mean over images.
        low, high: ends of its 95 % bootstrap interval.
        p: of McNemar's test, that both are as often right.
    """

    difference: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        points = (100 * value for value in (self.difference, self.low, self.high))
        return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*points)


@dataclass(frozen=True)
class Group:
    """Parts that make one figure: several versions of the same images, or one.

    Attributes:
        suite: of the parts.
        title: what they are.
        parts: the parts.
    """

    suite: str
    title: str
    parts: tuple[PartScore, ...] = field(repr=False)

    def top1(self, model: str) -> float:
        """Mean over the parts."""
        tops = [part.scores[model].result.top1 for part in self.parts]
        return sum(tops) / len(tops)

    def error(self, model: str) -> float:
        """Standard error of `top1` over images."""
        return metrics.standard_error(self.scores(model)).item()

    def scores(self, model: str) -> Tensor:
        """Share of the versions of each image that were classified rightly, (N,).

        The versions of one image are not independent of each other, so it is over images, with
        these scores, that standard errors are taken.
        """
        (versions,) = self._versions((model,))
        return versions.double().mean(dim=1)

    @property
    def images(self) -> int:
        """Images of the smallest part."""
        return min(score.result.images for part in self.parts for score in part.scores.values())

    def masked(self, model: str) -> int:
        """Images without a gradient to attack along."""
        return sum(int(part.scores[model].masked.sum()) for part in self.parts)

    def compare(self, first: str, second: str) -> Comparison:
        """Two networks on the images that both were shown."""
        a, b = self._versions((first, second))
        difference = a.double().mean(dim=1) - b.double().mean(dim=1)
        low, high = metrics.paired_bootstrap(difference)
        p = metrics.mcnemar(a, b) if a.shape[1] > 1 else metrics.mcnemar(a[:, 0], b[:, 0])
        return Comparison(difference.mean().item(), low, high, p)

    def _versions(self, models: Sequence[str]) -> list[Tensor]:
        """For each network which versions of which images are right, (N, V), of the images that
        are in every part."""
        results = [[part.scores[model].result for part in self.parts] for model in models]
        common = results[0][0].index
        for result in (result for row in results for result in row):
            common = common[torch.isin(common, result.index)]
        return [
            torch.stack([r.correct[torch.isin(r.index, common)] for r in row], dim=1)
            for row in results
        ]


@dataclass(frozen=True)
class RobustnessResult:
    """Networks on suites.

    Attributes:
        models: the networks; the second is what the first is held against.
        parts: what was scored.
    """

    models: tuple[str, ...]
    parts: tuple[PartScore, ...] = field(repr=False)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The figures of the table: of corruptions the standard ones and the extra ones together,
        all else by itself."""
        groups = []
        for suite in dict.fromkeys(part.suite for part in self.parts):
            parts = [part for part in self.parts if part.suite == suite]
            if suite not in CORRUPTED:
                groups += [Group(suite, part.title, (part,)) for part in parts]
                continue
            for kind, names in _SETS.items():
                if chosen := tuple(part for part in parts if part.name in names):
                    count = len({part.name for part in chosen})
                    groups.append(Group(suite, f"{suite}, {count} {kind}", chosen))
        return tuple(groups)

    @property
    def clean(self) -> Group | None:
        """The clean images, if they were scored."""
        parts = tuple(part for part in self.parts if part.suite == "clean")
        return Group("clean", "clean", parts) if parts else None

    def corrupted(self, suite: str = "corruptions") -> Group:
        """All corruptions of a suite together."""
        return Group(suite, suite, tuple(part for part in self.parts if part.suite == suite))

    def by_corruption(self, suite: str = "corruptions") -> tuple[Group, ...]:
        """Each corruption of a suite over its severities, the standard ones first."""
        parts = [part for part in self.parts if part.suite == suite]
        names = [n for n in (*STANDARD, *EXTRA) if any(part.name == n for part in parts)]
        return tuple(
            Group(suite, name, tuple(part for part in parts if part.name == name)) for name in names
        )

    @property
    def corruption_suites(self) -> tuple[str, ...]:
        """Those suites that have corruptions and severities."""
        return tuple(dict.fromkeys(p.suite for p in self.parts if p.suite in CORRUPTED))

    def curves(self, suite: str) -> dict[str, dict[str, list[float]]]:
        """Network → corruption → top-1 by severity."""
        return {
            model: {
                group.title: [part.scores[model].result.top1 for part in group.parts]
                for group in self.by_corruption(suite)
            }
            for model in self.models
        }

    def severities(self, suite: str) -> list[int]:
        """The severities of a suite."""
        levels = {part.level for part in self.parts if part.suite == suite}
        return sorted(int(level) for level in levels if level is not None)

    def table(self) -> str:
        """One line for each figure."""
        return robustness_page.table(self)

    def corruption_tables(self) -> str:
        """Top-1 by corruption and severity, one table for each suite and network."""
        return robustness_page.corruption_tables(self)

    def remarks(self) -> list[str]:
        """What a reader needs to read the figures rightly."""
        return robustness_page.remarks(self)

    def timing(self) -> str:
        """What took how long."""
        return robustness_page.timing(self)

    def markdown(self) -> str:
        """The tables and remarks as a page's middle."""
        return robustness_page.markdown(self)

    @property
    def unread(self) -> dict[str, str]:
        """Images that could not be read, and why."""
        scores = (score for part in self.parts for score in part.scores.values())
        return dict(sorted(line for score in scores for line in score.unread))

    def corruption_errors(self, model: str, suite: str) -> dict[str, float | None]:
        """Mean error over the standard corruptions; for ImageNet-C mCE, and relative mCE where
        clean images were scored. None where a corruption or a severity is missing."""
        groups = [group for group in self.by_corruption(suite) if group.title in STANDARD]
        errors = {group.title: 1 - group.top1(model) for group in groups}
        whole = len(groups) == len(STANDARD) and all(len(group.parts) == 5 for group in groups)
        found: dict[str, float | None] = {
            "mean_error": sum(errors.values()) / len(errors) if whole else None
        }
        if suite == "imagenet-c":
            found["mce"] = metrics.mean_corruption_error(errors) if whole else None
            found["relative_mce"] = None
            if whole and self.clean is not None:
                clean = 1 - self.clean.top1(model)
                found["relative_mce"] = metrics.relative_mean_corruption_error(errors, clean)
        return found

    def csv(self) -> str:
        """One row for each part and network."""
        headers = (
            *("suite", "name", "level", "model", "images", "top1", "top5", "loss", "ece"),
            *("masked", "unread", "pixels", "reading_s", "changing_s", "computing_s", "clock_s"),
        )
        rows = [
            (
                *(part.suite, part.name, part.level, model, score.result.images),
                *(score.result.top1, score.result.top5, score.result.loss, score.result.ece),
                *(int(score.masked.sum()), len(score.unread), score.pixels),
                *(score.seconds[key] for key in ("reading", "changing", "computing", "clock")),
            )
            for part in self.parts
            for model, score in part.scores.items()
        ]
        return csv_text(headers, rows)

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "models": list(self.models),
            "groups": [
                {
                    "suite": group.suite,
                    "title": group.title,
                    "images": group.images,
                    "sets": len(group.parts),
                    "top1": {model: group.top1(model) for model in self.models},
                    "top1_standard_error": {
                        model: finite(group.error(model)) for model in self.models
                    },
                    "comparison": self._compared(group),
                }
                for group in self.groups
            ],
            "by_corruption": {
                suite: [
                    {
                        "corruption": group.title,
                        "top1": {model: group.top1(model) for model in self.models},
                        "comparison": self._compared(group),
                    }
                    for group in self.by_corruption(suite)
                ]
                for suite in self.corruption_suites
            },
            "corruption_errors": {
                suite: {model: self.corruption_errors(model, suite) for model in self.models}
                for suite in self.corruption_suites
            },
            "parts": [
                {
                    "suite": part.suite,
                    "name": part.name,
                    "level": part.level,
                    "scores": {
                        model: {
                            **score.result.to_json(),
                            "masked": int(score.masked.sum()),
                            "pixels": score.pixels,
                            "seconds": score.seconds,
                        }
                        for model, score in part.scores.items()
                    },
                }
                for part in self.parts
            ],
            "remarks": self.remarks(),
            "timing": self.timing(),
        }

    def _compared(self, group: Group) -> dict[str, float] | None:
        if len(self.models) < 2:
            return None
        compared = group.compare(*self.models)
        return {
            "difference": compared.difference,
            "low": compared.low,
            "high": compared.high,
            "mcnemar_p": compared.p,
        }
