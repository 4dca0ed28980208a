"""The caller's side of the fork server (``blip3v.video_decoder.fork_server``) and of the processes that it forks."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from typing import BinaryIO

from blip3v.errors import VideoError
from blip3v.python_arguments import code_arguments
from blip3v.video.decoder_process import Launch, StartedDecoder
from blip3v.video_decoder.fork_server import FILE

__all__ = ["DecoderServer", "ForkedProcess", "can_serve"]

_CODE = "from blip3v.video_decoder.fork_server import main; main()"
# Forking takes milliseconds, and the imports before the first one a fraction of a second.
_MOST_FORK_S = 10.0
# Between the end of a process and the server's word about it.
_MOST_REPORT_S = 2.0


def can_serve() -> bool:
    """Whether this system can fork processes that are ended through descriptors. Linux can, unless it is forbidden."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):  # a Python may be built for an older system
        return False
    try:
        own = os.pidfd_open(os.getpid())
    except OSError:
        return False
    try:
        signal.pidfd_send_signal(own, 0)
    except OSError:
        return False
    finally:
        os.close(own)
    return True


class DecoderServer:
    """A fork server. Safe for several threads; of use only to the process that started it."""

    def __init__(self, how: Launch) -> None:
        """Starts the server, which then imports what decoding needs.

        Raises:
            VideoError: it cannot be started.
        """
        self._launch = how
        self._lock = threading.Lock()
        self._num_users = 1  # who started it, and each process that has not ended
        self._is_retired = False
        command = (how.command[0], *code_arguments(_CODE))
        try:
            self._control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with its, ExitStack() as on_error:
                on_error.callback(self._control.close)
                self._control.settimeout(_MOST_FORK_S)
                self._process = subprocess.Popen(
                    (*command, str(its.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # what is wrong with it is said by a process that a load starts itself
                    pass_fds=(its.fileno(),),
                    env=how.environment,
                    start_new_session=True,  # Ctrl-C reaches the caller only
                )
                on_error.pop_all()
        except OSError as error:
            raise VideoError(f"the fork server of decoder processes cannot be started: {error}") from error

    def serves(self, wanted: Launch) -> bool:
        """Whether its processes are as if they were started as ``wanted``, and it still runs."""
        return self._launch == wanted and self._process.poll() is None

    def take(self, file: int) -> StartedDecoder | None:
        """A new process that has the open ``file``; None if the server has ended, or cannot fork."""
        with self._lock:
            if self._is_retired:
                return None
            self._num_users += 1
        try:
            process = self._forked(file)
        except OSError:
            self.release()
            return None
        except BaseException:
            self.release()
            raise
        return StartedDecoder(launch=self._launch, process=process, file=FILE, files=None)

    def retire(self) -> None:
        """Forks no more, and ends with the last process."""
        with self._lock:
            if self._is_retired:
                return
            self._is_retired = True
        self.release()

    def release(self) -> None:
        """One user less."""
        with self._lock:
            self._num_users -= 1
            if self._num_users:
                return
        self._process.kill()
        self._process.wait()
        self._control.close()

    def abandon(self) -> None:
        """Closes this process's copy of the socket, in a process that was forked from the server's caller."""
        self._process.returncode = 0  # it is not a child of this process, which must not wait for it
        self._control.close()

    def _forked(self, file: int) -> ForkedProcess:
        with ExitStack() as theirs, ExitStack() as on_error:
            ends: list[int] = []
            pipes: list[BinaryIO] = []
            for is_input in (True, False, False):
                read, write = os.pipe()
                its, ours = (read, write) if is_input else (write, read)
                theirs.callback(os.close, its)
                ends.append(its)
                pipes.append(on_error.enter_context(os.fdopen(ours, "wb" if is_input else "rb")))
            report, its_report = socket.socketpair()
            on_error.enter_context(report)
            theirs.enter_context(its_report)
            socket.send_fds(self._control, [b"f"], [*ends, file, its_report.fileno()])
            theirs.close()  # so that the server's end is seen
            report.settimeout(_MOST_FORK_S)
            _, descriptors, _, _ = socket.recv_fds(report, 1, 1, socket.MSG_CMSG_CLOEXEC)
            if not descriptors:
                raise OSError("the fork server closed the report")
            on_error.pop_all()
        stdin, stdout, stderr = pipes
        return ForkedProcess(self, descriptors[0], report, stdin, stdout, stderr)


class ForkedProcess:
    """A process that is the server's child: what ``Popen`` is for one's own. ``kill`` may be called by any thread."""

    def __init__(
        self,
        server: DecoderServer,
        descriptor: int,
        report: socket.socket,
        stdin: BinaryIO,
        stdout: BinaryIO,
        stderr: BinaryIO,
    ) -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self._server = server
        self._lock = threading.Lock()
        self._descriptor = descriptor  # of the process
        self._report = report
        self._code: int | None = None  # None: it was not waited for

    def kill(self) -> None:
        """Ends the process at once, unless it has ended."""
        with self._lock:
            if self._code is None:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def wait(self) -> int:
        """Waits for the end of the process, from one thread.

        Returns:
            The exit code, as ``Popen`` has it; that of a killed process if the server was killed and cannot say.
        """
        if self._code is not None:
            return self._code
        ended = select.poll()
        ended.register(self._descriptor, select.POLLIN)
        ended.poll()
        self._report.settimeout(_MOST_REPORT_S)
        try:
            code = int(self._report.recv(16))
        except (OSError, ValueError):
            code = -signal.SIGKILL
        with self._lock:
            self._code = code
            os.close(self._descriptor)
        self._report.close()
        self._server.release()
        return code
