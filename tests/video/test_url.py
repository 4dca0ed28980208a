"""Videos from URLs: fetched only if allowed, from the address that was checked, within the limits, leaving nothing."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from film_files import read_number
from film_server import FilmServer, serving

from blip3v.errors import (
    Blip3vError,
    CancelledError,
    RequestTimeoutError,
    UnsupportedVideoError,
    UsageError,
    VideoError,
    VideoTimeoutError,
    VideoTooLargeError,
)
from blip3v.runtime.cancellation import CancelToken, Deadline
from blip3v.units import format_bytes
from blip3v.video import Clip, VideoLimits, download, load_clip
from blip3v.video.source import check_path
from blip3v.video.url import is_public

ALLOWED = VideoLimits(allow_url=True, allow_private_url=True)
EXPECTED = [1, 59]


@pytest.fixture(scope="module")
def server(plain: Path) -> Iterator[FilmServer]:
    with serving(plain.read_bytes()) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test: no temporary file, no timer."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)] == []


def numbers(clip: Clip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


def limits(**changes: Any) -> VideoLimits:
    return VideoLimits(allow_url=True, allow_private_url=True, **changes)


@pytest.mark.parametrize("path", ["film.mp4", "no-length", "chunked", "moved"])
def test_a_film_comes_whole(server: FilmServer, path: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "blip3v.video.download"):
        assert numbers(load_clip(server.url(path), num_frames=2, limits=ALLOWED)) == EXPECTED
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith(f"downloading {server.url('film.mp4' if path == 'moved' else path)}, ")
    assert said[-1].startswith(f"downloaded {format_bytes(len(server.film))} in ")
    assert "secret" not in "".join(said)


def test_a_path_that_was_made_of_a_url_is_fetched_too(server: FilmServer) -> None:
    path = Path(server.url("film.mp4"))
    assert str(path).startswith("http:/1")
    assert numbers(load_clip(path, num_frames=2, limits=ALLOWED)) == EXPECTED


def test_what_is_sent(server: FilmServer) -> None:
    """Spaces and umlauts are quoted once, what is quoted stays, and the fragment stays here."""
    with pytest.raises(VideoError, match="404"):
        load_clip(server.url("a b%20ü.mp4?q=ä c#part"), num_frames=2, limits=ALLOWED)
    path, headers = server.requests[-1]
    assert path == "/a%20b%20%C3%BC.mp4?q=%C3%A4%20c"
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert headers["User-Agent"].startswith("blip3v/")
    assert headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("path", "changes", "kind", "message"),
    [
        pytest.param("film.mp4", {"max_bytes": 1000}, VideoTooLargeError, r"film\.mp4 has \d+ bytes", id="length"),
        pytest.param("chunked", {"max_bytes": 1500}, VideoTooLargeError, "so far, has 2000 bytes", id="chunks"),
        pytest.param("endless", {"max_bytes": 50_000}, VideoTooLargeError, "so far", id="endless"),
        pytest.param("drip", {"download_timeout_s": 0.3}, VideoTimeoutError, "within 0.3 s, the limit", id="drip"),
        pytest.param("drip-head", {"download_timeout_s": 0.3}, VideoTimeoutError, "0 B came", id="drip-head"),
        pytest.param("hang", {"read_timeout_s": 0.2}, VideoTimeoutError, "read_timeout_s", id="hang"),
        pytest.param("hang-in-the-middle", {"read_timeout_s": 0.2}, VideoTimeoutError, "in the middle", id="hang-late"),
        pytest.param("hang", {"download_timeout_s": 0.2}, VideoTimeoutError, "download_timeout_s", id="hang-in-all"),
        pytest.param("loop", {}, VideoError, r"redirects more than 5 times, .*max_redirects", id="loop"),
        pytest.param("moved", {"max_redirects": 0}, VideoError, "redirects more than 0 times", id="no-redirect"),
        pytest.param("escape", {}, VideoError, r"answers 500 \?\[2J\?\]0;owned\?", id="control-characters"),
        pytest.param(
            "to-file", {}, UnsupportedVideoError, "file:///etc/passwd is a URL with the scheme file", id="file"
        ),
        pytest.param("to-nowhere", {}, VideoError, "answers 302", id="redirect-without-target"),
        pytest.param("missing", {}, VideoError, "answers 404 Not Found; check the URL", id="404"),
        pytest.param("broken", {}, VideoError, "answers 503", id="503"),
        pytest.param("truncated", {}, VideoError, r"ends after \d+ of \d+ bytes", id="truncated"),
        pytest.param("truncated-chunked", {}, VideoError, "stops in the middle", id="truncated-chunks"),
        pytest.param("page", {}, UnsupportedVideoError, r"is a web page \(text/html\)", id="web-page"),
        pytest.param("gzip", {}, UnsupportedVideoError, "compressed", id="gzip"),
        pytest.param("no-http", {}, VideoError, "cannot be asked", id="another-protocol"),
        pytest.param("nothing", {}, VideoError, "cannot be asked", id="hangs-up"),
    ],
)
def test_servers_that_misbehave(
    server: FilmServer, path: str, changes: dict[str, Any], kind: type[VideoError], message: str
) -> None:
    start_s = time.monotonic()
    with pytest.raises(Blip3vError, match=message) as caught:
        load_clip(server.url(path), num_frames=2, limits=limits(**changes))
    assert caught.type is kind
    assert time.monotonic() - start_s < 3


@pytest.mark.parametrize("path", ["hang", "drip", "drip-head", "hang-in-the-middle"])
@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_download_can_be_ended_from_outside(server: FilmServer, path: str, how: str) -> None:
    token = CancelToken()
    deadline = Deadline(0.3, None) if how == "deadline" else Deadline(None, token)
    canceller = threading.Timer(0.3, token.cancel)
    canceller.start()
    start_s = time.monotonic()
    with pytest.raises(RequestTimeoutError if how == "deadline" else CancelledError):
        load_clip(server.url(path), num_frames=2, limits=ALLOWED, interrupting=deadline.interrupting)
    assert time.monotonic() - start_s < 2
    canceller.join()


def test_the_socket_changes_only_under_the_lock_of_the_stop(
    server: FilmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``CancelToken.cancel`` raised a TypeError if the download ended while it looked at the socket."""
    unlocked: list[str] = []

    class Observed(download._Download):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "_socket" and hasattr(self, "_start_s") and not self._lock.locked():
                unlocked.append(str(value))
            super().__setattr__(name, value)

    monkeypatch.setattr(download, "_Download", Observed)
    load_clip(server.url("film.mp4"), num_frames=2, limits=ALLOWED)
    assert unlocked == []


def test_a_connection_that_is_never_accepted_can_be_cancelled() -> None:
    """A full queue of connections: the host drops what asks for one more."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        token = CancelToken()
        canceller = threading.Timer(0.3, token.cancel)
        canceller.start()
        start_s = time.monotonic()
        url = f"http://127.0.0.1:{full.getsockname()[1]}/film.mp4"
        with pytest.raises(CancelledError):
            load_clip(url, num_frames=2, limits=ALLOWED, interrupting=Deadline(None, token).interrupting)
        assert time.monotonic() - start_s < 2
        with pytest.raises(VideoTimeoutError, match=r"no connection is possible"):
            load_clip(url, num_frames=2, limits=limits(connect_timeout_s=0.2))
        canceller.join()
        for client in waiting:
            client.close()


def test_a_host_that_refuses_connections() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(VideoError, match=r"no connection is possible .*refused"):
            load_clip(f"http://127.0.0.1:{closed.getsockname()[1]}/", num_frames=2, limits=ALLOWED)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"],
)
def test_this_machine_is_refused_however_it_is_written(server: FilmServer, host: str) -> None:
    num_requests = len(server.requests)
    with pytest.raises(UnsupportedVideoError, match="not an address of the public internet") as caught:
        load_clip(server.url("film.mp4", host), num_frames=2, limits=VideoLimits(allow_url=True))
    assert "`allow_private_url=True`" in caught.value.remedy
    assert len(server.requests) == num_requests


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.0.2.1", "192.168.1.1",
        "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:10.0.0.1",
        "fc00::1", "fd12::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2001:db8::1", "64:ff9b::a00:1",
        "2002:a00:1::1", "64:ff9b:1::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def answering(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Has the look-up of any name answer ``answers``, one after the other; returns the names that were looked up."""
    left, asked = list(answers), []

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in left.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_is_looked_up_once(server: FilmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look-up could give an address that was not checked."""
    monkeypatch.setattr(download, "is_public", lambda text: text == "127.0.0.1")
    asked = answering(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])
    url = server.url("film.mp4", "films.example")
    assert numbers(load_clip(url, num_frames=2, limits=VideoLimits(allow_url=True))) == EXPECTED
    assert asked == ["films.example"]
    assert server.requests[-1][1]["Host"] == f"films.example:{server.server_port}"


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, ["93.184.216.34", "10.0.0.1"])
    with pytest.raises(UnsupportedVideoError, match=r"leads to 10\.0\.0\.1"):
        load_clip("https://films.example/film.mp4", num_frames=2, limits=VideoLimits(allow_url=True))


def test_the_target_of_a_redirect_is_checked_too(server: FilmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "is_public", lambda text: text == "127.0.0.1")
    num_requests = len(server.requests)
    with pytest.raises(UnsupportedVideoError, match=r"127\.0\.0\.2.*not an address of the public internet"):
        load_clip(server.url("to-private"), num_frames=2, limits=VideoLimits(allow_url=True))
    assert len(server.requests) == num_requests + 1


def test_a_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(VideoError, match=r"the host films\.example is not found \(Name or service not known\)"):
        load_clip("https://films.example/film.mp4", num_frames=2, limits=ALLOWED)


def test_a_look_up_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(30) and [])
    with pytest.raises(VideoTimeoutError, match="connect_timeout_s"):
        load_clip("https://films.example/film.mp4", num_frames=2, limits=limits(connect_timeout_s=0.1))
    with pytest.raises(RequestTimeoutError):
        load_clip("https://films.example/", num_frames=2, limits=ALLOWED, interrupting=Deadline(0.1, None).interrupting)
    answered.set()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/film.mp4", "https://example.org/film.mp4"),
        (Path("https://example.org/film.mp4"), "https://example.org/film.mp4"),
        ("http:/example.org/film.mp4", "http://example.org/film.mp4"),
        ("HTTPS://example.org/film.mp4?token=secret#a", "https://example.org/film.mp4"),
    ],
    ids=str,
)
def test_a_url_is_refused_unless_it_is_allowed(url: str | Path, shown: str) -> None:
    with pytest.raises(UnsupportedVideoError) as caught:
        load_clip(url, num_frames=2)
    assert caught.value.message == f"{shown} is a URL, which the video limits do not allow to fetch"
    assert caught.value.remedy == "pass `allow_url=True`, or download the video and give its path"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org/film.mp4", "scheme ftp; only http and https are fetched: download the video"),
        ("file:///films/film.mp4", "scheme file; only http and https are fetched: give the path, /films/film.mp4"),
        (Path("file:///films/film.mp4"), "give the path, /films/film.mp4"),
        ("rtsp://camera.example/1", "scheme rtsp"),
        ("https://me:secret@example.org/film.mp4", "https://example.org/film.mp4 holds a name or password"),
        ("https://", "names no host"),
        ("https:///film.mp4", "names no host"),
        ("https://example.org:99999/", "not a valid URL"),
        ("https://exa mple.org/", "names no host"),
        ("https://[::1/", "not a valid URL"),
        (f"https://{'a' * 70}.org/", "not a valid URL"),
    ],
    ids=str,
)
def test_urls_that_cannot_be_fetched(url: str | Path, message: str) -> None:
    with pytest.raises(UnsupportedVideoError) as caught:
        load_clip(url, num_frames=2, limits=ALLOWED)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_check_before_the_work_fetches_nothing(server: FilmServer, plain: Path) -> None:
    num_requests = len(server.requests)
    check_path(server.url("film.mp4"), ALLOWED)
    check_path(plain, ALLOWED)
    assert len(server.requests) == num_requests
    with pytest.raises(UnsupportedVideoError, match="`allow_url=True`"):
        check_path(server.url("film.mp4"), VideoLimits())
    with pytest.raises(VideoError, match="cannot be opened"):
        check_path("missing.mp4", ALLOWED)


def test_a_windows_path_is_no_url() -> None:
    with pytest.raises(VideoError, match=r"C:/film\.mp4 cannot be opened"):
        load_clip("C:/film.mp4", num_frames=2)


@pytest.mark.parametrize("form", ["url", "bytes", "stream"])
def test_a_full_disk(server: FilmServer, plain: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """It came out as a bare OSError."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "wb"))  # noqa: SIM115
    with open(plain, "rb") as file:
        video = {"url": server.url("film.mp4"), "bytes": plain.read_bytes(), "stream": file}[form]
        with pytest.raises(
            VideoError, match=r"too full for a copy of the video \(No space left on device\); free some"
        ):
            load_clip(video, num_frames=2, limits=ALLOWED)


def test_no_folder_for_temporary_files(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(VideoError, match=r"no copy of the video can be made .*set TMPDIR"):
        load_clip(plain.read_bytes(), num_frames=2)


def test_limits_beyond_the_systems_are_none(server: FilmServer) -> None:
    endless = limits(download_timeout_s=float("inf"), connect_timeout_s=1e300, read_timeout_s=float("inf"))
    assert numbers(load_clip(server.url("film.mp4"), num_frames=2, limits=endless)) == EXPECTED


def test_descriptors_are_closed(server: FilmServer) -> None:
    load_clip(server.url("film.mp4"), num_frames=2, limits=ALLOWED)
    num_open = len(os.listdir("/proc/self/fd"))
    for path in ("film.mp4", "missing", "truncated", "no-http", "page", "loop", "to-file"):
        try:
            load_clip(server.url(path), num_frames=2, limits=ALLOWED)
        except VideoError:
            continue
    end_s = time.monotonic() + 5  # the server's own ends are closed by its threads
    while len(os.listdir("/proc/self/fd")) > num_open and time.monotonic() < end_s:
        time.sleep(0.02)
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_private_addresses_alone_are_no_permission() -> None:
    with pytest.raises(UsageError, match="`allow_url=True`"):
        VideoLimits(allow_private_url=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    line = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*line.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", path, "-out", f"{path}.crt"],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text("ascii") + Path(f"{path}.crt").read_text("ascii"), "ascii")
    return path


@pytest.fixture
def secure(plain: Path, certificate: Path) -> Iterator[FilmServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(plain.read_bytes(), context) as running:
        yield running


def test_https_checks_the_certificate(secure: FilmServer, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = secure.url("moved", "localhost").replace("http:", "https:")
    with pytest.raises(VideoError, match=r"no connection is possible .*certificate"):
        load_clip(url, num_frames=2, limits=ALLOWED)
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    assert numbers(load_clip(url, num_frames=2, limits=ALLOWED)) == EXPECTED
    with pytest.raises(VideoError, match=r"no connection is possible .*certificate"):
        load_clip(url.replace("localhost", "127.0.0.1"), num_frames=2, limits=ALLOWED)


def test_https_is_not_left_for_http(secure: FilmServer, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    url = secure.url("to-private", "localhost").replace("http:", "https:")
    with pytest.raises(UnsupportedVideoError, match=r"redirects from https to http://127\.0\.0\.2"):
        load_clip(url, num_frames=2, limits=ALLOWED)
