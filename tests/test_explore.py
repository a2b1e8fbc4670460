"""`tcnn explore` under what a hostile page, a hostile file and a crowd can send it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tcnn
from tcnn.__main__ import main
from tcnn.analysis.capture import capture
from tcnn.report import contents, page, server
from tcnn.report.looking import look
from tcnn.report.server import Explorer

NET = "tcnn.networks:cifar_resnet"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hybrid whose gates are open."""
    torch.manual_seed(0)
    cnn = tcnn.load_model(NET, depth=8, widths=[4, 4, 8])
    hybrid = tcnn.recast(cnn, input_size=(3, 32, 32))
    with torch.no_grad():
        for name, parameter in hybrid.named_parameters():
            if name.endswith("gating_param"):
                parameter.copy_(torch.linspace(-0.2, 0.9, 9))
    out = tmp_path_factory.mktemp("runs") / "hybrid"
    tcnn.save(hybrid, out, classes=[f"class {n}" for n in range(10)])
    return out


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Explorer]:
    found = contents.read(run)
    seen = look(found)
    assert seen.lens is not None
    explorer = Explorer(page.page(found, seen, live=True), seen.lens, "127.0.0.1", 0)
    thread = threading.Thread(target=explorer.serve_forever, daemon=True)
    thread.start()
    yield explorer
    explorer.shutdown()
    explorer.server_close()
    thread.join()


def ask(
    served: Explorer,
    method: str = "GET",
    path: str = "/",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, str, dict[str, str]]:
    connection = HTTPConnection("127.0.0.1", served.server_address[1], timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally:
        connection.close()


def encoded(kind: str = "PNG", size: tuple[int, int] = (40, 32), seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A few bytes that say they are a large PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def alive(served: Explorer) -> None:
    status, body, _ = ask(served, "POST", "/attention", encoded())
    assert status == 200 and json.loads(body)["maps"]


# What it serves


def test_the_page(served: Explorer) -> None:
    status, body, headers = ask(served)
    assert status == 200 and body.startswith("<!DOCTYPE html>")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "connect-src &#x27;self&#x27;" in body and 'id="drop"' in body
    status, body, headers = ask(served, "HEAD")
    assert (status, body) == (200, "") and int(headers["Content-Length"]) > 10_000


def test_attention_is_that_of_a_capture(served: Explorer, run: Path) -> None:
    status, body, _ = ask(served, "POST", "/attention", encoded(size=(32, 32)))
    assert status == 200
    found = json.loads(body)
    hybrid = tcnn.load(run)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(encoded(size=(32, 32))))))
    x = pixels.permute(2, 0, 1)[None].float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with capture(hybrid) as seen, torch.no_grad():
        predicted = int(hybrid((x - mean) / std).argmax())
    assert found["predicted"] == f"class {predicted}"

    for name in seen.layers:
        content = seen.attention(name).content[0].flatten(3).flatten(1, 2)
        maps = found["maps"][name]
        levels = np.frombuffer(base64.b64decode(maps["levels"]), "u1").reshape(content.shape)
        tops = np.frombuffer(base64.b64decode(maps["tops"]), "<f4").reshape(*content.shape[:2], 1)
        assert np.allclose(tops, content.amax(-1, keepdim=True), rtol=1e-4)
        assert (abs(levels / 255 * tops - content.numpy()) <= tops / 500).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_of_every_kind(served: Explorer, kind: str) -> None:
    status, body, headers = ask(served, "POST", "/attention", encoded(kind, (57, 31)))
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert json.loads(body)["pixels"].startswith("data:image/png;base64,")


# What it refuses


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "/../../../../etc/passwd", "/..%2f..%2fetc/passwd", "/tcnn.json",
        "/report.html", "//etc/passwd", "/?file=/etc/passwd", "/%00", "/attention",
        "file:///etc/passwd",
    ],
)  # fmt: skip
def test_no_path_is_read(served: Explorer, path: str) -> None:
    status, body, _ = ask(served, "GET", path)
    assert (status, body) == (404, "There is nothing here but the page, at /.\n")
    status, body, _ = ask(served, "POST", f"/attention/{path.strip('/')}", encoded())
    assert (status, body.count("\n")) == (404, 1)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', 415, "this is none"),
        (b"just text", 415, "this is none"),
        (b"<!DOCTYPE html><html><script>alert(1)</script></html>", 415, "this is none"),
        (b"", 415, "this is none"),
        (b"/etc/passwd", 415, "this is none"),
        (encoded("TIFF"), 415, "this is none"),
        (encoded("PPM"), 415, "this is none"),
        (b"%PDF-1.4\n%", 415, "this is none"),
        (png_of(20_000, 15_000), 413, "25,000,000 pixels"),
        (png_of(6_000, 5_000), 413, "6000×5000 = 30,000,000"),
        (png_of(2**31 - 1, 2**31 - 1), 413, "25,000,000 pixels"),
        (png_of(1000, 1000), 422, "cannot"),
        (encoded()[:300], 422, "cannot"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_a_line(
    served: Explorer, body: bytes, status: int, said: str
) -> None:
    found, line, headers = ask(served, "POST", "/attention", body)
    assert found == status and said in line
    assert line.count("\n") == 1 and "Traceback" not in line
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    alive(served)


def test_a_picture_of_300_megapixels_takes_no_memory(served: Explorer) -> None:

    tracemalloc.start()
    assert ask(served, "POST", "/attention", png_of(20_000, 15_000))[0] == 413
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20_000_000


def test_bytes_are_counted_before_they_are_read(
    served: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length in ("20000001", "9" * 40):
        headers = {"Content-Length": length}
        assert ask(served, "POST", "/attention", None, headers)[0] == 413
    for length in ("-1", "1e3", "x", "", "²"):
        with socket.create_connection(("127.0.0.1", served.server_address[1]), 30) as raw:
            host = f"127.0.0.1:{served.server_address[1]}"
            words = f"POST /attention HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
            raw.sendall(words.encode("latin-1"))
            raw.shutdown(socket.SHUT_WR)
            assert b" 411 " in raw.recv(4000)
    chunked = {"Transfer-Encoding": "chunked"}
    assert ask(served, "POST", "/attention", b"5\r\nabcde\r\n0\r\n\r\n", chunked)[0] in (411, 415)
    # One that is too long is told so, though it is still being sent.
    monkeypatch.setattr(server, "MOST_BYTES", 100_000)
    assert ask(served, "POST", "/attention", bytes(3_000_000))[0] == 413
    alive(served)


def test_a_body_that_is_cut_or_never_comes(
    served: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_READING", 0.2)
    host = f"127.0.0.1:{served.server_address[1]}"
    words = f"POST /attention HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\nabc".encode()
    with socket.create_connection(("127.0.0.1", served.server_address[1]), 30) as raw:
        raw.sendall(words)
        raw.shutdown(socket.SHUT_WR)
        assert b" 400 " in raw.recv(4000)
    for _ in range(6):  # more than are read at a time
        with socket.create_connection(("127.0.0.1", served.server_address[1]), 30) as raw:
            raw.sendall(words)
    alive(served)


def test_other_sites_are_refused(served: Explorer) -> None:
    port = served.server_address[1]
    own = f"127.0.0.1:{port}"
    picture = encoded()
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": f"https://{own}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for method, path, body in (("GET", "/", None), ("POST", "/attention", picture)):
            assert ask(served, method, path, body, headers)[0] == 403, headers
    # A name that was pointed at this machine (DNS rebinding), and this server by another port.
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1:1", f"127.0.0.1.x:{port}",
                 f"8.8.8.8:{port}", f"user@{own}x", "", "[::1"):  # fmt: skip
        assert ask(served, "POST", "/attention", picture, {"Host": host})[0] == 421, host
    for host in (own, f"localhost:{port}", f"[::1]:{port}"):
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert ask(served, "POST", "/attention", picture, headers)[0] == 200, host
    assert "Access-Control-Allow-Origin" not in ask(served)[2]


def test_a_server_for_all_takes_addresses_and_no_foreign_names(served: Explorer) -> None:
    everywhere = Explorer("", served.lens, "0.0.0.0", 0)
    try:
        port = everywhere.server_address[1]
        assert everywhere.is_own(f"192.168.1.7:{port}") and everywhere.is_own(f"localhost:{port}")
        assert not everywhere.is_own(f"evil.example:{port}")
    finally:
        everywhere.server_close()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "HUH"])
def test_other_methods(served: Explorer, method: str) -> None:
    status, body, _ = ask(served, method)
    assert status == 501 and body.count("\n") == 1


def test_fifty_at_once(served: Explorer) -> None:
    bodies = [encoded(seed=n) if n % 5 else b"text" for n in range(50)]
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda body: ask(served, "POST", "/attention", body), bodies))
    for n, (status, body, _) in enumerate(found):
        assert status == (200 if n % 5 else 415)
        if n % 5 and n < 15:  # each its own answer
            alone = ask(served, "POST", "/attention", bodies[n])[1]
            assert json.loads(body) == json.loads(alone)
    alive(served)


def test_a_failing_network_is_one_line(served: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(picture: Any) -> Any:
        raise RuntimeError("no\nmemory")

    monkeypatch.setattr(served.lens, "look", fail)
    status, body, _ = ask(served, "POST", "/attention", encoded())
    assert (status, body) == (500, "The network cannot look at this picture: no memory\n")
    monkeypatch.undo()
    alive(served)


# The command


def test_the_command_serves_until_ctrl_c(run: Path) -> None:
    words = [sys.executable, "-m", "tcnn", "explore", str(run)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"Serving {run} at http://127.0.0.1:"), line
        port = int(line.split(":")[2].partition("/")[0])
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(b"<!DOCTYPE html>")
        connection.close()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr is not None and process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_bad_addresses_and_runs(
    run: Path, served: Explorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tcnn.save(tcnn.load_model(NET, depth=8, widths=[4, 4, 8]), tmp_path / "cnn")
    for words, said in (
        ((str(tmp_path / "none"),), "is not a folder"),
        ((str(tmp_path),), "none of recast.json"),
        ((str(tmp_path / "cnn"),), "a saved hybrid"),
        ((str(run), "--port", "70000"), "--port from 0 to 65535"),
        ((str(run), "--port", str(served.server_address[1])), "Expected an address"),
        ((str(run), "--host", "no.such.host.invalid"), "Expected an address"),
    ):
        assert main(["explore", *words]) == 1
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
