"""Decoder processes that are started before the load that will use them, since the start is most of a short load."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import weakref
from types import TracebackType
from typing import TYPE_CHECKING

from blip3v.errors import UsageError, VideoError
from blip3v.video.decoder_process import Launch, StartedDecoder, launch, start_decoder

if TYPE_CHECKING:
    from blip3v.video.decoder_server import DecoderServer

__all__ = ["SpareDecoder"]

# A process may end by itself after this time; one that is younger lives long enough to be asked.
_MOST_AGE_S = 540.0


class SpareDecoder:
    """Keeps one process ahead of the loads. Each file is still decoded by a process of its own, within its limits.

    Give it to every ``load_clip`` and close it at the end; it is a context manager. Loads in several threads may share
    it. On Linux the process is a fork server: it has imported what decoding needs, reads no file, and forks the process
    of each load. Elsewhere it is the decoder process of the next load, and its place is filled again; other loads in
    the same moment start their own. Where descriptors cannot be sent to a process, as on Windows, every load does. The
    second load starts it, so that a single load pays for none, unless ``start`` is called.

    It waits without using CPU, for at most ten minutes. It ends with its caller, however that ends. A process that is
    forked from the caller does not use it, and starts its own.
    """

    def __init__(self) -> None:
        self._slot = _Slot()
        # Also if nobody calls close, and when the interpreter exits.
        self._finalizer = weakref.finalize(self, _Slot.close, self._slot)

    def take(self, file: int) -> StartedDecoder | None:
        """A process for the open ``file``, which then belongs to the caller; None if none is ahead.

        Raises:
            UsageError: there is no Python to start a decoder process with.
        """
        return self._here().take(file)

    def start(self) -> None:
        """Starts the process ahead now, for a caller who is about to load a file; unless it runs, or this is closed.

        A process that cannot be started is no error here: the load that needs one says so.
        """
        self._here().start()

    def refill(self) -> None:
        """Starts the process ahead, unless there is one, only one load has begun, or this is closed.

        A process that cannot be started is no error here: the load that needs one says so.
        """
        self._here().refill()

    def close(self) -> None:
        """Ends the process ahead. Loads go on, each with a process of its own. May be called more than once."""
        self._here().close()

    def __enter__(self) -> SpareDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _here(self) -> _Slot:
        if self._slot.pid != os.getpid():
            self._slot.abandon()
            self._slot = _Slot()
            self._finalizer = weakref.finalize(self, _Slot.close, self._slot)
        return self._slot


class _Slot:
    """What belongs to one process: a forked one holds a lock that nobody will release, and another's child."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._ahead: DecoderServer | _Spare | None = None
        self._num_loads = 0
        self._closed = False

    def take(self, file: int) -> StartedDecoder | None:
        wanted = launch()
        with self._lock:
            self._num_loads += 1
            ahead = self._ahead
            if isinstance(ahead, _Spare):
                self._ahead = None
        if ahead is None:
            return None
        # The Python, the import path or the environment may have been changed since.
        started = ahead.take(file) if ahead.serves(wanted) else None
        if started is None:
            self._drop(ahead)
        return started

    def refill(self) -> None:
        if self._num_loads > 1:
            self.start()

    def start(self) -> None:
        with self._lock:
            if self._ahead is not None or self._closed:
                return
            try:
                self._ahead = _start()
            except (VideoError, UsageError):
                return

    def close(self) -> None:
        if self.pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.retire()

    def abandon(self) -> None:
        """Closes this process's copies of what leads to a process that is another's child."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.abandon()

    def _drop(self, ahead: DecoderServer | _Spare) -> None:
        with self._lock:
            if self._ahead is ahead:
                self._ahead = None
        ahead.retire()


def _start() -> DecoderServer | _Spare:
    # With sockets and polling, which a single load does not need.
    from blip3v.video.decoder_server import DecoderServer, can_serve

    return DecoderServer(launch()) if can_serve() else _Spare()


class _Spare:
    """The decoder process of the next load."""

    def __init__(self) -> None:
        self._started = start_decoder(ahead=True)
        self._started_s = time.monotonic()

    def serves(self, wanted: Launch) -> bool:
        is_young = time.monotonic() - self._started_s < _MOST_AGE_S
        return is_young and self._started.launch == wanted and self._process.poll() is None

    def take(self, file: int) -> StartedDecoder:
        return self._started

    def retire(self) -> None:
        self._started.end()

    def abandon(self) -> None:
        self._process.returncode = 0  # it is not a child of this process, which must not wait for it
        self._started.close_pipes()

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        process = self._started.process
        assert isinstance(process, subprocess.Popen)
        return process
