"""A run to one HTML file that asks for nothing else: markup, style, script and data in one."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from torch import nn

from tcnn.errors import TCNNError
from tcnn.files import make_folder, write_text
from tcnn.report import contents as records
from tcnn.report import headline, sections
from tcnn.report.contents import PAGE, Contents
from tcnn.report.findings import findings
from tcnn.report.lacking import lacking
from tcnn.report.looking import Look, look, planned
from tcnn.report.markup import script_json, tag, text


def page(contents: Contents, seen: Look, *, live: bool = False) -> str:
    """The page of a run, as HTML.

    Args:
        contents: of the run.
        seen: its network, looked into.
        live: for `tcnn explore`: it takes pictures, and asks the server that it came from.

    Raises:
        TCNNError: a record of the run is not as tcnn writes it.
    """
    found = findings(contents)
    convolutions = seen.convolutions or (planned(found.plan) if found.plan else ())
    model = contents.settings.get("model", {}).get("name") or "a network of one's own"
    if contents.study is not None:
        model = contents.study["setting"]["model"]
    style, script = _shipped("page.css"), _shipped("page.js")
    parts = {
        "title": text(model if contents.is_cnn else f"{model}, recast"),
        "kind": text(f"{contents.kind}, {contents.folder}"),
        "policy": text(_policy(style, script, live)),
        "style": style,
        "script": script,
        "headline": headline.headline(contents, found, convolutions),
        "network": _section("network", "Network", sections.drawing(convolutions)),
        "explorer": _explorer(seen, live),
        "help": _section(
            "results", "Did it help?", sections.differences(found) + sections.robustness(found)
        ),
        "training": _section(
            "training",
            "Training and gates",
            sections.training(found) + sections.gates(found, convolutions),
        ),
        "heads": _section("heads-figures", "Where heads look", sections.distance(seen)),
        "absent": _section(
            "absent", "Not in this run", sections.absent(lacking(contents, found, seen))
        ),
        "made": _section("made", "How this was made", sections.made(found)),
        "data": script_json({"layers": seen.layers, "pictures": seen.pictures, "live": live}),
    }
    # In one pass, so that nothing in one part is taken for the place of another.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _shipped("template.html"))


def write(
    run: str | Path,
    out: str | Path | None = None,
    *,
    model: nn.Module | None = None,
    cnn: nn.Module | None = None,
    images: str | Path | None = None,
) -> Path:
    """Write the page of a run, whole or not at all, and say where.

    Args:
        run: its folder.
        out: the file; None is report.html in the run's folder. One that is there is replaced.
        model: the run's hybrid, where that is at hand.
        cnn: the network that was recast, if its folder cannot build it.
        images: folder of pictures for the explorer; None takes some that the run was validated on.

    Raises:
        TCNNError: the folder holds no run; a record is damaged; the file cannot be written.
    """
    contents = records.read(run)
    path = contents.folder / PAGE if out is None else Path(out)
    if path.is_dir():
        raise TCNNError(
            f"Expected a file for the page, but {str(path)!r} is a folder: give a name in it, such "
            f"as {str(path / PAGE)!r}."
        )
    make_folder(path.parent)
    folder = None if images is None else Path(images)
    write_text(path, page(contents, look(contents, model=model, cnn=cnn, folder=folder)))
    return path


def add(
    run: Path, say: Callable[[str], None], command: str, *, model: nn.Module | None = None
) -> None:
    """Write the page into a run's folder and say where; a failure is one line, for the run stays.

    Args:
        run: its folder.
        say: called with the line.
        command: how the command line is called.
        model: the run's hybrid, where that is at hand.
    """
    try:
        say(f"Page:     {write(run, model=model)}, to be opened in a browser")
    except Exception as error:  # whatever it is, the run is done and must not be lost for it
        said = " ".join(str(error).split())
        say(f"No page was written ({said}); the run is whole. Again: {command} report {run}")


def _section(name: str, title: str, content: str) -> str:
    if not content:
        return ""
    heading = tag("h2", text(title), id=f"{name}-title")
    return tag("section", heading + content, id=name, aria_labelledby=f"{name}-title")


def _explorer(seen: Look, live: bool) -> str:
    if not seen.layers or not (seen.pictures or live):
        return ""
    left = "".join(
        tag("p", text(f"{name} is not in the explorer: {why}."), class_="note")
        for name, why in seen.left_out.items()
    )
    drop = _shipped("drop.html") if live else ""
    return _section("explorer", "Explorer", drop + _shipped("explorer.html") + left)


def _policy(style: str, script: str, live: bool) -> str:
    """What the page may do: run its own script and style, show pictures that it holds, and, live,
    ask the server that it came from."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'sha256-{_digest(script)}'",
            f"style-src 'sha256-{_digest(style)}'",
            "img-src data:",
            f"connect-src {chr(39)}{'self' if live else 'none'}{chr(39)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _digest(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def _shipped(name: str) -> str:
    return files("tcnn.report").joinpath(name).read_text(encoding="utf-8")
