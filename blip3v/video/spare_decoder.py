"""A decoder process that is started before the load that will use it, since its start is most of a short load."""

from __future__ import annotations

import os
import threading
import time
import weakref
from types import TracebackType

from blip3v.errors import UsageError, VideoError
from blip3v.video.decoder_process import StartedDecoder, launch, start_decoder

__all__ = ["SpareDecoder"]

# A process may end by itself after this time; one that is younger lives long enough to be asked.
_MOST_AGE_S = 540.0


class SpareDecoder:
    """Keeps at most one decoder process ahead. Each still decodes one file, within that load's limits, and ends.

    Give it to every ``load_clip`` and close it at the end; it is a context manager. Loads in several threads may share
    it: one takes the spare process, the others start their own. The second load starts the first spare one, so that a
    single load pays for none. Where descriptors cannot be sent to a process, as on Windows, every load starts its own.

    A spare process waits without using CPU, for at most ten minutes. It ends with its caller, however that ends. A
    process that is forked from the caller does not use it, and starts its own.
    """

    def __init__(self) -> None:
        self._slot = _Slot()
        # Also if nobody calls close, and when the interpreter exits.
        self._finalizer = weakref.finalize(self, _Slot.close, self._slot)

    def take(self) -> StartedDecoder | None:
        """The spare process, which then belongs to the caller; None if there is none that a load could use now.

        Raises:
            UsageError: there is no Python to start a decoder process with.
        """
        return self._here().take()

    def refill(self) -> None:
        """Starts a spare process, unless there is one, only one load has begun, or this is closed.

        A process that cannot be started is no error here: the load that needs one says so.
        """
        self._here().refill()

    def close(self) -> None:
        """Ends the spare process. Loads go on, each with a process of its own. May be called more than once."""
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
        self._spare: StartedDecoder | None = None
        self._started_s = 0.0
        self._num_loads = 0
        self._closed = False

    def take(self) -> StartedDecoder | None:
        wanted = launch()
        with self._lock:
            self._num_loads += 1
            spare, self._spare = self._spare, None
            is_young = time.monotonic() - self._started_s < _MOST_AGE_S
        if spare is None:
            return None
        # The Python, the import path or the environment may have been changed since.
        if is_young and spare.launch == wanted and spare.process.poll() is None:
            return spare
        spare.end()
        return None

    def refill(self) -> None:
        with self._lock:
            if self._spare is not None or self._closed or self._num_loads < 2:
                return
            try:
                self._spare = start_decoder(ahead=True)
            except (VideoError, UsageError):
                return
            self._started_s = time.monotonic()

    def close(self) -> None:
        if self.pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.end()

    def abandon(self) -> None:
        """Closes this process's copies of the pipes to a spare process that is another's."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.process.returncode = 0  # it is not a child of this process, which must not wait for it
            spare.close_pipes()
