"""Cancellation and timeouts of a request: checked between two steps of it, and able to interrupt a long one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from blip3v.errors import CancelledError, RequestError, RequestTimeoutError
from blip3v.runtime.checks import check_timeout

__all__ = ["CancelToken", "Deadline", "held"]

# How long a wait for a lock goes on after its deadline.
_POLL_S = 0.02


class CancelToken:
    """Cancels a request from another thread: it ends with ``CancelledError``.

    What is running is interrupted: decoding of the file, the video encoder and prefill stop within one operator, and
    generation within one token.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._interrupts: dict[object, Callable[[], None]] = {}

    def cancel(self) -> None:
        """Cancels the request. May be called from any thread, any number of times."""
        with self._lock:
            self._event.set()
            for interrupt in self._interrupts.values():
                interrupt()

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._event.is_set()

    @contextmanager
    def calling(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Has ``cancel`` call ``interrupt`` while the block runs, and never after it."""
        key = object()
        with self._lock:
            self._interrupts[key] = interrupt
        try:
            yield
        finally:
            with self._lock:
                del self._interrupts[key]


class Deadline:
    """When one running request has to end: at its timeout or when it is cancelled, whichever comes first.

    Args:
        timeout_s: seconds from now; None: no limit.
        cancel: cancels the request; None: nobody does.

    Raises:
        RequestError: one of them is something else.
    """

    def __init__(self, timeout_s: float | None = None, cancel: CancelToken | None = None) -> None:
        check_timeout(timeout_s)
        if cancel is not None and not isinstance(cancel, CancelToken):
            raise RequestError(f"cancel has type {type(cancel).__name__}; a CancelToken or None is expected")
        self._timeout_s = timeout_s
        self._cancel = cancel
        self._start_s = time.perf_counter()

    def check(self) -> None:
        """Raises if the request has to end.

        Raises:
            CancelledError: it was cancelled.
            RequestTimeoutError: it is out of time.
        """
        if self._cancel is not None and self._cancel.cancelled:
            raise CancelledError(f"the request was cancelled after {self.elapsed_s:.2f} s")
        left = self.remaining_s
        if left is not None and left <= 0:
            raise RequestTimeoutError(
                f"the request took longer than {self._timeout_s:g} s",
                remedy="allow more time with `timeout_s`, or fewer tokens with `max_new_tokens`",
            )

    @contextmanager
    def interrupting(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Calls ``interrupt`` from another thread if the request has to end while the block runs; never after it.

        Args:
            interrupt: makes the block raise soon. Must return at once.

        Raises:
            CancelledError, RequestTimeoutError: as ``check``, in place of what the interrupted block raised.
        """
        with ExitStack() as stack:
            if self._cancel is not None:
                stack.enter_context(self._cancel.calling(interrupt))
            left = self.remaining_s
            if left is not None:
                stack.enter_context(_timer(left, interrupt))
            self.check()
            try:
                yield
            except Exception:
                self.check()
                raise

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self._start_s

    @property
    def remaining_s(self) -> float | None:
        """Seconds left; None: no limit."""
        return None if self._timeout_s is None else self._timeout_s - self.elapsed_s


@contextmanager
def held(lock: threading.Lock, deadline: Deadline) -> Iterator[None]:
    """Holds ``lock`` while the block runs; the deadline ends the wait for it.

    Raises:
        CancelledError, RequestTimeoutError: from ``deadline``.
    """
    deadline.check()
    while not lock.acquire(timeout=_POLL_S):
        deadline.check()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _timer(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(min(max(0.0, seconds), threading.TIMEOUT_MAX), call)  # longer waits raise in the thread
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may be calling right now
