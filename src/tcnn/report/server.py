"""The page with a server behind it, on this machine alone, that looks at pictures of one's own.

It answers GET / with the page and POST /attention with the attention on the picture in the body,
and nothing else: no path that it is asked for is ever read.
"""

from __future__ import annotations

import io
import ipaddress
import json
import socket
import threading
import time
import warnings
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from tcnn.decoding import UnreadableImage, decode
from tcnn.report.attention import Lens
from tcnn.report.pictures import Picture

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_BYTES = 20_000_000
MOST_PIXELS = 25_000_000
_CONNECTIONS = 64  # at a time; more are told to come back
_READERS = 4  # bodies that are in memory at a time
_PATIENCE = 60.0  # seconds to wait for one's turn
_READING = 30.0  # seconds for a body to arrive
_HEARING_OUT = 3.0  # seconds for the rest of a body that is refused


class Refused(Exception):
    """A request that is not served: the status, and why in one line."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def picture_of(body: bytes) -> Image.Image:
    """The picture in a body, whose size is known before a pixel is decoded.

    Raises:
        Refused: it is no picture, is too large, or is damaged.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(body), formats=FORMATS) as head,
        ):
            width, height = head.size
    except Image.DecompressionBombError:
        raise _too_large("hundreds of millions of") from None
    except UnidentifiedImageError:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"Expected a picture ({', '.join(FORMATS)}), but this is none, or its head is damaged.",
        ) from None
    except Exception as error:  # damaged heads can raise anything
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"The picture is damaged: {_line(error)}"
        ) from None
    if width * height > MOST_PIXELS:
        raise _too_large(f"{width}×{height} =", width * height)
    try:
        return decode(body, "the picture")
    except UnreadableImage as error:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, _line(error)) from None


def _too_large(what: str, pixels: int | None = None) -> Refused:
    count = "" if pixels is None else f" {pixels:,}"
    return Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"Expected at most {MOST_PIXELS:,} pixels, but the picture has {what}{count}: make it "
        "smaller.",
    )


class Explorer(ThreadingHTTPServer):
    """Serves one page, and the attention of one hybrid on pictures.

    Args:
        html: the page.
        lens: looks at pictures.
        host: address to bind to.
        port: 0 takes a free one.

    Raises:
        OSError: the address cannot be bound to.
    """

    daemon_threads = True
    request_queue_size = _CONNECTIONS

    def __init__(self, html: str, lens: Lens, host: str, port: int) -> None:
        self.html, self.lens, self.host = html.encode("utf-8"), lens, host
        self._connections = threading.BoundedSemaphore(_CONNECTIONS)
        self.readers = threading.BoundedSemaphore(_READERS)
        self._looking = threading.Lock()  # one at a time: a capture hooks into the network
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def look(self, picture: Image.Image) -> dict[str, Any]:
        """A picture with its maps."""
        with self._looking:
            found, _ = self.lens.look(Picture(picture, ""))
        return found

    def is_own(self, authority: str) -> bool:
        """Whether a Host header names this server by an address, or by the name it was bound to.

        A name that someone else's DNS has pointed here is not.
        """
        try:
            parts = urlsplit(f"//{authority}")
            host, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self.server_address[1]:
            return False
        if host in ("localhost", self.host.lower()):
            return True
        try:
            found = ipaddress.ip_address(host)
        except ValueError:
            return False
        return found.is_loopback or not _is_loopback(self.host)

    # Of socketserver

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no matter of the server's."""


class _Handler(BaseHTTPRequestHandler):
    server: Explorer
    protocol_version = "HTTP/1.0"  # one request for each connection
    timeout = 30
    server_version, sys_version = "tcnn", ""

    def do_GET(self) -> None:
        self._serve(self._page)

    def do_HEAD(self) -> None:
        self._serve(self._page)

    def do_POST(self) -> None:
        self._serve(self._attention)

    def log_message(self, format: str, *args: Any) -> None:
        """The library never prints."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """One line of text, for requests that http.server itself refuses."""
        status = HTTPStatus(code)
        self._answer(status, "text/plain", f"{message or status.phrase}\n".encode())

    def _serve(self, answer: Any) -> None:
        try:
            self._check_sender()
            kind, body = answer()
            self._answer(HTTPStatus.OK, kind, body)
        except Refused as refused:
            self._answer(refused.status, "text/plain", f"{refused.reason}\n".encode())
            self._hear_out()
        except OSError:  # the client went away, or is too slow
            self.close_connection = True
        except Exception as error:  # whatever a picture brings about, the next one is served
            self._answer(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "text/plain",
                f"The network cannot look at this picture: {_line(error)}\n".encode(),
            )

    def _check_sender(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self.server.is_own(hosts[0]):
            raise Refused(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"Expected a request for {self.server.address}, but its Host is another.",
            )
        origin = self.headers.get("Origin")
        foreign = origin is not None and origin != f"http://{hosts[0]}"
        if foreign or self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Refused(
                HTTPStatus.FORBIDDEN, "Expected a request of the page itself, not of another site."
            )

    def _page(self) -> tuple[str, bytes]:
        if self.path != "/":
            raise Refused(HTTPStatus.NOT_FOUND, "There is nothing here but the page, at /.")
        return "text/html", self.server.html

    def _attention(self) -> tuple[str, bytes]:
        if self.path != "/attention":
            raise Refused(HTTPStatus.NOT_FOUND, "Pictures are taken at /attention alone.")
        length = self._length()
        if not self.server.readers.acquire(timeout=_PATIENCE):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "Too many pictures at once: try again.")
        try:
            picture = picture_of(self._body(length))
            found = self.server.look(picture)
        finally:
            self.server.readers.release()
        return "application/json", json.dumps(found, separators=(",", ":")).encode()

    def _length(self) -> int:
        said = self.headers.get("Content-Length", "")
        if not said.isascii() or not said.isdigit() or "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "Expected the Content-Length of a picture.")
        if len(said) > 12 or int(said) > MOST_BYTES:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"Expected at most {MOST_BYTES:,} bytes, but the file has more: make it smaller.",
            )
        return int(said)

    def _body(self, length: int) -> bytes:
        body, deadline = bytearray(), time.monotonic() + _READING
        while len(body) < length:
            if time.monotonic() > deadline:
                raise TimeoutError
            part = self.rfile.read1(min(65536, length - len(body)))
            if not part:
                raise Refused(HTTPStatus.BAD_REQUEST, "Expected the whole file, but it was cut.")
            body += part
        return bytes(body)

    def _hear_out(self) -> None:
        """Let a client that is still sending read the answer: closing now would cut it off."""
        deadline, heard = time.monotonic() + _HEARING_OUT, 0
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_HEARING_OUT)
            while time.monotonic() < deadline and heard < 4 * MOST_BYTES:
                part = self.connection.recv(65536)
                if not part:
                    break
                heard += len(part)
        except OSError:
            pass

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
