"""The caller's side of the decoder process (``blip3v.video_decoder``): starts it, talks to it, always ends it."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from blip3v.errors import (
    CorruptVideoError,
    UnsupportedVideoError,
    UsageError,
    VideoError,
    VideoTimeoutError,
    VideoTooLargeError,
)
from blip3v.python_arguments import code_arguments
from blip3v.video.interpreter import REMEDY, find_python
from blip3v.video_decoder.greeting import greeting
from blip3v.video_decoder.limits import VideoLimits

if TYPE_CHECKING:
    import socket

    from blip3v.video.decoder_server import ForkedProcess
    from blip3v.video.spare_decoder import SpareDecoder

__all__ = ["DecoderProcess", "Launch", "StartedDecoder", "launch", "oriented", "start_decoder", "widen"]

# What Popen fails with if the interpreter is at fault, and not the machine.
_NO_PROGRAM = (errno.EACCES, errno.ENOENT, errno.ENOEXEC, errno.ENOTDIR)
_MAX_GREETING_BYTES = 1024
_PIPE_BYTES = 1 << 20  # the most that Linux allows any user
_ERRORS = {
    kind.__name__: kind for kind in (CorruptVideoError, UnsupportedVideoError, VideoTimeoutError, VideoTooLargeError)
}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a decoder process is started."""

    command: tuple[str, ...]
    environment: dict[str, str]
    user: tuple[object, ...]  # with whose rights


@dataclass(frozen=True, kw_only=True)
class StartedDecoder:
    """A decoder process that was not asked anything yet."""

    launch: Launch
    process: subprocess.Popen[bytes] | ForkedProcess
    file: int | None  # descriptor of the file, in the process
    files: socket.socket | None  # through which the file goes to a process that was started before it was open

    def close_pipes(self) -> None:
        """Closes everything that leads to the process."""
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr, self.files):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                # Data that a dead process did not read does not matter.
                continue

    def end(self) -> None:
        """Kills the process, waits until it is gone and closes everything that leads to it."""
        self.process.kill()
        self.process.wait()
        self.close_pipes()


def launch() -> Launch:
    """How a load that begins now starts its process.

    Raises:
        UsageError: there is no Python to start it with.
    """
    return Launch(command=_command(), environment=_environment(), user=_user())


def start_decoder(*, file: int | None = None, ahead: bool = False) -> StartedDecoder:
    """Starts a decoder process.

    Args:
        file: an open file that the process inherits under the same number.
        ahead: it is for a load that is yet to come, whose file goes through a socket.

    Raises:
        UsageError: there is no Python to start it with.
        VideoError: the process cannot be started, or descriptors cannot be sent on this system.
    """
    how = launch()
    ours, its = _socket_pair() if ahead else (None, None)
    inherited = [its.fileno()] if its is not None else [] if file is None else [file]
    try:
        process = subprocess.Popen(
            how.command if its is None else (*how.command, str(its.fileno())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=inherited,
            env=how.environment,
            start_new_session=True,  # Ctrl-C reaches the caller only, which then ends this process
        )
    except OSError as error:
        if ours is not None:
            ours.close()
        python = how.command[0]
        message = f"the decoder process cannot be started with {python!r}: {error}"
        raise (UsageError(message, remedy=REMEDY) if error.errno in _NO_PROGRAM else VideoError(message)) from error
    finally:
        if its is not None:
            its.close()
    return StartedDecoder(launch=how, process=process, file=file, files=ours)


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    # Not needed for a single load.
    import socket

    if not hasattr(socket, "send_fds"):
        raise VideoError("this system cannot send an open file to another process")
    try:
        return socket.socketpair()
    except OSError as error:
        raise VideoError(f"there is no socket for a decoder process: {error}") from error


class DecoderProcess:
    """One decoder process for one load, as a context manager: it is dead and reaped when the block ends.

    If the process refuses, crashes or runs out of time, every method raises a ``VideoError`` that says why; if the
    Python that was started is not one that can decode, a ``UsageError``.
    """

    _largest_bytes: ClassVar[int] = 0
    _largest_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, limits: VideoLimits, *, file: int | None = None, spare: SpareDecoder | None = None) -> None:
        """Starts the process, or takes the spare one.

        Args:
            limits: limits on the load; the process bounds its own memory, this side bounds its time.
            file: descriptor of the file to decode; None: the requests name image files.
            spare: where a process may be that was started ahead.

        Raises:
            UsageError: there is no Python to start it with.
            VideoError: the process cannot be started.
        """
        self._limits = limits
        self._file = file
        self._timed_out = False
        self._greeted = False
        ahead = None if file is None or spare is None else spare.take(file)
        self._started = ahead or start_decoder(file=file)
        self._process, self._python = self._started.process, self._started.launch.command[0]
        widen(self._process.stdout)
        self._timer = threading.Timer(min(limits.timeout_s, threading.TIMEOUT_MAX), self._time_out)
        self._timer.daemon = True
        self._timer.start()

    def __enter__(self) -> DecoderProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        self._timer.join()  # it may be ending the process right now
        self._started.close_pipes()

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one request; ``open`` sends the first one."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            self._check_greeting()
            raise self._exit_error() from error

    def open(self, request: Mapping[str, Any]) -> None:
        """Sends the first request, with the file and the limits added to it."""
        fields = dict(request) | {"limits": dataclasses.asdict(self._limits)}
        if self._file is not None:
            fields["fd"] = self._started.file
        self.send(fields)
        if self._file is not None and self._started.files is not None:
            self._send_file(self._started.files, self._file)

    def _send_file(self, files: socket.socket, descriptor: int) -> None:
        import socket  # only for a process that was started ahead

        try:
            socket.send_fds(files, [b"f"], [descriptor])
        except OSError as error:
            self._check_greeting()
            raise self._exit_error() from error

    def receive(self) -> dict[str, Any]:
        """Returns the next answer."""
        assert self._process.stdout is not None
        self._check_greeting()
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._exit_error()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _ERRORS.get(answer["error"], VideoError)(answer["message"])
        with self._largest_lock:
            DecoderProcess._largest_bytes = max(self._largest_bytes, answer.get("peak_rss_bytes") or 0)
        return answer

    def receive_picture(self) -> tuple[dict[str, Any], np.ndarray]:
        """Returns the next answer and its picture, oriented for display, uint8 (H, W, 3)."""
        header = self.receive()
        picture_HWC = np.empty((header["height"], header["width"], 3), np.uint8)
        # Popen's type does not say that its pipe is buffered, and only a buffered one fills the whole array.
        pipe = cast(io.BufferedReader, self._process.stdout)
        if pipe.readinto(picture_HWC.reshape(-1).data) != picture_HWC.size:
            raise self._exit_error()
        return header, oriented(picture_HWC, header["orientation"])

    @classmethod
    def peak_rss_bytes(cls) -> int | None:
        """Largest resident memory of any one decoder process so far that ended its work.

        Returns:
            Bytes; None if there was none, or if the system does not tell (Linux does).
        """
        return cls._largest_bytes or None

    def kill(self) -> None:
        """Kills the process, from any thread; a method that is waiting for its answer raises a ``VideoError``."""
        self._process.kill()

    def _time_out(self) -> None:
        self._timed_out = True
        self.kill()

    def _check_greeting(self) -> None:
        """Reads what the process says first, and refuses one that is not this blip3v on this Python."""
        if self._greeted:
            return
        assert self._process.stdout is not None
        line = self._process.stdout.readline(_MAX_GREETING_BYTES)
        if not line:
            raise self._exit_error()
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if found != greeting():
            runs = " on ".join(map(str, found.values())) if isinstance(found, dict) else repr(line[:80])
            raise UsageError(
                f"{self._python!r} is not the Python of this blip3v: it answered {runs}, and "
                f"{' on '.join(greeting().values())} is needed",
                remedy=REMEDY,
            )
        self._greeted = True

    def _exit_error(self) -> VideoError | UsageError:
        """The error that says why the process ended without an answer."""
        assert self._process.stderr is not None
        stderr = self._process.stderr.read().decode("utf-8", "replace").strip()
        code = self._process.wait()
        if self._timed_out or code == -signal.SIGXCPU:
            limit = f"took longer than {self._limits.timeout_s:g} s, the limit (timeout_s)"
            if not self._greeted:
                return VideoTimeoutError(
                    f"starting the decoder process {self._python!r} {limit}", remedy=f"use a higher limit, or {REMEDY}"
                )
            return VideoTimeoutError(f"decoding {limit}; use a shorter video, or a higher limit")
        if code == -signal.SIGKILL:
            return VideoTooLargeError(
                "the decoder process was killed from outside, as the system does when memory runs out; "
                "use a smaller video, or free memory"
            )
        if code < 0:
            return CorruptVideoError(
                f"the decoder process crashed with {signal.Signals(-code).name}: the file is damaged or hostile; "
                "convert it with a tool that you trust, or leave it out"
            )
        last = stderr.splitlines()[-1] if stderr else "no message"
        message = f"the decoder process ended with exit code {code} and without an answer ({last})"
        if not self._greeted:
            return UsageError(f"{self._python!r} cannot decode videos: {message}", remedy=REMEDY)
        return VideoError(message)


def oriented(picture_HWC: np.ndarray, orientation: Sequence[bool]) -> np.ndarray:
    """A decoded picture as players show it: [transpose, flip left-right, flip top-bottom], in that order."""
    transpose, flip_across, flip_down = orientation
    if transpose:
        picture_HWC = picture_HWC.transpose(1, 0, 2)
    if flip_across:
        picture_HWC = picture_HWC[:, ::-1]
    if flip_down:
        picture_HWC = picture_HWC[::-1]
    return np.ascontiguousarray(picture_HWC)


def widen(pipe: IO[bytes] | None) -> None:
    """Lets a pipe hold more, so that decoding goes on while a picture waits to be read, where the system allows it."""
    if pipe is not None and sys.platform == "linux":
        # For files alone, and not on every system.
        import fcntl

        with suppress(OSError):  # the user has many such pipes
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _command() -> tuple[str, ...]:
    return find_python(), *code_arguments("from blip3v.video_decoder.__main__ import main; main()")


def _user() -> tuple[object, ...]:
    """The rights of the caller, which it may give up after a process was started ahead."""
    return () if os.name == "nt" else (os.getuid(), os.geteuid(), os.getgid(), os.getegid(), tuple(os.getgroups()))


def _environment() -> dict[str, str]:
    """The caller's environment, with its import path, so that the process finds the same blip3v and av."""
    paths = [os.path.abspath(path) for path in sys.path if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "1"}
