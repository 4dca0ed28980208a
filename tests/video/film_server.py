"""A web server on this machine that serves a film, and misbehaves in every way that a test asks for by its path."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FilmServer(ThreadingHTTPServer):
    """Every path is one behaviour, the method of that name in ``_Handler``."""

    daemon_threads = True

    def __init__(self, film: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.film = film
        self.released = threading.Event()  # ends what hangs
        self.requests: list[tuple[str, dict[str, str]]] = []

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}/{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what is tested here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FilmServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        name = self.path.lstrip("/").partition("?")[0]
        answer: Callable[[], None] = getattr(self, name.replace("-", "_").replace(".", "_"), self.missing)
        answer()

    def film_mp4(self) -> None:
        self._head(200, {"Content-Length": len(self.server.film), "Content-Type": "video/mp4"})
        self.wfile.write(self.server.film)

    def no_length(self) -> None:
        self._head(200, {})
        self.wfile.write(self.server.film)

    def chunked(self) -> None:
        self._head(200, {"Transfer-Encoding": "chunked"})
        for start in range(0, len(self.server.film), 1000):
            chunk = self.server.film[start : start + 1000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")

    def truncated(self) -> None:
        self._head(200, {"Content-Length": len(self.server.film) + 500})
        self.wfile.write(self.server.film)

    def truncated_chunked(self) -> None:
        self._head(200, {"Transfer-Encoding": "chunked"})
        self.wfile.write(b"%x\r\n%s\r\n" % (1000, self.server.film[:1000]))

    def endless(self) -> None:
        self._head(200, {})
        while not self.server.released.is_set():
            self.wfile.write(bytes(10_000))

    def drip(self) -> None:
        self._head(200, {"Content-Length": len(self.server.film)})
        for byte in self.server.film:
            if self.server.released.wait(0.02):
                return
            self.wfile.write(bytes([byte]))

    def drip_head(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not self.server.released.wait(0.02):
            self.wfile.write(b"x")

    def hang(self) -> None:
        self.server.released.wait(30)

    def hang_in_the_middle(self) -> None:
        self._head(200, {"Content-Length": len(self.server.film)})
        self.wfile.write(self.server.film[:1000])
        self.server.released.wait(30)

    def page(self) -> None:
        self._head(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": 6})
        self.wfile.write(b"<html>")

    def gzip(self) -> None:
        self._head(200, {"Content-Encoding": "gzip", "Content-Length": 4})
        self.wfile.write(b"\x1f\x8b\x08\0")

    def no_http(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.2p1\r\n" * 20)

    def nothing(self) -> None:
        self.close_connection = True

    def escape(self) -> None:
        self.wfile.write(b"HTTP/1.1 500 \x1b[2J\x1b]0;owned\x07\r\nContent-Length: 0\r\n\r\n")
        self.close_connection = True

    def missing(self) -> None:
        self._head(404, {"Content-Length": 0})

    def broken(self) -> None:
        self._head(503, {"Content-Length": 0})

    def moved(self) -> None:
        self._head(302, {"Location": "film.mp4?token=secret", "Content-Length": 0})

    def loop(self) -> None:
        self._head(307, {"Location": "/loop", "Content-Length": 0})

    def to_file(self) -> None:
        self._head(302, {"Location": "file:///etc/passwd", "Content-Length": 0})

    def to_private(self) -> None:
        self._head(302, {"Location": self.server.url("film.mp4", "127.0.0.2"), "Content-Length": 0})

    def to_nowhere(self) -> None:
        self._head(302, {"Content-Length": 0})

    def _head(self, status: int, headers: dict[str, object]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def serving(film: bytes, tls: ssl.SSLContext | None = None) -> Iterator[FilmServer]:
    """A running server of ``film``, with the certificate of ``tls``, if any."""
    with FilmServer(film) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
