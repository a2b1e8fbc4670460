"""Suites' figures to read: tables, remarks and Markdown of a `RobustnessResult`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcnn.corruptions import EXTRA
from tcnn.tables import markdown_table, text_table

if TYPE_CHECKING:
    from tcnn.robustness_result import RobustnessResult


def table(found: RobustnessResult) -> str:
    """One line for each figure."""
    return text_table(*_overview(found))


def corruption_tables(found: RobustnessResult) -> str:
    """Top-1 by corruption and severity, one table for each suite and network."""
    return "\n\n".join(
        f"{heading}\n{text_table(headers, rows)}" for heading, headers, rows in _by_severity(found)
    )


def remarks(found: RobustnessResult) -> list[str]:
    """What a reader needs to read the figures rightly."""
    lines = []
    if "corruptions" in found.corruption_suites:
        lines.append(
            "corruptions: generated here, by the definitions of ImageNet-C; not to be set "
            "beside figures on its published files."
        )
    for model in found.models:
        for suite in found.corruption_suites:
            lines += _corruption_errors(found, model, suite)
    for group in found.groups:
        for model in found.models:
            if masked := group.masked(model):
                lines.append(
                    f"{group.title}, {model}: {masked} images had no gradient to attack "
                    "along (masked); they stayed as they were, and count as withstood."
                )
    if any(part.suite == "pgd" for part in found.parts):
        lines.append("fgsm, pgd: sizes in grey levels (of 255), in pixels; pgd starts at random.")
    if len(found.models) == 2:
        lines.append(
            "Difference: of top-1 in points, paired by image, with the 95 % bootstrap interval "
            "over images; McNemar's test is exact for one set, and in Durkalski's form for "
            "several versions of the same images. Of many tests at 5 %, one in twenty misses."
        )
    lines += dict.fromkeys(
        f"{part.suite}: {score.note}"
        for part in found.parts
        for score in part.scores.values()
        if score.note
    )
    if unread := found.unread:
        name, reason = next(iter(unread.items()))
        lines.append(f"{len(unread)} images could not be read and were left out, {name}: {reason}")
    return lines


def timing(found: RobustnessResult) -> str:
    """What took how long."""
    total = {"reading": 0.0, "changing": 0.0, "computing": 0.0, "clock": 0.0}
    images = changed = 0
    for part in found.parts:
        # Networks that were shown the same images share their reading and the clock.
        shared = {score.pixels: score for score in part.scores.values()}.values()
        for key in ("reading", "changing", "clock"):
            total[key] += sum(score.seconds[key] for score in shared)
        total["computing"] += sum(s.seconds["computing"] for s in part.scores.values())
        images += sum(score.result.images for score in part.scores.values())
        changed += sum(s.result.images for s in shared if s.seconds["changing"] > 1e-3)
    return (
        f"{total['clock']:.0f} s on the clock: reading {total['reading']:.0f} s and generating "
        f"{total['changing']:.0f} s ({changed} changed images) of worker processes, computing "
        f"{total['computing']:.0f} s ({images} images of "
        f"{len(found.models)} network{'s' if len(found.models) > 1 else ''})."
    )


def markdown(found: RobustnessResult) -> str:
    """The tables and remarks as a page's middle."""
    blocks = [markdown_table(*_overview(found))]
    for heading, headers, rows in _by_severity(found):
        blocks += [f"**{heading}**", markdown_table(headers, rows)]
    blocks.append("\n".join(f"- {line}" for line in [*remarks(found), timing(found)]))
    return "\n\n".join(blocks)


def _overview(found: RobustnessResult) -> tuple[list[str], list[list[object]]]:
    both = len(found.models) == 2
    headers = ["suite", "images", "sets"]
    for model in found.models:
        headers += [f"{model} top-1 %", "± %"]
    headers += ["difference [95 %]", "McNemar p"] if both else []
    rows = []
    for group in found.groups:
        row: list[object] = [group.title, group.images, len(group.parts)]
        for model in found.models:
            row += [f"{100 * group.top1(model):.2f}", f"{100 * group.error(model):.2f}"]
        if both:
            compared = group.compare(*found.models)
            row += [str(compared), _p_value(compared.p)]
        rows.append(row)
    return headers, rows


def _by_severity(found: RobustnessResult) -> list[tuple[str, list[str], list[list[object]]]]:
    tables = []
    both = len(found.models) == 2
    for suite in found.corruption_suites:
        severities = found.severities(suite)
        for model in found.models:
            compares = both and model == found.models[0]
            headers = ["corruption", *(f"severity {s}" for s in severities), "mean"]
            headers += [f"- {found.models[1]} [95 %]", "McNemar p"] if compares else []
            rows = []
            for group in found.by_corruption(suite):
                name = f"{group.title} (extra)" if group.title in EXTRA else group.title
                tops = {part.level: part.scores[model].result.top1 for part in group.parts}
                cells = [f"{100 * tops[s]:.1f}" if s in tops else None for s in severities]
                row: list[object] = [name, *cells, f"{100 * group.top1(model):.1f}"]
                if compares:
                    compared = group.compare(*found.models)
                    row += [str(compared), _p_value(compared.p)]
                rows.append(row)
            tables.append((f"{suite}, {model}: top-1 %", headers, rows))
    return tables


def _corruption_errors(found: RobustnessResult, model: str, suite: str) -> list[str]:
    errors = found.corruption_errors(model, suite)
    mean = errors["mean_error"]
    if mean is None:
        return [
            f"{suite}, {model}: not all 15 standard corruptions at 5 severities, so no mean "
            "error over them."
        ]
    lines = [
        f"{suite}, {model}: mean error over the 15 standard corruptions and 5 severities, not "
        f"normalised: {mean:.2%}."
    ]
    if (mce := errors.get("mce")) is not None:
        lines.append(
            f"{suite}, {model}: mCE {mce:.2%}, the mean over corruptions of the error by "
            "AlexNet's (Hendrycks & Dietterich 2019)."
        )
    if (relative := errors.get("relative_mce")) is not None:
        lines.append(
            f"{suite}, {model}: relative mCE {relative:.2%}, of what corruption adds to the "
            "clean error, by what it adds to AlexNet's."
        )
    return lines


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
