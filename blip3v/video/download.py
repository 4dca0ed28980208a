"""Downloads a video over http or https, for callers that allow it in their limits.

A service may be handed any URL, so every host name is resolved here, each address is checked, and the connection goes
to the address that was checked: a second look-up could give another. For the same reason the proxies of the
environment are not used. Only the standard library is. Progress is logged at INFO.
"""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO
from urllib.parse import urljoin

import blip3v
from blip3v.errors import UnsupportedVideoError, VideoError, VideoTimeoutError
from blip3v.units import format_bytes, format_duration
from blip3v.video.interruption import Interrupting
from blip3v.video.url import PORTS, Target, is_public, printable, shown, target_of
from blip3v.video_decoder.limits import VideoLimits

__all__ = ["download"]

_logger = logging.getLogger(__name__)

_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 1 << 18
_PROGRESS_S = 5.0
_POLL_S = 0.02
_LONGEST_S = 1e6  # that the system takes as a time limit of a socket


def download(url: str, file: BinaryIO, limits: VideoLimits, interrupting: Interrupting) -> None:
    """Writes what ``url`` names to ``file``.

    Args:
        url: http or https; redirects are followed, and each target is checked as ``url`` is.
        file: open for writing.
        limits: ``max_bytes``, ``max_redirects``, ``allow_private_url``, and the limits on the time.
        interrupting: ends the download from another thread.

    Raises:
        UnsupportedVideoError: a URL that cannot or may not be fetched, or one of a web page.
        VideoTooLargeError: over ``max_bytes``.
        VideoTimeoutError: over ``download_timeout_s``, ``connect_timeout_s`` or ``read_timeout_s``.
        VideoError: the host cannot be reached, answers with an error, or ends too early; or interrupted.
        OSError: ``file`` cannot be written.
    """
    _Download(url, file, limits).run(interrupting)


class _StoppedError(Exception):
    """The download was ended by its timer, or from another thread."""


class _Download:
    """One download. ``stop`` may be called from any thread; all else runs in one."""

    def __init__(self, url: str, file: BinaryIO, limits: VideoLimits) -> None:
        self._url, self._file, self._limits = url, file, limits
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._stopped = False
        self._late = False
        self._num_bytes = 0
        self._start_s = time.monotonic()

    def run(self, interrupting: Interrupting) -> None:
        timer = threading.Timer(_clamped(self._limits.download_timeout_s), self._stop_late)
        timer.daemon = True
        timer.start()
        try:
            with interrupting(self.stop), self._mapped_errors():
                self._follow()
        finally:
            timer.cancel()
            timer.join()  # it may be stopping right now

    def stop(self) -> None:
        """Ends the download: a call that waits for the network returns at once."""
        with self._lock:
            self._stopped = True
            if self._socket is not None:
                with suppress(OSError):
                    # Not the method of an SSL socket, which takes its state from under the thread that reads.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _stop_late(self) -> None:
        self._late = True
        self.stop()

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        name = shown(self._url)
        try:
            yield
            self._check()
        except (_StoppedError, _NetworkError) as error:
            limits = self._limits
            if self._late:
                raise VideoTimeoutError(
                    f"{name} was not downloaded within {limits.download_timeout_s:g} s, the limit "
                    f"(download_timeout_s); {format_bytes(self._num_bytes)} came; download it first, or raise the limit"
                ) from error
            if isinstance(error, _StoppedError) or self._stopped:
                raise VideoError(f"the download of {name} was interrupted") from error
            raise error.public(name) from error.__cause__

    def _follow(self) -> None:
        target = target_of(self._url)
        for _ in range(self._limits.max_redirects + 1):
            following = self._fetch(target)
            if following is None:
                return
            if target.scheme == "https" and following.scheme == "http":
                raise UnsupportedVideoError(
                    f"{shown(target.url)} redirects from https to {shown(following.url)}, which is not encrypted; "
                    "give that URL itself if you trust it"
                )
            target = following
        raise VideoError(
            f"{shown(self._url)} redirects more than {self._limits.max_redirects} times, the limit (max_redirects); "
            "give the URL of the video itself"
        )

    def _fetch(self, target: Target) -> Target | None:
        """Writes the body that ``target`` answers with; returns where it redirects to instead."""
        connection = self._connect(target)
        try:
            headers = {"User-Agent": f"blip3v/{blip3v.__version__}", "Accept": "*/*", "Connection": "close"}
            with _network("it cannot be asked"):
                connection.request("GET", target.path, headers=headers)
                response = connection.getresponse()
            with response:
                self._check()
                location = response.getheader("Location")
                if response.status in _REDIRECTS and location:
                    return target_of(urljoin(target.url, location))
                self._check_response(response, target)
                self._save(response, target)
                return None
        finally:
            with self._lock:
                self._socket = None
            connection.close()

    def _connect(self, target: Target) -> http.client.HTTPConnection:
        addresses = self._resolve(target)
        failure: OSError | None = None
        for family, address in addresses:
            self._check()
            try:
                connected = self._open(family, address, target)
            except OSError as error:
                self._check()
                failure = error
                continue
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.default_port = PORTS[target.scheme]  # it leaves the port out of the header "Host"
            connection.sock = connected
            return connection
        assert failure is not None
        with _network("no connection is possible"):
            raise failure

    def _open(self, family: int, address: tuple[str, int], target: Target) -> socket.socket:
        connected = socket.socket(family, socket.SOCK_STREAM)
        try:
            connected.settimeout(_clamped(self._limits.connect_timeout_s))
            self._adopt(connected)
            connected.connect(address)
            if target.scheme == "https":
                context = ssl.create_default_context()
                connected = context.wrap_socket(connected, server_hostname=target.host, do_handshake_on_connect=False)
                self._adopt(connected)
                connected.do_handshake()
            connected.settimeout(_clamped(self._limits.read_timeout_s))
        except BaseException:
            connected.close()
            raise
        return connected

    def _adopt(self, connected: socket.socket) -> None:
        with self._lock:
            self._socket = connected
            if self._stopped:
                raise _StoppedError

    def _resolve(self, target: Target) -> list[tuple[int, tuple[str, int]]]:
        """Family and address of the host, all checked. The system's look-up cannot be ended, so a thread does it."""
        results: list[tuple[int, tuple[str, int]]] = []
        failures: list[Exception] = []

        def look_up() -> None:
            try:
                for family, _, _, _, address in socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM):
                    results.append((family, address))  # type: ignore[arg-type]  # of AF_INET6 it has four parts
            except (OSError, UnicodeError) as error:
                failures.append(error)

        thread = threading.Thread(target=look_up, daemon=True)
        thread.start()
        end_s = time.monotonic() + self._limits.connect_timeout_s
        while thread.is_alive():
            thread.join(_POLL_S)
            self._check()
            if time.monotonic() > end_s:
                failures.append(TimeoutError("the look-up of its name timed out"))
                break
        with _network(f"the host {target.host} is not found"):
            if failures:
                raise failures[0]
        for _, address in results:
            self._check_address(str(address[0]), target)
        return results

    def _check_address(self, text: str, target: Target) -> None:
        if not self._limits.allow_private_url and not is_public(text):
            raise UnsupportedVideoError(
                f"{shown(target.url)} leads to {text}, which is not an address of the public internet",
                remedy="if it is to be reached, pass `allow_private_url=True`",
            )

    def _check_response(self, response: http.client.HTTPResponse, target: Target) -> None:
        name = shown(target.url)
        if response.status != http.HTTPStatus.OK:
            raise VideoError(
                f"{name} answers {response.status} {printable(response.reason)}; check the URL, or download the video"
            )
        kind = response.headers.get_content_type() if "Content-Type" in response.headers else ""
        if kind in ("text/html", "application/xhtml+xml"):
            raise UnsupportedVideoError(f"{name} is a web page ({kind}); give the URL of the video file itself")
        coding = response.getheader("Content-Encoding", "identity")
        if coding.lower() != "identity":
            raise UnsupportedVideoError(
                f"{name} comes compressed ({printable(coding)}), which was not asked for; download it"
            )

    def _save(self, response: http.client.HTTPResponse, target: Target) -> None:
        name, expected = shown(target.url), response.length
        self._limits.check_bytes(expected or 0, name)
        size = "of unknown size" if expected is None else format_bytes(expected)
        _logger.info("downloading %s, %s", name, size)
        shown_s = time.monotonic()
        while chunk := self._read(response):
            self._num_bytes += len(chunk)
            self._limits.check_bytes(self._num_bytes, f"{name}, so far,")
            self._file.write(chunk)
            if time.monotonic() - shown_s >= _PROGRESS_S:
                shown_s = time.monotonic()
                _logger.info("downloading %s, %s so far", size, format_bytes(self._num_bytes))
        if expected is not None and self._num_bytes < expected:
            raise VideoError(
                f"{name} ends after {self._num_bytes} of {expected} bytes: the connection was lost; try again"
            )
        elapsed_s = time.monotonic() - self._start_s
        _logger.info("downloaded %s in %s", format_bytes(self._num_bytes), format_duration(elapsed_s))

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        with _network("it stops in the middle"):
            chunk = response.read1(_CHUNK_BYTES)
        self._check()
        return chunk

    def _check(self) -> None:
        if self._stopped:
            raise _StoppedError


def _clamped(seconds: float) -> float:
    return min(seconds, _LONGEST_S)


class _NetworkError(Exception):
    """Whatever the network, TLS or the protocol raised; ``public`` is the error for the caller."""

    def __init__(self, problem: str, cause: Exception) -> None:
        super().__init__(problem)
        self._problem = problem
        self.__cause__ = cause

    def public(self, name: str) -> VideoError:
        cause = self.__cause__
        reason = printable(str(getattr(cause, "strerror", None) or cause or type(cause).__name__))
        if isinstance(cause, TimeoutError):
            return VideoTimeoutError(
                f"{name}: {self._problem} ({reason}); the limits are connect_timeout_s and read_timeout_s; "
                "try again, or download the video"
            )
        return VideoError(f"{name}: {self._problem} ({reason}); check the URL, or download the video")


@contextmanager
def _network(problem: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
        raise _NetworkError(problem, error) from error
