"""When the next request may leave: a steady rate for all threads, and pauses that the endpoint asks for."""

from __future__ import annotations

import threading
import time

from blip3v.errors import CancelledError

__all__ = ["Pace"]


class Pace:
    """Lets requests of several threads leave one after another.

    Args:
        requests_per_minute: how many; they are spread evenly. None: no limit.
    """

    def __init__(self, requests_per_minute: float | None) -> None:
        self._interval_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._lock = threading.Lock()
        self._next_s = 0.0  # when the next request may leave, of the clock time.monotonic

    def wait(self, stop: threading.Event) -> None:
        """Returns when a request may leave.

        Raises:
            CancelledError: ``stop`` was set.
        """
        while True:
            with self._lock:
                now_s = time.monotonic()
                left_s = self._next_s - now_s
                if left_s <= 0:
                    self._next_s = now_s + self._interval_s
                    break
            if stop.wait(left_s):
                break
        if stop.is_set():
            raise CancelledError("the request was cancelled before it was sent")

    def pause(self, seconds: float) -> None:
        """Holds all requests back for at least so long from now."""
        with self._lock:
            self._next_s = max(self._next_s, time.monotonic() + seconds)
