"""A pytest plugin, `-p tests.zoo_table --zoo-table PATH`: what the zoo found, as a table."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

HEADER = """\
# Other people's networks

The cheapest network of every family (module) of `timm.models` and of torchvision's classification,
segmentation and detection models, and some more that convolve in an unusual way. Each is built
small without weights, all of its norms, scales and statistics get random values, every convolution
with a kernel wider than 1×1 is recast, and the outputs of all modules are compared in float32.

- *refused*: convolutions with kernel area > 1 that stay, and why.
- *alive*: recast kernels that the output depends on (by its gradient).
- *other*: calls of k×k convolutions that no `nn.Conv2d` makes (fixed filters, mixtures of kernels):
  they stay as they are.
- *difference*: the largest |difference| over all layers and the output; 0 is equality to the bit.
- *learned*: the largest relative difference of a layer with learned positions at their default α.
- *flip*: relative change of the output when one recast kernel is flipped: the comparison sees it.

Written by `make zoo` ({versions}).

"""
COLUMNS = (
    "family | model | image | M parameters | Conv2d | k×k | recast | alive | refused | other | "
    "layers compared | difference | learned | flip"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--zoo-table", metavar="PATH", help="write the zoo's table to this file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--zoo-table") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(Path(config.getoption("--zoo-table"))))


class Table:
    """Collects the rows of the reports, from all of the processes, and writes them at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when == "call":
            self.rows += [value for name, value in report.user_properties if name == "zoo"]

    def pytest_sessionfinish(self) -> None:
        packages = ("torch", "torchvision", "timm")
        header = HEADER.format(versions=", ".join(f"{p} {version(p)}" for p in packages))
        rows = sorted(self.rows, key=lambda row: (row["source"], row["family"], row["model"]))
        lines = [f"{summary(rows)} Failed: {len(self.failed)}.\n"]
        lines += [f"- {name}" for name in self.failed]
        for source in dict.fromkeys(row["source"] for row in rows):
            lines += [f"\n## {source}\n", f"| {COLUMNS} |", "|---" * (COLUMNS.count("|") + 1) + "|"]
            lines += [line(row) for row in rows if row["source"] == source]
        self.path.write_text(header + "\n".join(lines) + "\n", encoding="utf-8")


def summary(rows: list[dict[str, Any]]) -> str:
    total = {key: sum(row[key] for row in rows) for key in ("wide", "recast", "alive")}
    families = len({(row["source"], row["family"]) for row in rows})
    refused = sum(sum(row["refused"].values()) for row in rows)
    return (
        f"{len(rows)} networks of {families} families: {total['wide']} convolutions with a kernel "
        f"wider than 1×1, {total['recast']} recast ({total['alive']} alive), {refused} refused by "
        f"name; {sum(row['error'] > 0 for row in rows)} networks with a difference."
    )


def line(row: dict[str, Any]) -> str:
    refused = "; ".join(f"{count}: {reason}" for reason, count in row["refused"].items())
    if not row["convolutions"]:
        refused = "not convolutional"
    elif not row["wide"]:
        refused = "no k×k convolution"

    def number(value: float | None) -> str:
        if value == float("inf"):
            return "other boxes"  # a detector found another number of things
        return "-" if value is None else f"{value:.1e}" if value else "0"

    cells = [
        row["family"],
        row["model"],
        row["image"],
        f"{row['megaparameters']:.1f}",
        row["convolutions"],
        row["wide"],
        row["recast"],
        row["alive"],
        refused or "none",
        row["other"],
        row["layers"],
        number(row["error"] if row["recast"] else None),
        number(row["learned"]),
        number(row["flip"]),
    ]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
