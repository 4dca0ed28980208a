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


def prepare(descriptor: int) -> socket.socket:
    """Imports what decoding needs, and returns the socket that is ``descriptor``."""
    with suppress(ImportError):  # the load meets it again, and says so
        import blip3v.video_decoder.pick  # noqa: F401 (for the load)
    return socket.socket(fileno=descriptor)


def received_file(files: socket.socket) -> int:
    """The descriptor that was sent with the request."""
    _, (descriptor,), _, _ = socket.recv_fds(files, 1, 1)
    return descriptor


def start_waiting() -> None:
    """Ends the process if nothing is asked within ``IDLE_S``."""
    signal.alarm(IDLE_S)


def stop_waiting() -> None:
    """A request has come: from here on its limits hold."""
    signal.alarm(0)
