"""A process that has imported what decoding needs, and forks a decoder process for each file.

It reads no file and has no threads: what a video can do, it does to the one process that decodes it, whose limits and
protocol are those of ``__main__.py``. It exists only where the system has ``fork`` and process descriptors (Linux).

    in   b"f" + descriptors of stdin, stdout, stderr, file, report    decode the file, descriptor ``FILE`` there
    out  b"p" + a descriptor of the process                           on ``report``
    out  b"-9"                                                        on ``report``: its exit code

A process whose report is closed by the caller is killed. The server ends when its caller does, however that ends, or
when nobody has asked anything for ``IDLE_S``.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from blip3v.video_decoder.__main__ import serve
from blip3v.video_decoder.ahead import IDLE_S, prepare

__all__ = ["FILE", "main"]

FILE = 3  # the descriptor of the file to decode, in the process that decodes it
_NUM_DESCRIPTORS = 5


@dataclass(frozen=True)
class _Child:
    pid: int
    process: int  # its descriptor, readable when it has ended
    report: socket.socket


def main() -> None:
    """Serves requests from the socket whose number is the first argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    prepare()
    # What exists now is shared with the processes to come, and stays shared if it is never looked at.
    gc.collect()
    gc.freeze()
    _Server(control).run()


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._children: dict[int, _Child] = {}  # by each of the two descriptors that are waited for
        self._is_asked = True  # whether requests may come

    def run(self) -> None:
        """Serves until the caller has gone and every process has ended, or nobody asks."""
        while self._is_asked or self._children:
            ready = {descriptor for descriptor, _ in self._poll.poll(None if self._children else IDLE_S * 1000)}
            if not ready:
                return
            for descriptor in ready:
                if descriptor in self._children:
                    self._attend(self._children[descriptor], descriptor)
            # Last, since what it opens may get the number of what was closed just now.
            if self._control.fileno() in ready:
                self._take_request()

    def _take_request(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 1, _NUM_DESCRIPTORS)
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._poll.unregister(self._control)
            self._is_asked = False
            return
        try:
            if len(descriptors) == _NUM_DESCRIPTORS:  # fewer: this process may not open more
                self._start(descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _start(self, descriptors: list[int]) -> None:
        """Forks. If that fails, the caller finds its report closed without a word, and starts a process itself."""
        try:
            pid = os.fork()
        except OSError:
            return
        if pid == 0:
            _serve_file(descriptors, highest=max(*descriptors, *self._children, self._control.fileno()))
        try:
            child = _Child(pid, os.pidfd_open(pid), socket.socket(fileno=os.dup(descriptors[-1])))
        except OSError:  # this process may not open more
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        for descriptor, events in ((child.process, select.POLLIN), (child.report.fileno(), select.POLLHUP)):
            self._children[descriptor] = child
            self._poll.register(descriptor, events)
        with suppress(OSError):  # the caller has gone, which the next round sees
            socket.send_fds(child.report, [b"p"], [child.process])

    def _attend(self, child: _Child, descriptor: int) -> None:
        if descriptor != child.process:
            # Not reaped yet, so that the number is still this process's.
            os.kill(child.pid, signal.SIGKILL)
            self._poll.unregister(descriptor)
            return
        _, status = os.waitpid(child.pid, 0)
        with suppress(OSError):
            child.report.send(str(os.waitstatus_to_exitcode(status)).encode())
        for each in (child.process, child.report.fileno()):
            del self._children[each]
            with suppress(KeyError):
                self._poll.unregister(each)
        os.close(child.process)
        child.report.close()


def _serve_file(descriptors: list[int], highest: int) -> NoReturn:
    """Decodes one file in this process, which has nothing else open, and exits."""
    code = 1
    try:
        os.setsid()
        for number, descriptor in enumerate(descriptors[:-1]):
            os.dup2(descriptor, number)
        os.closerange(FILE + 1, highest + 1)
        serve()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
