"""The page in a browser: what it shows against a capture, by pointer, finger and keyboard."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tcnn
from tcnn.analysis.capture import Capture, capture
from tcnn.report import contents
from tcnn.report import page as pages
from tcnn.report.looking import look
from tcnn.report.server import Explorer

pytestmark = pytest.mark.page
NET = "tcnn.networks:cifar_resnet"
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The Chromium that is installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium on the path; CHROMIUM names one")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid with gates on both sides of 0, its page, and the pictures on it."""
    torch.manual_seed(0)
    cnn = tcnn.load_model(NET, depth=8, widths=[4, 4, 8])
    hybrid = tcnn.recast(cnn, input_size=(3, 32, 32))
    with torch.no_grad():
        for name, parameter in hybrid.named_parameters():
            if name.endswith("gating_param"):
                parameter.copy_(torch.linspace(-0.6, 0.9, 9))
            if name.endswith("qk.weight"):
                parameter.mul_(60)
    out = tmp_path_factory.mktemp("runs") / "hybrid"
    tcnn.save(hybrid, out, classes=[f"class {n}" for n in range(10)])
    (out / "pictures").mkdir()
    for seed in range(3):
        noise(seed).save(out / "pictures" / f"{seed}.png")
    pages.write(out, images=out / "pictures")
    return out


def noise(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC)


def captured(run: Path, seed: int) -> Capture:
    hybrid = tcnn.load(run)
    x = torch.from_numpy(np.array(noise(seed))).permute(2, 0, 1)[None].float() / 255
    with capture(hybrid) as seen, torch.no_grad():
        hybrid((x - MEAN) / STD)
    return seen


class Opened:
    """The page, watched."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1200, "height": 900}, **options}
        )
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.evaluate("document.getElementById('values')?.setAttribute('open', '')")
        self.page.wait_for_timeout(50)

    def text(self, selector: str) -> str:
        found: str = self.page.inner_text(selector)
        return found

    def values(self) -> Tensor:
        """The weights that the table shows."""
        rows = self.page.eval_on_selector_all(
            "#values tbody tr",
            "rows => rows.map(r => [...r.querySelectorAll('td')].map(cell => cell.textContent))",
        )
        return torch.tensor([[float(c.replace("\u2212", "-")) for c in row] for row in rows])

    def choose(self, layer: str, head: int, kind: str) -> None:
        self.page.select_option("#layer", label=layer)
        self.page.select_option("#head", str(head))
        self.page.check(f'input[name="kind"][value="{kind}"]')

    def point(self, row: float, column: float, size: int, *, click: bool = False) -> None:
        """At the middle of a pixel of the layer's input."""
        self.page.locator("#picture").scroll_into_view_if_needed()
        box = self.page.locator("#picture").bounding_box()
        x = box["x"] + (column + 0.5) / size * box["width"]
        y = box["y"] + (row + 0.5) / size * box["height"]
        (self.page.mouse.click if click else self.page.mouse.move)(x, y)


@pytest.fixture
def opened(browser: Any, run: Path) -> Iterator[Opened]:
    found = Opened(browser, (run / "report.html").as_uri())
    yield found
    found.context.close()
    assert found.complaints == []
    asked = [url for url in found.requests if not url.startswith("data:")]
    assert asked == [(run / "report.html").as_uri()]


def same(shown: Tensor, weights: Tensor) -> None:
    """Equal but for 1 in 510 of the largest weight, and three digits."""
    assert shown.shape == weights.shape
    assert (shown - weights).abs().max() <= weights.abs().max() * (1 / 509 + 6e-3)


def test_hovering_shows_what_a_capture_says(opened: Opened, run: Path) -> None:
    seen = captured(run, 1)
    opened.page.locator("#thumbs label").nth(1).click()
    cases = [
        ("layer3.0.conv1", 16, 2, 0, (4, 3)),
        ("layer3.0.conv1", 16, 2, 8, (7, 0)),
        ("layer3.0.conv2", 8, 1, 5, (0, 7)),
        ("layer3.0.conv2", 8, 1, 4, (3, 3)),
    ]
    for layer, size, stride, head, (row, column) in cases:
        maps = seen.attention(layer)
        for kind, all_maps in (
            ("position", maps.position),
            ("content", maps.content[0]),
            ("mixed", maps.mixed[0]),
        ):
            opened.choose(layer, head, kind)
            opened.point(row * stride, column * stride, size)
            same(opened.values(), all_maps[head, row, column])
            readout = opened.text("#readout")
            assert f"Query at row {row}, column {column} of 8×8" in readout
            assert f"head at tap ({head // 3}, {head % 3})" in readout
            gate = float(re.findall(r"gate (\S+),", readout)[0].replace("\u2212", "-"))
            assert gate == pytest.approx(float(maps.gate[head]), rel=6e-3)
            # Every head's own map says how large it is.
            tops = opened.page.locator("#heads .top").all_inner_texts()
            for at, top in enumerate(tops):
                most = float(all_maps[at, row, column].abs().max())
                assert float(top.removeprefix("to ")) == pytest.approx(most, rel=1e-2, abs=1e-6)


def test_hovering_moves_on_and_a_click_stays(opened: Opened) -> None:
    opened.choose("layer3.0.conv2", 0, "content")
    opened.point(1, 1, 8, click=True)
    opened.point(6, 2, 8)
    assert "row 6, column 2" in opened.text("#readout")
    opened.page.mouse.move(5, 5)
    assert "row 1, column 1" in opened.text("#readout")


def test_the_map_is_painted(opened: Opened) -> None:
    """The positional attention of head (0, 0) is the pixel above and left of the query."""
    opened.choose("layer3.0.conv2", 0, "position")
    opened.point(4, 4, 8)
    yellow, elsewhere = opened.page.evaluate(
        """() => {
          const pen = document.getElementById('picture').getContext('2d');
          const pixels = pen.getImageData(0, 0, 640, 640).data;
          const at = (y, x) => [...pixels.slice(4 * (640 * y + x), 4 * (640 * y + x) + 4)];
          return [at(280, 280), at(520, 120)];
        }"""
    )
    assert yellow == [255, 194, 10, 255] != elsewhere


def test_pickers(opened: Opened) -> None:
    labels = opened.page.locator("#layer option").all_inner_texts()
    assert labels == ["layer3.0.conv1", "layer3.0.conv2"]
    opened.choose("layer3.0.conv1", 3, "content")
    opened.page.locator("#heads button").nth(7).click()
    assert opened.page.input_value("#head") == "7"
    pressed = [b.get_attribute("aria-pressed") for b in opened.page.locator("#heads button").all()]
    assert pressed == ["true" if n == 7 else "false" for n in range(9)]
    first = opened.values()
    assert opened.text("#answer").startswith("0.png")
    opened.page.locator("#thumbs label").nth(2).click()
    assert opened.text("#answer").startswith("2.png, taken for class ")
    assert not torch.equal(opened.values(), first)


def test_keyboard_alone(opened: Opened) -> None:
    """Tab reaches every control with a focus that can be seen; arrows move the query."""
    page = opened.page
    reached: list[str] = []
    for _ in range(80):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => {
              const on = document.activeElement;
              const seen = on.matches(':focus-visible');
              const ring = [on, on.nextElementSibling].some(
                e => e && getComputedStyle(e).outlineStyle !== 'none');
              return [on.id || on.className || on.name || on.tagName, seen && ring];
            }"""
        )
        if found[0] == "BODY":
            break
        assert found[1], found
        reached.append(found[0])
    assert {"skip", "picture", "layer", "head", "kind"} <= set(reached), reached
    assert reached.count("head") == 1 + 9 and "SUMMARY" in reached  # the picker, and each head
    page.focus("#picture")
    opened.choose("layer3.0.conv2", 4, "position")
    opened.point(3, 3, 8, click=True)
    for key, place in (
        ("ArrowUp", "row 2, column 3"),
        ("ArrowLeft", "row 2, column 2"),
        ("ArrowDown", "row 3, column 2"),
        ("ArrowRight", "row 3, column 3"),
    ):
        page.keyboard.press(key)
        assert place in opened.text("#readout")
        shown = opened.values()
        row, column = map(int, re.findall(r"\d", place))
        assert shown[row, column] == 1 and shown.sum() == 1
    for _ in range(20):
        page.keyboard.press("ArrowUp")
    assert "row 0, column 3" in opened.text("#readout")


def test_touch(browser: Any, run: Path) -> None:
    touched = Opened(
        browser, (run / "report.html").as_uri(), has_touch=True, is_mobile=True,
        viewport={"width": 400, "height": 800},
    )  # fmt: skip
    touched.choose("layer3.0.conv2", 4, "position")
    touched.page.locator("#picture").scroll_into_view_if_needed()
    box = touched.page.locator("#picture").bounding_box()
    touched.page.touchscreen.tap(box["x"] + 0.8 * box["width"], box["y"] + 0.3 * box["height"])
    assert "row 2, column 6" in touched.text("#readout")
    touched.context.close()
    assert touched.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_every_width_and_scheme(browser: Any, run: Path, width: int, scheme: str) -> None:
    viewport = {"width": width, "height": 900}
    seen = Opened(browser, (run / "report.html").as_uri(), viewport=viewport, color_scheme=scheme)
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground, ink = page.evaluate(
        "['backgroundColor', 'color'].map(key => getComputedStyle(document.body)[key])"
    )
    shades = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
    assert (shades[0] > 700 and shades[1] < 120) == (scheme == "light")
    assert (shades[0] < 120 and shades[1] > 600) == (scheme == "dark")
    # Nothing lies beyond the edge, and no text is cut off but where it can be scrolled to.
    beyond = page.evaluate(
        """() => [...document.querySelectorAll('body *')]
          .filter(e => !e.closest('.scroll, pre, .skip, details'))
          .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
          .map(e => e.outerHTML.slice(0, 90))"""
    )
    assert beyond == []
    seen.context.close()
    assert seen.complaints == []


def test_print(opened: Opened) -> None:
    opened.page.emulate_media(media="print", color_scheme="dark")
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    assert not opened.page.locator(".controls").is_visible()
    assert opened.page.pdf().startswith(b"%PDF")


def test_live(browser: Any, run: Path, tmp_path: Path) -> None:
    """`tcnn explore`: a picture of one's own, and one that is refused."""
    found = contents.read(run)
    seen = look(found)
    assert seen.lens is not None
    explorer = Explorer(pages.page(found, seen, live=True), seen.lens, "127.0.0.1", 0)
    thread = threading.Thread(target=explorer.serve_forever, daemon=True)
    thread.start()
    noise(1).save(tmp_path / "<b>own.png")
    (tmp_path / "page.html").write_text("<h1>no picture</h1>")
    live = Opened(browser, explorer.address)
    try:
        assert live.page.locator("#thumbs img").count() == 0
        live.page.set_input_files("#file", [tmp_path / "<b>own.png"])
        live.page.wait_for_selector("#thumbs img")
        assert live.text("#answer").startswith("<b>own.png, taken for class ")
        maps = captured(run, 1).attention("layer3.0.conv2")
        live.choose("layer3.0.conv2", 6, "content")
        live.point(2, 5, 8)
        same(live.values(), maps.content[0, 6, 2, 5])
        assert live.complaints == []
        live.page.set_input_files("#file", [tmp_path / "page.html"])
        live.page.get_by_text("this is none").wait_for()
        assert "page.html: Expected a picture (PNG, JPEG" in live.text("#status")
        assert live.page.locator("#thumbs img").count() == 1
        hosts = {url.removeprefix(explorer.address) for url in live.requests if url[:5] != "data:"}
        assert hosts == {"", "attention"}
    finally:
        live.context.close()
        explorer.shutdown()
        explorer.server_close()
        thread.join()
