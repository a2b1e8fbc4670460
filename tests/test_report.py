"""The page of a run: its files by the real door, its figures, its bytes, and hostile names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tcnn
from tcnn.__main__ import main
from tcnn.analysis.capture import capture
from tcnn.analysis.heads import heads_report
from tcnn.errors import TCNNError
from tcnn.report import attention, charts, contents, page
from tcnn.report.findings import findings
from tcnn.report.looking import look
from tcnn.report.pictures import Picture
from tcnn.view import View

NET = "tcnn.networks:cifar_resnet"
SETTINGS = ["--model_settings", "{depth: 8, widths: [4, 4, 8], in_channels: 1}"]
DIGITS = ["--data.root", "digits", "--data.workers", "0", "--engine.accelerator", "cpu"]
HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\u2028'\""


class Parsed(HTMLParser):
    """Elements with their attributes and texts, in order; raises where tags do not nest."""

    VOID = ("meta", "link", "input", "img", "rect", "line", "circle", "path", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open[-1:]:
            self.texts.setdefault(tag, []).append(data)

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.texts["script"][0])
        return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run of `tcnn finetune` on digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    torch.manual_seed(0)
    assert (
        main(
            [
                "finetune", "--model", NET, *SETTINGS, *DIGITS, "--out", str(out),
                "--data.max_train", "64", "--data.max_val", "20", "--train.epochs", "2",
                "--train.batch_size", "32", "--train.gate_lr_scale", "50",
                "--data.mean", "[0.0]", "--data.std", "[1.0]", "--data.hflip", "0",
                "--engine.tensorboard", "false",
            ]
        )
        == 0
    )  # fmt: skip
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "digits"))


def small_hybrid(padding_mode: str = "zeros", **options: Any) -> nn.Module:
    """One recast 3×3 layer of stride 2, another of stride 1, and a classifier; gates open."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, padding_mode=padding_mode),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode=padding_mode),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    config = tcnn.GPSAConfig(**options)
    hybrid = tcnn.recast(net, "*", config, input_size=(3, 12, 10)).eval()
    with torch.no_grad():
        for layer in (hybrid.get_submodule("0"), hybrid.get_submodule("2")):
            layer.qk.weight.mul_(40)
            layer.gating_param.copy_(torch.linspace(-0.5, 1.2, 9))
    return hybrid


VIEW = View((3, 12, 10), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", 1.0)


def noise(seed: int = 0, size: tuple[int, int] = (12, 10)) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    return Picture(Image.fromarray(pixels), f"noise {seed}")


def unpacked(maps: dict[str, str], heads: int, pixels: int) -> np.ndarray[Any, Any]:
    """Maps (heads, queries, pixels) as the page's script reads them."""
    if "keys" in maps:
        keys = np.frombuffer(base64.b64decode(maps["keys"]), "<i4").reshape(heads, -1)
        found = np.zeros((*keys.shape, pixels))
        for place in np.argwhere(keys >= 0):
            found[(*place, keys[tuple(place)])] = 1
        return found
    levels = np.frombuffer(base64.b64decode(maps["levels"]), "u1").reshape(heads, -1, pixels)
    tops = np.frombuffer(base64.b64decode(maps["tops"]), "<f4").reshape(heads, -1, 1)
    return levels / 255 * tops


# By the real door


def test_finetune_ends_with_its_page(trained: Path) -> None:
    html = (trained / "report.html").read_text("utf-8")
    parsed = Parsed(html)
    texts = " ".join(text for texts in parsed.texts.values() for text in texts)
    record = json.loads((trained / "run.json").read_text())
    assert record["start"]["equivalence"]["max_abs_error"] == 0
    assert "Largest relative error 0 on 8 images" in texts
    assert "2 of 7 convolutions" in texts
    last = record["result"]["history"][-1]
    assert f"{100 * last['val_top1']:.1f} %" in texts
    for layer, shares in last["content_share"].items():
        for head, share in enumerate(shares):
            assert f"tap {divmod(head, 3)}: gate {1 - share:.3f}" in texts, layer
    # What it has not, and how to come by it.
    assert "tcnn finetune --model tcnn.networks:cifar_resnet --recast false" in texts
    assert f"tcnn robustness {trained} --compare {trained}-cnn" in texts
    assert "--data.root digits --data.max_val 20 --data.mean '[0.0]' --data.std '[1.0]'" in texts
    assert f"tcnn explore {trained}" in texts
    data = parsed.data()
    assert len(data["pictures"]) == 8
    assert {picture["label"] for picture in data["pictures"]} <= set("0123456789")
    assert [layer["name"] for layer in data["layers"]] == list(last["content_share"])


def test_the_command_names_the_page_and_its_failure_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    page.add(run, lines.append, "tcnn")
    assert lines == [f"Page:     {run / 'report.html'}, to be opened in a browser"]
    monkeypatch.setattr(page, "look", lambda *_, **__: 1 / 0)
    page.add(run, lines.append, "tcnn")
    assert lines[1:] == [
        "No page was written (division by zero); the run is whole. Again: tcnn report " + str(run)
    ]


def test_robustness_in_the_same_folder_is_the_control(run: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    cnn = tcnn.load_model(NET, depth=8, widths=[4, 4, 8], in_channels=1)
    tcnn.save(cnn, tmp_path / "cnn", classes=[str(n) for n in range(10)])
    suites = ["--suite", "corruptions", "--suite", "fgsm"]
    assert (
        main(
            [
                "robustness", str(run), "--compare", str(tmp_path / "cnn"), "--names",
                "[hybrid, control]", *DIGITS, *suites, "--out", str(run), "--data.max_val", "12",
                "--measure.corruptions", "[brightness, contrast]", "--measure.severities", "[1, 5]",
                "--measure.epsilons", "[1, 2]", "--data.mean", "[0.0]", "--data.std", "[1.0]",
            ]
        )
        == 0
    )  # fmt: skip
    html = (run / "report.html").read_text("utf-8")
    texts = " ".join(text for texts in Parsed(html).texts.values() for text in texts)
    record = json.loads((run / "robustness.json").read_text())
    clean = record["groups"][0]
    assert clean["title"] == "clean"
    difference = f"{100 * clean['comparison']['difference']:+.2f} points".replace("-", "\u2212")
    assert difference in texts
    part = next(p for p in record["parts"] if (p["name"], p["level"]) == ("contrast", 5))
    tops = [f"{100 * part['scores'][m]['top1']:.1f} %" for m in ("hybrid", "control")]
    assert f"contrast, severity 5</th><td>{tops[0]}</td><td>{tops[1]}</td>" in html
    assert "A control: the same CNN" not in texts
    assert "fgsm, level 2" in texts


def test_report_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "page.html"
    folder = tmp_path / "own"
    (folder / "below").mkdir(parents=True)
    noise(4, (40, 30)).image.save(folder / "below" / "a.png")
    (folder / "b.png").write_bytes(b"no picture")
    assert main(["report", str(run), "--out", str(out), "--images", str(folder)]) == 0
    assert capsys.readouterr().out == f"Wrote {out}\n"
    (picture,) = Parsed(out.read_text("utf-8")).data()["pictures"]
    assert (picture["title"], picture["label"]) == ("below/a.png", None)
    assert sorted(path.name for path in out.parent.iterdir()) == ["page.html"]


def test_a_recast_network_and_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recast", NET, *SETTINGS, "--out", "hybrid"]) == 0
    assert main(["report", "hybrid"]) == 0
    parsed = Parsed(Path("hybrid/report.html").read_text("utf-8"))
    texts = " ".join(text for texts in parsed.texts.values() for text in texts)
    for command in (
        "tcnn report hybrid --images DIR",
        "tcnn finetune --model hybrid --out hybrid-tuned --data.root DIR",
        "tcnn explore hybrid",
    ):
        assert command in texts
    assert "Training." not in texts and parsed.data()["pictures"] == []
    # The plan stands in for a network that cannot be read.
    shutil.copy("hybrid/recast.json", tmp_path)
    assert main(["report", str(tmp_path), "--out", "plan.html"]) == 0
    texts = " ".join(Parsed(Path("plan.html").read_text("utf-8")).texts["span"])
    assert "layer3.0.conv1 3×3, stride 2×2, recast" in texts


def study_record(shown: str = "hybrid") -> dict[str, Any]:
    """A study of two seeds with made-up figures."""

    def top1(a: float, b: float, difference: dict[str, Any] | None) -> dict[str, Any]:
        return {"top1": [a, b], "minus_control": difference}

    ends = {"mean": 2.0, "low": 0.5, "high": 3.5, "seeds": 2, "verdict": "gain"}
    epoch = {"epoch": 1, "train_loss": 1.5, "train_top1": 0.4, "val_loss": 1.25, "val_top1": 0.5}
    runs = []
    for arm in ("control", shown):
        for seed in (0, 1):
            shares = {"layer3.0.conv1": [0.1] * 9} if arm == shown else {}
            mean = 0.1 if shares else None
            history = [{**epoch, "content_share": shares, "mean_content_share": mean}]
            fit = {"history": history, "seconds": 1.0}
            hardware = {"processor": "abacus", "threads": 1, "gpu": None}
            made = {"versions": {"torch": "2"}, "hardware": hardware}
            runs.append({"arm": arm, "seed": seed, "fit": fit, **made})
    return {
        "command": "tcnn study --config x.yaml",
        "setting": {"model": "tcnn.networks:cifar_resnet", "data": {"root": "nowhere"}},
        "seeds": [0, 1],
        "control": "control",
        "arms": {
            "control": {"clean": top1(0.8, 0.82, None)},
            shown: {"clean": top1(0.82, 0.84, ends)},
        },
        "runs": runs,
    }


def test_a_study(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(run, folder / "arms" / "hybrid" / "seed0" / "model")
    (folder / "study.json").write_text(json.dumps(study_record()))
    found = contents.read(folder)
    assert found.shown == ("hybrid", 0)
    (comparison,) = findings(found).comparisons
    assert str(comparison) == "+2.00 [+0.50, +3.50]"
    assert (comparison.top1, comparison.control_top1) == pytest.approx((0.83, 0.81))
    assert comparison.verdict == "gain"
    parsed = Parsed(page.page(found, look(found)))
    texts = " ".join(text for texts in parsed.texts.values() for text in texts)
    assert "+2.00 points [+0.50, +3.50]" in texts
    assert "abacus" in texts and "tcnn study --config x.yaml" in texts
    # Its images are not there: that is said, and the rest is shown.
    assert "'nowhere' is not a folder" in texts and "tcnn report" in texts
    assert "explorer" not in [attributes.get("id") for _, attributes in parsed.elements]


# Errors


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda at: None, "is not a folder"),
        (lambda at: at.mkdir(), "none of recast.json"),
        (lambda at: (at / "arms").mkdir(parents=True), "one that was cut"),
        (
            lambda at: (at.mkdir(), (at / "run.json").write_text("{")),
            "damaged",
        ),
        (lambda at: (at.mkdir(), (at / "study.json").write_text("[]")), "as tcnn writes them"),
        (
            lambda at: (
                at.mkdir(),
                (at / "study.json").write_text(
                    '{"setting": {}, "arms": {}, "runs": [], "control": 1}'
                ),
            ),
            "as tcnn writes them",
        ),
    ],
)
def test_a_folder_that_is_no_run(
    make: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "it")
    assert main(["report", str(tmp_path / "it"), "--out", str(tmp_path / "x.html")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("tcnn report: error: Expected ") and err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "x.html").exists()


def test_a_page_is_replaced_whole_or_not_at_all(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    out.write_text("before")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    assert main(["report", str(run), "--out", str(out)]) == 1
    assert capsys.readouterr().err == "tcnn report: error: full\n"
    monkeypatch.undo()
    assert out.read_text() == "before"
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert main(["report", str(run), "--out", str(tmp_path)]) == 1
    assert "is a folder: give a name in it" in capsys.readouterr().err


# One file that asks for nothing


def test_the_page_is_self_contained_and_its_policy_holds(trained: Path) -> None:
    html = (trained / "report.html").read_text("utf-8")
    parsed = Parsed(html)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r'"[A-Za-z0-9+/=,:;]{99,}"', "", html))
    for tag, attributes in parsed.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "style", (tag, name)
            if name in ("src", "href"):
                assert str(value).startswith(("data:", "#")), (tag, value)
    policy = next(a["content"] for t, a in parsed.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")
    for tag in ("script", "style"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "connect-src 'none'" in policy and "unsafe" not in policy


def test_every_plot_has_its_table_and_its_name(trained: Path) -> None:
    html = (trained / "report.html").read_text("utf-8")
    figures = re.findall(r"<figure>.*?</figure>", html, re.DOTALL)
    assert len(figures) == 4  # network, training, gates, distance
    for figure in figures:
        assert "<details><summary>Table</summary>" in figure and "<td>" in figure
        for svg in re.findall(r'<svg[^>]*role="img"[^>]*>', figure):
            assert 'aria-label="' in svg


def test_names_from_outside_stay_text(run: Path) -> None:
    settings = json.loads((run / "tcnn.json").read_text())
    settings["classes"][3] = HOSTILE
    settings["classes"][4] = "{{data}}"
    (run / "tcnn.json").write_text(json.dumps(settings))
    record = json.loads((run / "run.json").read_text())
    record["start"]["model"] = HOSTILE
    record["versions"]["torch"] = HOSTILE
    record["result"]["history"][0]["content_share"] = {HOSTILE: [0.5] * 9}
    record["result"]["history"][1]["content_share"] = {HOSTILE: [0.5] * 9}
    (run / "run.json").write_text(json.dumps(record))
    found = contents.read(run)
    seen = look(found)
    assert "classes" in seen.failure or seen.pictures == []  # digits are of other classes
    lens = seen.lens
    assert lens is not None and lens.classes is not None
    picture, _ = lens.look(Picture(Image.new("L", (32, 32)), HOSTILE, HOSTILE))
    seen.pictures.append({**picture, "predicted": HOSTILE})
    html = page.page(found, seen)
    parsed = Parsed(html)
    assert not [tag for tag, _ in parsed.elements if tag == "img"]
    assert sum(tag == "script" for tag, _ in parsed.elements) == 2
    assert parsed.data()["pictures"][0]["title"] == HOSTILE
    assert sum("onerror" in text for texts in parsed.texts.values() for text in texts) > 3


def test_a_page_of_large_maps_stays_under_ten_megabytes(tmp_path: Path) -> None:
    cnn = tcnn.load_model(NET, depth=8, widths=[4, 4, 8])
    hybrid = tcnn.recast(cnn, "*", input_size=(3, 32, 32))
    tcnn.save(hybrid, tmp_path / "run")
    for index in range(9):
        noise(index, (32, 32)).image.save(tmp_path / f"{index}.png")
    path = page.write(tmp_path / "run", images=tmp_path)
    assert 4_000_000 < path.stat().st_size < 10_000_000
    data = Parsed(path.read_text("utf-8")).data()
    assert len(data["pictures"]) == 4
    steps = {layer["name"]: layer["step"] for layer in data["layers"]}
    assert steps["conv1"] > steps["layer3.0.conv2"] == 1


# The attention on it


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_maps_are_those_of_a_capture(mode: str) -> None:
    hybrid, picture = small_hybrid(mode), noise()
    lens = attention.Lens(hybrid, VIEW, ("a", "b"), 10**7, 3)
    layers, (found, _) = lens.network(), lens.look(picture)
    x = torch.from_numpy(np.array(picture.image)).permute(2, 0, 1)[None].float() / 255
    with capture(hybrid) as seen, torch.no_grad():
        output = hybrid(x)[0].softmax(0)
    assert found["predicted"] == ("a", "b")[int(output.argmax())]
    assert found["confidence"] == pytest.approx(float(output.max()), abs=1e-4)
    assert [layer["queries"] for layer in layers] == [(6, 5), (6, 5)]
    assert [layer["keys"] for layer in layers] == [(12, 10), (6, 5)]
    for layer in layers:
        maps = seen.attention(layer["name"])
        pixels = maps.content.shape[-2:].numel()
        content = maps.content[0].flatten(3).flatten(1, 2).numpy()
        error = abs(unpacked(found["maps"][layer["name"]], 9, pixels) - content)
        assert (error <= content.max(-1, keepdims=True) / 509).all()
        assert "keys" in layer["position"]
        position = maps.position.flatten(3).flatten(1, 2).numpy()
        assert (unpacked(layer["position"], 9, pixels) == position).all()
        assert layer["gate"] == pytest.approx(maps.gate.tolist())


def test_learned_positions_are_maps() -> None:
    hybrid = small_hybrid(positions="learned", locality_strength=1.0)
    lens = attention.Lens(hybrid, VIEW, None, 10**7, 3)
    layer = lens.network()[0]
    with torch.no_grad():
        maps = hybrid.get_submodule("0").attention(torch.zeros(1, 3, 12, 10))
    position = maps.position.flatten(3).flatten(1, 2).numpy()
    error = abs(unpacked(layer["position"], 9, 120) - position)
    assert (error <= position.max(-1, keepdims=True) / 509).all()


def test_coarser_maps_by_a_loop() -> None:
    maps = torch.rand(2, 5, 4, 7, 5)
    coarse = attention._coarser(maps, 2)
    assert coarse.shape == (2, 3, 2, 4, 3)
    for head, u, v, y, x in np.ndindex(*coarse.shape):
        block = maps[head, 2 * u, 2 * v, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        assert coarse[head, u, v, y, x] == pytest.approx(float(block.sum()), rel=1e-5)


def test_a_lens_keeps_to_its_allowance_and_names_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hybrid = small_hybrid()
    fine = 9 * 30 * (120 + 4) + 9 * 30 * (30 + 4)
    lens = attention.Lens(hybrid, VIEW, None, 8 * fine, 8)
    assert (lens.count, set(lens.steps.values())) == (8, {1})
    lens = attention.Lens(hybrid, VIEW, None, 8 * fine - 1, 8)
    assert (lens.count, lens.steps) == (7, {"0": 1, "2": 1})
    lens = attention.Lens(hybrid, VIEW, None, 3 * fine, 8)
    assert (lens.count, lens.steps) == (4, {"0": 2, "2": 1})
    found, _ = lens.look(noise())
    sizes = [
        len(base64.b64decode(text)) for maps in found["maps"].values() for text in maps.values()
    ]
    assert sum(sizes) * lens.count <= 3 * fine
    monkeypatch.setattr(attention, "_MOST", 9 * 30 * 119)
    lens = attention.Lens(hybrid, VIEW, None, 10**7, 8)
    assert list(lens.left_out) == ["0"] and list(lens.steps) == ["2"]
    assert "million weights" in lens.left_out["0"]
    _, heads = lens.look(noise())
    assert {head["layer"] for head in heads} == {"2"}


def test_figures_of_heads_are_means_over_the_pictures() -> None:
    hybrid = small_hybrid()
    lens = attention.Lens(hybrid, VIEW, None, 10**7, 3)
    pictures = [noise(seed) for seed in range(3)]
    found = attention.mean_heads([lens.look(picture)[1] for picture in pictures])
    x = torch.stack([torch.from_numpy(np.array(p.image)) for p in pictures])
    with capture(hybrid) as seen, torch.no_grad():
        hybrid(x.permute(0, 3, 1, 2).float() / 255)
    for mine, theirs in zip(found, heads_report(seen).to_json(), strict=True):
        for key in ("content_distance", "attention_distance", "content_entropy", "gate"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4)
        assert (mine["layer"], mine["tap"]) == (theirs["layer"], theirs["tap"])


def test_a_network_without_recast_layers_is_refused() -> None:
    with pytest.raises(TCNNError, match="no recast layer"):
        attention.Lens(nn.Sequential(nn.Conv2d(3, 4, 3)), VIEW, None, 10**6, 2)


# Plots


def test_lines_by_hand() -> None:
    svg = charts.lines("t", [charts.Line("a", [(1, 0), (2, 50), (3, 100)], 1)], "epoch")
    assert 'points="46.0,184.0 197.0,97.0 348.0,10.0"' in svg
    assert ">100</text>" in svg and ">25</text>" in svg and ">3</text>" in svg
    assert "<title>a: 50 at 2</title>" in svg


def test_ticks_reach_over_the_range() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = np.sort(rng.normal(size=2) * 10.0 ** rng.integers(-6, 6))
        ticks = charts._ticks(low, high)
        slack = 1e-6 * (high - low)
        assert ticks[0] <= low + slack and ticks[-1] >= high - slack and 3 <= len(ticks) <= 7
    assert charts._ticks(5, 5)[0] < 5 < charts._ticks(5, 5)[-1]


def test_one_point_is_drawn() -> None:
    assert "NaN" not in charts.lines("t", [charts.Line("a", [(1, 0.0)], 0)], "epoch")
    assert "nan" not in charts.rows("t", [("a", [charts.Dot(0.0, 0, "x")])], "points")


def test_the_shipped_files_have_no_foreign_address() -> None:
    folder = Path(sys.modules["tcnn.report"].__path__[0])
    shipped = {path.name for path in folder.iterdir() if path.suffix in (".html", ".css", ".js")}
    assert shipped == {"template.html", "explorer.html", "drop.html", "page.css", "page.js"}
    for name in shipped:
        assert "://" not in (folder / name).read_text("utf-8")
