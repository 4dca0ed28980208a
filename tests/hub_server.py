"""A stand-in for the hub, which speaks enough of its API for huggingface_hub: repositories, files, ranges, refusals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class Hub:
    """One repository, and what goes wrong with it."""

    files: dict[str, bytes]
    repository: str = "acme/video"
    revisions: tuple[str, ...] = ("main", "v1.0", COMMIT)
    licence: str | None = "cc-by-nc-4.0"
    token: str | None = None  # without it everything is refused
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)  # file, or "api" -> status and error code
    drop_at: dict[str, int] = field(default_factory=dict)  # file -> bytes after which the connection drops, once
    commit: str = COMMIT
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)  # "GET config.json", with " bytes=5-" for a part

    def downloads(self) -> list[str]:
        """What was downloaded, in order."""
        return [line.removeprefix("GET ") for line in self.requests if line.startswith("GET ") and "api" not in line]

    def info(self) -> dict[str, object]:
        """What the API says about the repository."""
        return {
            "id": self.repository,
            "sha": self.commit,
            "tags": ["safetensors"] + ([f"license:{self.licence}"] if self.licence else []),
            "siblings": [{"rfilename": name, "size": len(content)} for name, content in self.files.items()],
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = "api" if api else file[3] if file else path
        part = self.headers.get("Range")
        hub.requests.append(f"{self.command} {name}" + (f" {part}" if part else ""))
        repository, revision = (api or file or ("", ""))[1], (api[2] if api else file[2] if file else None) or "main"
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(401, "GatedRepo" if repository == hub.repository else "RepoNotFound")
        elif repository != hub.repository:
            self._refuse(404, "RepoNotFound")
        elif revision not in (*hub.revisions, hub.commit):
            self._refuse(404, "RevisionNotFound")
        elif name in hub.refusals:
            self._refuse(*hub.refusals[name])
        elif api:
            self._send(json.dumps(hub.info()).encode(), with_body=with_body, name="api")
        elif name not in hub.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send(hub.files[name], with_body=with_body, name=name, part=part)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, *, with_body: bool, name: str, part: str | None = None) -> None:
        start = int(part.removeprefix("bytes=").rstrip("-")) if part else 0
        self.send_response(206 if part else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.hub.commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if part:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        end = self.hub.drop_at.pop(name, None)
        self.wfile.write(content[start:end])
        if end is not None:
            self.close_connection = True


def connect(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes huggingface_hub in this process use ``endpoint`` and ``cache``; it has read its environment already."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache.parent / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serves ``hub`` on this machine and sets its endpoint."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
