"""Ctrl-C that cancels a request instead of ending the program."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from blip3v.errors import CancelledError
from blip3v.runtime import CancelToken

__all__ = ["cancelled_by_ctrl_c", "interrupted_by_ctrl_c"]


@contextmanager
def cancelled_by_ctrl_c() -> Iterator[CancelToken]:
    """A token that Ctrl-C cancels while the block runs; a second Ctrl-C raises ``KeyboardInterrupt`` as always.

    Python runs a signal handler only between two steps of its own, so that a call into an engine would first run to
    its end. The byte that a signal writes to the wakeup descriptor wakes a thread at once.
    """
    cancel = CancelToken()
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or somebody else's
        yield cancel
        return
    num_presses = 0

    def press(*_: object) -> None:
        nonlocal num_presses
        num_presses += 1
        if num_presses > 1:
            raise KeyboardInterrupt

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(reader, cancel), daemon=True)
    watcher.start()
    signal.signal(signal.SIGINT, press)
    earlier = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield cancel
    finally:
        signal.set_wakeup_fd(earlier)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        writer.close()
        watcher.join()
        reader.close()


@contextmanager
def interrupted_by_ctrl_c() -> Iterator[CancelToken]:
    """As ``cancelled_by_ctrl_c``, for a block that is the whole command: it ends with ``KeyboardInterrupt``."""
    with cancelled_by_ctrl_c() as cancel:
        try:
            yield cancel
        except CancelledError:
            raise KeyboardInterrupt from None


def _watch(reader: socket.socket, cancel: CancelToken) -> None:
    while number := reader.recv(1):
        if number[0] == signal.SIGINT:
            cancel.cancel()
