"""What the decoder process does before it is asked, if it is started ahead of the load that will use it.

Its file is not open yet, so that cannot be inherited: the descriptor comes through a socket.
"""

from __future__ import annotations

import signal
import socket
from contextlib import suppress

__all__ = ["IDLE_S", "prepare", "received_file", "start_waiting", "stop_waiting"]

# A process that nobody asks anything for so long ends by itself, also if its caller hangs.
IDLE_S = 600


def prepare() -> None:
    """Imports what decoding needs."""
    with suppress(ImportError):  # the load meets it again, and says so
        import blip3v.video_decoder.pick  # noqa: F401 (for the load)


def received_file(number: int) -> int:
    """The descriptor that was sent with the request, through the socket that is ``number``."""
    _, (descriptor,), _, _ = socket.recv_fds(socket.socket(fileno=number), 1, 1)
    return descriptor


def start_waiting() -> None:
    """Ends the process if nothing is asked within ``IDLE_S``."""
    signal.alarm(IDLE_S)


def stop_waiting() -> None:
    """A request has come: from here on its limits hold."""
    signal.alarm(0)
