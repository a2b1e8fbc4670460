"""The answers first: what was recast, was it exact, and did it help, as cards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tcnn.finetune import LEFT
from tcnn.report.contents import Contents
from tcnn.report.findings import Comparison, Findings
from tcnn.report.looking import Convolution
from tcnn.report.markup import number, percent, signed, tag, text


def headline(contents: Contents, found: Findings, convolutions: Sequence[Convolution]) -> str:
    """The answers first: what was recast, was it exact, and did it help."""
    cards = []
    if contents.is_cnn:
        cards.append(_card("What was recast", "nothing", "The network is a CNN: a control, say."))
    else:
        cards += [_recast_card(convolutions), _exact_card(found.equivalence)]
    shown = [c for c in found.comparisons if c.arm == found.shown]
    clean = [c for c in shown if c.measure == "clean"][:1]
    hard = [c for c in shown if _is_corruption(c.measure)]
    cards += [_comparison_card(c) for c in (*clean, *hard)]
    if not shown and (history := found.curves.get("")):
        best = max(history, key=lambda epoch: epoch["val_top1"])
        cards.append(
            _card(
                "Validation top-1",
                percent(history[-1]["val_top1"]) or "",
                f"after {len(history)} epochs; best {percent(best['val_top1'])} after epoch "
                f"{history.index(best) + 1}. There is no control in this run to hold it against.",
            )
        )
    cards.append(_heads_card(convolutions))
    return tag("div", "".join(cards), class_="cards")


def _card(name: str, value: str, told: str, kind: str = "") -> str:
    content = tag("h3", text(name)) + tag("p", text(value), class_="value") + tag("p", text(told))
    return tag("div", content, class_=f"card {kind}".strip())


def _recast_card(convolutions: Sequence[Convolution]) -> str:
    taken = [c for c in convolutions if c.recast]
    if not convolutions:
        return _card("What was recast", "not known", "The network is not where the run had it.")
    heads = sum(c.kernel[0] * c.kernel[1] for c in taken)
    names = ", ".join(c.name for c in taken[:3]) + (
        f" and {len(taken) - 3} more" * (len(taken) > 3)
    )
    value = f"{len(taken)} of {len(convolutions)} convolutions"
    return _card("What was recast", value, f"{heads} heads, one for each kernel tap: {names}.")


def _exact_card(report: dict[str, Any] | None) -> str:
    if report is None:
        return _card("Was it exact?", "no figure kept", "See what is not in this run, below.")
    errors = [report["max_rel_error"], *(layer["max_rel_error"] for layer in report["layers"])]
    told = (
        f"Largest relative error {number(max(errors))} on {report['images']} images in "
        f"{report['dtype']}, before fine-tuning; tolerance {number(report['tolerance'])}."
    )
    return _card(
        "Was it exact?", "Yes" if report["ok"] else "No", told, "" if report["ok"] else "loss"
    )


def _comparison_card(c: Comparison) -> str:
    value = f"{signed(c.difference)} points"
    if c.low is not None and c.high is not None:
        value += f" [{signed(c.low)}, {signed(c.high)}]"
    told = (
        f"{c.arm} {percent(c.top1)} against {c.control} {percent(c.control_top1)}: {c.verdict}. "
        f"Interval of 95 %, {c.interval}."
    )
    kind = c.verdict if c.verdict in ("gain", "loss") else ""
    return _card(f"{c.measure[:1].upper()}{c.measure[1:]} images", value, told, kind)


def _heads_card(convolutions: Sequence[Convolution]) -> str:
    shares = [(abs(s), c, h) for c in convolutions for h, s in enumerate(c.shares)]
    if not shares:
        return ""
    left = [share for share, _, _ in shares if share >= LEFT]
    _, layer, head = max(shares, key=lambda entry: entry[0])
    share = layer.shares[head]
    told = (
        f"have a content share of {LEFT} or more in size. The furthest is tap "
        f"{divmod(head, layer.kernel[1])} of {layer.name}: {signed(share)}."
    )
    return _card("Heads that left the convolution", f"{len(left)} of {len(shares)}", told)


def _is_corruption(measure: str) -> bool:
    return measure == "corrupted" or (", " in measure and measure.endswith("standard"))
