"""The README and the documents, to the letter: their code runs, their commands work, links hold."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tcnn.__main__ import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: "pretrained" is a random network, always the same one."""
    create = timm.create_model

    def created(name: str, pretrained: bool = False, **settings: Any) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", created)
    monkeypatch.chdir(tmp_path)


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_python() -> None:
    code = blocks("python")
    assert len(code) == 3
    exec(compile("\n".join(code), "README.md", "exec"), {})
    assert Path("runs/r50/model.safetensors").is_file()


def test_python_of_the_analysis() -> None:
    code = blocks("python", (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8"))
    assert len(code) == 2
    exec(compile("\n".join(code), "analysis.md", "exec"), {})
    assert Path("cka.png").is_file()


def test_functions_named_in_the_analysis_are_there() -> None:
    import importlib

    page = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
    files = {file.stem for file in (ROOT / "src" / "tcnn" / "analysis").glob("*.py")}
    named = [name for name in re.findall(r"`(\w+\.\w+)", page) if name.split(".")[0] in files]
    assert len(named) > 15
    for name in named:
        module, _, attribute = name.partition(".")
        assert hasattr(importlib.import_module(f"tcnn.analysis.{module}"), attribute), name


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for block in blocks("") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("tcnn ")]
    assert [words[0] for words in commands] == ["plan", "plan", "recast", "verify", "restore"]
    for words in commands:
        assert main(words) == 0, words
    assert "NOT EQUIVALENT" not in capsys.readouterr().out


def test_the_two_commands_are_there_and_at_the_top() -> None:
    made = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "check", "venv", "zoo"} <= set(made)
    assert [line.split()[1] for line in blocks("")[0].splitlines()] == ["demo", "test"]
    assert README.index("make demo") < README.index("\n## ")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
def test_links_within_the_project_hold(page: str | Path) -> None:
    file = ROOT / page
    for target in re.findall(r"\]\(([^)#\s]+)", file.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (file.parent / target).exists(), target


def test_functions_named_in_the_method_are_there() -> None:
    import importlib

    import tcnn

    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:functional|convolutions|geometry)\.\w+)`", page)
    assert len(named) > 8
    for name in named:
        module, _, attribute = name.partition(".")
        assert hasattr(importlib.import_module(f"tcnn.{module}"), attribute), name
    for attribute in re.findall(r"`tcnn\.(\w+)`", page):
        assert hasattr(tcnn, attribute), attribute
