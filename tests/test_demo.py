"""The demonstration, shortened."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
import torch

import tcnn
from tcnn.data import digits, split
from tcnn.demo import DemoConfig, run
from tcnn.demo_result import DemoResult, closing, verdict
from tcnn.train_config import TrainConfig

SHORT = DemoConfig(
    widths=(4, 4, 8),
    size=16,
    cnn=TrainConfig(epochs=2, batch_size=128, lr=5e-3),
    finetune=TrainConfig(epochs=1, batch_size=128, lr=2e-3, gate_lr_scale=10),
    severities=(1, 4),
)
FILES = ["accuracy.png", "attention.png", "gates.png", "hybrid", "metrics.json"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, list[str]]:
    lines: list[str] = []
    out = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    return run(out, 5, lines.append, config=SHORT), lines


def test_what_it_writes(ran: tuple[DemoResult, list[str]]) -> None:
    result, _ = ran
    assert sorted(p.name for p in result.out.iterdir()) == FILES
    for name in FILES[:3]:
        assert (result.out / name).read_bytes().startswith(b"\x89PNG")
    content = json.loads((result.out / "metrics.json").read_text())
    assert content["seed"] == 5
    assert content["command"] == f"tcnn demo --out {shlex.quote(str(result.out))} --seed 5"
    assert torch.__version__.startswith(content["versions"]["torch"])
    assert content["hardware"]["threads"] == torch.get_num_threads()
    assert content["timing"]["total"] > 0
    assert "seconds" not in json.dumps(content["results"])
    assert content["results"] == json.loads(json.dumps(result.to_json()))


def test_the_saved_hybrid_is_the_one_tested(ran: tuple[DemoResult, list[str]]) -> None:
    result, _ = ran
    test = split(digits(16), 5).test
    model = tcnn.load(result.out / "hybrid", classes=test.classes)
    x, y = test.tensors()
    with torch.no_grad():
        correct = model(x).argmax(1) == y
    tested = result.clean.parts[0].scores["hybrid"].result
    assert correct.tolist() == tested.correct.tolist()
    gates = [g.item() for m in model.modules() if isinstance(m, tcnn.GPSA2d) for g in m.gate]
    assert [head.gate for head in result.heads.heads] == gates
    assert 1 not in gates


def test_the_figures_hang_together(ran: tuple[DemoResult, list[str]]) -> None:
    result, _ = ran
    assert result.equivalence.ok
    assert [row.name for row in result.plan.taken] == ["layer3.0.conv1", "layer3.0.conv2"]
    assert list(result.fits) == list(result.test.models) == ["cnn", "control", "hybrid"]
    assert result.fits["control"].config == result.fits["hybrid"].config
    parts = result.test.parts
    assert [part.suite for part in parts] == ["clean"] + 10 * ["corruptions"]
    hybrid, control = (
        [part.scores[arm].result.correct.double() for part in parts]
        for arm in ("hybrid", "control")
    )
    mean, error = result.differences()["clean"]
    change = hybrid[0] - control[0]
    assert mean == pytest.approx(change.mean().item())
    assert error == pytest.approx(change.std().item() / math.sqrt(359))
    both = [sum(c.mean().item() for c in arm[1:]) / 10 for arm in (hybrid, control)]
    assert result.differences()["corrupted"][0] == pytest.approx(both[0] - both[1])
    errors = [[1 - c.mean().item() for c in arm[1:]] for arm in (hybrid, control)]
    ratios = [sum(errors[0][i : i + 2]) / sum(errors[1][i : i + 2]) for i in range(0, 10, 2)]
    assert result.mce() == pytest.approx(sum(ratios) / 5)


def test_the_story(ran: tuple[DemoResult, list[str]]) -> None:
    result, lines = ran
    story = "\n".join(lines)
    assert result.plan.table() in story
    assert result.equivalence.table() in story
    assert story.count("epoch") == 4
    assert lines[-1] == closing(result, "tcnn")
    for words in ("What was shown", "gates.png", "tcnn plan timm:resnet50.a1_in1k", "± "):
        assert words in lines[-1]


@pytest.mark.parametrize(
    ("mean", "error", "words"),
    [
        (0.03, 0.01, "+3.0 ± 1.0 points of top-1: the hybrid is ahead"),
        (-0.03, 0.01, "-3.0 ± 1.0 points of top-1: the hybrid is behind"),
        (0.015, 0.01, "+1.5 ± 1.0 points of top-1: no difference that these images can show"),
        (0.0, 0.0, "+0.0 ± 0.0 points of top-1: no difference that these images can show"),
    ],
)
def test_verdict(mean: float, error: float, words: str) -> None:
    assert verdict(mean, error) == words


def test_a_rerun_gives_the_same_numbers(ran: tuple[DemoResult, list[str]]) -> None:
    result, lines = ran
    first = json.loads((result.out / "metrics.json").read_text())
    weights = (result.out / "hybrid" / "model.safetensors").read_bytes()
    pictures = [(result.out / name).read_bytes() for name in FILES[:3]]
    torch.rand(3)
    again: list[str] = []
    run(result.out, 5, again.append, config=SHORT)
    second = json.loads((result.out / "metrics.json").read_text())
    del first["timing"], second["timing"]
    assert first == second
    assert again == lines
    assert (result.out / "hybrid" / "model.safetensors").read_bytes() == weights
    assert [(result.out / name).read_bytes() for name in FILES[:3]] == pictures


@pytest.mark.parametrize("place", ["file", "file/below", "hybrid-is-a-file"])
def test_a_folder_that_cannot_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "hybrid-is-a-file").mkdir()
    (tmp_path / "hybrid-is-a-file" / "hybrid").write_text("kept")
    lines: list[str] = []
    with pytest.raises(tcnn.TCNNError, match="folder that can be written to, but"):
        run(tmp_path / place, 0, lines.append)
    assert lines == []
    assert (tmp_path / "file").read_text() == "kept"
