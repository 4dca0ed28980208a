"""A stand-in for an OpenAI-compatible endpoint: it speaks the protocol, and a function of the test is its model."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Reply:
    """What goes over the wire instead of an answer of the model."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    hang_s: float = 0.0
    cut: bool = False  # the connection drops in the middle of the body


@dataclass
class StandIn:
    """The endpoint. ``model`` gets the messages of a request and returns the answer, or what to send instead."""

    model: Callable[[list[dict[str, str]]], str | Reply]
    key: str | None = None  # without it everything is refused
    requests: list[dict] = field(default_factory=list)  # the bodies, in the order in which they came
    times_s: list[float] = field(default_factory=list)
    url: str = ""
    at_once: int = 0  # the most that were under way together
    _under_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, body: dict) -> Reply:
        with self._lock:
            self.requests.append(body)
            self.times_s.append(time.monotonic())
            self._under_way += 1
            self.at_once = max(self.at_once, self._under_way)
        try:
            answer = self.model(body["messages"])
            reply = answer if isinstance(answer, Reply) else Reply(body=json.dumps(completion(answer, body["model"])))
            time.sleep(reply.hang_s)
            return reply
        finally:
            with self._lock:
                self._under_way -= 1


def completion(text: str | None, model: str) -> dict:
    """The JSON of an answer; ten tokens asked, two answered."""
    return {
        "object": "chat.completion",
        "model": f"{model}-0123",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }


def refusal(status: int, message: str = "", *, code: str = "", **headers: str) -> Reply:
    """An error in the protocol's form; a header's name is given with _ for -."""
    body = json.dumps({"error": {"message": message, "code": code}})
    return Reply(status=status, body=body, headers={name.replace("_", "-"): text for name, text in headers.items()})


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            reply = refusal(404, "no such path")
        elif self.stand_in.key is not None and self.headers.get("Authorization") != f"Bearer {self.stand_in.key}":
            reply = refusal(401, "Incorrect API key")
        else:
            reply = self.stand_in.take(body)
        content = reply.body.encode()
        with contextlib.suppress(ConnectionError):  # a client that has given up
            self.send_response(reply.status)
            for name, text in reply.headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(content) + 5 * reply.cut))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextlib.contextmanager
def serving(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Serves on this machine and sets the URL; no proxy of the environment comes between."""
    monkeypatch.setenv("no_proxy", "*")
    handler = type("Handler", (_Handler,), {"stand_in": stand_in})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    stand_in.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        thread.join()
        server.socket.close()
