"""The arguments that the benchmarks share, and how their figures come out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tcnn.files import make_folder, write_json
from tcnn.provenance import provenance
from tcnn.tables import markdown_table, text_table


def arguments(doc: str, runs: int) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--runs", type=int, default=runs, help="rounds that count, 3 or more")
    parser.add_argument("--short", action="store_true", help="part of it, in under a minute")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", type=Path)
    return parser


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with three runs for a short benchmark, and as many threads as were asked."""
    args = parser.parse_args()
    if args.short:
        args.runs = 3
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return args


def show(args: argparse.Namespace, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    print((markdown_table if args.markdown else text_table)(headers, rows), flush=True)


def write(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Write the figures, with the command, versions and hardware, where --json says."""
    if args.json:
        script = f"benchmarks/{Path(sys.argv[0]).name}"
        command = shlex.join(["python", script, *sys.argv[1:]])
        make_folder(args.json.parent)
        write_json(args.json, {"command": command, **content, **provenance()})


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
