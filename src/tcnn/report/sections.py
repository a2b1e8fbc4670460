"""The parts of the page, each from what was found and seen to HTML; empty without either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tcnn.corruptions import STANDARD
from tcnn.report import charts
from tcnn.report.charts import Dot, Line
from tcnn.report.findings import Comparison, Epoch, Findings, Levels
from tcnn.report.lacking import Lack
from tcnn.report.looking import Convolution, Look
from tcnn.report.markup import figure, number, percent, signed, table, tag, text

_DRAWN_ARMS = charts.STYLES
_GATE_POINTS = 15_000  # of all heads together; beyond that not every epoch is shown


def drawing(convolutions: Sequence[Convolution]) -> str:
    """The network, convolution by convolution, with the heads of those that were recast."""
    if not convolutions:
        return ""
    reach = _reach(convolutions)
    boxes, stage = [], None
    for convolution in convolutions:
        if convolution.grid != stage and convolution.grid is not None:
            stage = convolution.grid
            boxes.append(tag("li", text(f"{_by(stage)} grid"), class_="stage"))
        boxes.append(_box(convolution, reach))
    rows = [
        (
            c.name or "(the network itself)",
            _by(c.kernel),
            _by(c.stride),
            c.grid and _by(c.grid),
            c.channels and f"{c.channels[0]} → {c.channels[1]}",
            "recast" if c.recast else "convolution",
            ", ".join(signed(share, 3) for share in c.shares) or None,
        )
        for c in convolutions
    ]
    headers = ("layer", "kernel", "stride", "grid", "channels", "is", "content shares of its heads")
    note = (
        "In the order in which the network calls them. A recast layer has one head for each kernel "
        "tap: an empty square is the convolution (gate 1, content share 0); the fuller, the "
        f"further its gate left it, up to a content share of {number(reach)} in size; a bar marks "
        "a negative content share, which subtracts what the content would add."
    )
    return figure(
        "The network.", tag("ol", "".join(boxes), class_="net"), table(headers, rows), note
    )


def training(found: Findings) -> str:
    """Loss, accuracy and content share by epoch."""
    if not found.curves:
        return ""
    control = [c.control for c in found.comparisons[:1]]
    order = [*(a for a in (found.shown, *control) if a in found.curves)]
    order += [arm for arm in found.curves if arm not in order]
    drawn = order[:_DRAWN_ARMS]
    plots = []
    for key, title, factor in (
        ("val_loss", "loss on validation images", 1),
        ("val_top1", "top-1 on validation images (%)", 100),
        ("mean_content_share", "mean size of the content shares", 1),
    ):
        lines = [
            Line(arm or "validation", _points(found.curves[arm], key, factor), style)
            for style, arm in enumerate(drawn)
        ]
        if key == "val_loss" and order == [""]:
            lines.append(Line("training", _points(found.curves[""], "train_loss"), 1))
        if any(line.points for line in lines):
            lines = [line for line in lines if line.points]
            plots.append(_panel(title, charts.lines(f"{title} by epoch", lines, "epoch")))
    names = [(arm or "validation", style) for style, arm in enumerate(drawn)]
    names += [("training", 1)] if order == [""] else []
    rows = [
        (f"{arm} {at + 1}".strip(), *(epoch.get(key) for key in _EPOCH_KEYS))
        for arm in order
        for at, epoch in enumerate(found.curves[arm])
    ]
    headers = (
        "epoch",
        *(key.replace("_", " ").replace("val ", "validation ") for key in _EPOCH_KEYS),
    )
    note = "" if len(drawn) == len(order) else f"Drawn are {len(drawn)} of {len(order)} arms."
    body = charts.legend(names) + tag("div", "".join(plots), class_="panels")
    return figure("Training.", body, table(headers, rows), note)


_EPOCH_KEYS = ("train_loss", "train_top1", "val_loss", "val_top1", "mean_content_share")


def gates(found: Findings, convolutions: Sequence[Convolution]) -> str:
    """The gate of every head by epoch, one plot for each recast layer."""
    if not found.gates:
        return ""
    kernels = {c.name: c.kernel for c in convolutions}
    heads = sum(len(shares) for shares in found.gates[0].values())
    every = max(1, -(-len(found.gates) * heads // _GATE_POINTS))
    epochs = [at for at in range(len(found.gates)) if at % every == 0 or at == len(found.gates) - 1]
    plots, rows, places = [], [], set()
    for name in found.gates[0]:
        lines = []
        for head in range(len(found.gates[0][name])):
            tap, place = _tap(head, kernels.get(name))
            places.add(place)
            points = [(at + 1, 1 - found.gates[at][name][head]) for at in epochs]
            lines.append(Line(f"tap {tap}", points, place))
            rows.append((f"{name} {tap}", *(gate for _, gate in points)))
        lines.sort(key=lambda line: -line.style)  # the centre lies on top
        plots.append(_panel(name, charts.lines(f"gates of {name} by epoch", lines, "epoch")))
    names = ("centre of the kernel", "same row or column", "elsewhere in the kernel")
    legend = charts.legend([(names[place], place) for place in sorted(places)])
    note = "1 is the convolution, 0 is content alone. One line for each head."
    note += f" Of {len(found.gates)} epochs one in {every} is shown." if every > 1 else ""
    behind = table(("head", *(f"epoch {at + 1}" for at in epochs)), rows)
    body = legend + tag("div", "".join(plots), class_="panels")
    return figure("Gates through the epochs.", body, behind, note)


def distance(seen: Look) -> str:
    """How far heads look, layer by layer, and every other figure of the heads."""
    if not seen.heads:
        return ""
    kinds = ("position_distance", "content_distance", "attention_distance")
    names = ("position", "content", "mixed")
    rows: dict[str, list[Dot]] = {}
    for head in seen.heads:
        for style, (key, name) in enumerate(zip(kinds, names, strict=True)):
            told = f"tap {tuple(head['tap'])}, {name}: {number(head[key])} pixels"
            rows.setdefault(head["layer"], []).append(Dot(head[key], style, told))
    plot = charts.rows(
        "attention distance of every head by layer", list(rows.items()),
        "pixels of the layer's input", zero=True,
    )  # fmt: skip
    keys = [key for key in seen.heads[0] if key not in ("layer", "tap")]
    behind = table(
        ("head", *(key.replace("_", " ") for key in keys)),
        [
            (f"{head['layer']} {tuple(head['tap'])}", *(_plain(head[key]) for key in keys))
            for head in seen.heads
        ],
    )
    note = (
        "Mean over queries of Σ A‖δ‖, ConViT's non-locality, from the first layer to the last; "
        f"means over the {len(seen.pictures)} pictures of the explorer. A negative content share "
        "can take the mixture below 0."
    )
    body = charts.legend(list(zip(names, range(3), strict=True)), dots=True) + plot
    return figure("Attention distance by depth.", body, behind, note)


def differences(found: Findings) -> str:
    """Every network against its control, with intervals."""
    if not found.comparisons:
        return ""
    groups: dict[str, list[Comparison]] = {}
    arms = {c.arm for c in found.comparisons}
    for c in found.comparisons:
        groups.setdefault(
            c.measure if len(arms) > 1 else f"{c.arm} against {c.control}", []
        ).append(c)
    plots = []
    for title, members in groups.items():
        rows = [
            (
                c.arm if len(arms) > 1 else c.measure,
                [Dot(c.difference, 0, f"{c} points: {c.verdict}", c.low, c.high)],
            )
            for c in members
        ]
        drawn = charts.rows(f"{title}: difference of top-1", rows, "points of top-1", zero=True)
        plots.append(_panel(title, drawn))
    cells = [
        (
            f"{c.arm}, {c.measure}",
            percent(c.top1),
            c.control,
            percent(c.control_top1),
            str(c).replace("-", "\u2212"),
            c.verdict,
            c.interval,
        )
        for c in found.comparisons
    ]
    headers = ("network, measure", "top-1", "control", "its top-1", "difference [95 %]", "says",
               "interval")  # fmt: skip
    kinds = "; ".join(dict.fromkeys(c.interval for c in found.comparisons))
    note = f"Right of 0 the network is ahead of its control. Intervals of 95 %: {kinds}."
    body = tag("div", "".join(plots), class_="panels")
    return figure("Against the control.", body, table(headers, cells), note)


def robustness(found: Findings) -> str:
    """Accuracy by severity and level, or by corruption where levels were not kept."""
    parts = []
    corruptions = [levels for levels in found.levels if levels.name]
    for suite in dict.fromkeys(levels.suite for levels in corruptions):
        parts.append(_severities(suite, [v for v in corruptions if v.suite == suite]))
    if single := [v for v in found.levels if not v.name and len(v.levels) > 1]:
        parts.append(_levels("Attacks and other changes.", single, ""))
    if found.corruptions and not corruptions:
        models = list(next(iter(found.corruptions.values())))
        rows = [
            (
                name,
                [Dot(100 * tops[m], s, f"{m}: {percent(tops[m])}") for s, m in enumerate(models)],
            )
            for name, tops in found.corruptions.items()
        ]
        behind = table(
            ("corruption", *models),
            [(name, *map(percent, tops.values())) for name, tops in found.corruptions.items()],
        )
        plot = charts.rows("top-1 by corruption", rows, "top-1 (%), mean over severities")
        legend = charts.legend([(m, s) for s, m in enumerate(models)], dots=True)
        parts.append(figure("By corruption.", legend + plot, behind))
    return "".join(parts)


def absent(lacks: Sequence[Lack]) -> str:
    """What is not there, and the command that adds it."""
    entries = []
    for lack in lacks:
        commands = "".join(tag("pre", tag("code", text(line))) for line in lack.commands)
        entries.append(tag("li", tag("p", text(lack.what)) + commands))
    return tag("ul", "".join(entries), class_="lacks")


def made(found: Findings) -> str:
    """How the figures were made, and how to read them."""
    lines = "".join(tag("li", text(line)) for line in (*found.remarks, *found.made))
    commands = "".join(tag("pre", tag("code", text(line))) for line in found.commands)
    return commands + (tag("ul", lines) if lines else "")


# Pieces


def _box(c: Convolution, reach: float) -> str:
    told = f"{_by(c.kernel)}" + (f", stride {_by(c.stride)}" if c.stride != (1, 1) else "")
    content = tag("span", text(c.name or "(the network itself)"), class_="name")
    if c.recast:
        content += tag("span", text(f"{told}, recast"), class_="kind")
        if c.shares:
            title = f"gates of {c.name}: content shares " + ", ".join(signed(s) for s in c.shares)
            content += charts.head_strip(c.shares, c.kernel, reach, title)
        return tag("li", content, class_="recast")
    return tag("li", content + tag("span", text(told), class_="kind"))


def _severities(suite: str, found: Sequence[Levels]) -> str:
    standard = [v for v in found if v.name in STANDARD]
    whole = list(found)
    if len({v.levels for v in standard}) == 1 and len(standard) > 1:
        mean = {
            model: tuple(
                sum(values) / len(values)
                for values in zip(*(v.top1[model] for v in standard), strict=True)
            )
            for model in standard[0].top1
        }
        whole.insert(0, Levels(suite, f"mean of {len(standard)}", standard[0].levels, mean))
    note = "Top-1 in percent by severity, from 1 (weak) to 5." + (
        f" The mean is over the {len(standard)} standard corruptions."
        if len(whole) > len(found)
        else ""
    )
    return _levels(f"{suite}.", whole, note)


def _levels(title: str, found: Sequence[Levels], note: str) -> str:
    models = list(found[0].top1)
    top = 100 * max(max(tops) for v in found for tops in v.top1.values())
    plots, rows = [], []
    for v in found:
        name = (v.name or v.suite).replace("_", " ")
        lines = [
            Line(model, [(x, 100 * y) for x, y in zip(v.levels, v.top1[model], strict=True)], style)
            for style, model in enumerate(models)
        ]
        x_name = "severity" if v.name else "level"
        plots.append(
            _panel(name, charts.lines(f"top-1 under {name}", lines, x_name, whole=(0, top)))
        )
        rows += [
            (f"{name}, {x_name} {level:g}", *(percent(v.top1[model][at]) for model in models))
            for at, level in enumerate(v.levels)
        ]
    legend = charts.legend([(model, style) for style, model in enumerate(models)])
    body = legend + tag("div", "".join(plots), class_="panels")
    return figure(title, body, table(("images", *models), rows), note)


def _panel(title: str, drawing: str) -> str:
    return tag("div", tag("p", text(title), class_="panel-title") + drawing, class_="panel")


def _points(history: Sequence[Epoch], key: str, factor: float = 1) -> list[tuple[float, float]]:
    values = [epoch.get(key) for epoch in history]
    return [(at + 1, factor * value) for at, value in enumerate(values) if value is not None]


def _tap(head: int, kernel: tuple[int, int] | None) -> tuple[str, int]:
    """A head's tap in words, and where it lies: 0 centre, 1 its row or column, 2 elsewhere."""
    if kernel is None:
        return str(head), 1
    row, column = divmod(head, kernel[1])
    off = (row != (kernel[0] - 1) // 2) + (column != (kernel[1] - 1) // 2)
    return f"({row}, {column})", off


def _reach(convolutions: Sequence[Convolution]) -> float:
    return max((abs(share) for c in convolutions for share in c.shares), default=0) or 1.0


def _plain(value: Any) -> object:
    return value if isinstance(value, int | float | None) else str(value)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
