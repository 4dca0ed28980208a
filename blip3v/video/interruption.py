"""How a load is ended early from another thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from blip3v.errors import VideoError, VideoTimeoutError

__all__ = ["Interrupting", "between_steps", "uninterrupted"]

# Given a function that ends a block early, from any thread, returns the context manager to run that block in.
Interrupting = Callable[[Callable[[], None]], AbstractContextManager[None]]


def uninterrupted(interrupt: Callable[[], None]) -> AbstractContextManager[None]:
    """The ``Interrupting`` of a load that nobody ends early."""
    return nullcontext()


@contextmanager
def between_steps(interrupting: Interrupting, timeout_s: float) -> Iterator[Callable[[str], None]]:
    """Yields the check of work in steps, such as reading what a caller gives piece by piece.

    It is called after each step with what was read so far, for example ``"7 frames"``.

    Args:
        interrupting: has the next check raise.
        timeout_s: seconds that the block may take.

    Raises:
        VideoError: by the check, after an interruption.
        VideoTimeoutError: by the check, over ``timeout_s``.
    """
    stopped, start_s = threading.Event(), time.monotonic()

    def check(done: str) -> None:
        if stopped.is_set():
            raise VideoError(f"reading was interrupted after {done}")
        if time.monotonic() - start_s > timeout_s:
            raise VideoTimeoutError(
                f"reading {done} took longer than {timeout_s:g} s, the limit (timeout_s); give fewer, or a higher limit"
            )

    with interrupting(stopped.set):
        yield check
