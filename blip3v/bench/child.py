"""A child process that answers lines with lines: what it is started in, how it is asked, and how it ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

__all__ = ["ask", "child_environment", "end"]


def child_environment() -> dict[str, str]:
    """This process's environment and import path, so that a child finds the same blip3v."""
    paths = [os.path.abspath(path) for path in sys.path if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def ask(process: subprocess.Popen[str], line: str) -> str | None:
    """Sends a line and returns the one that comes back; None if the process ended without a whole one."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # its output may still say why it ended
        process.stdin.write(line + "\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    return answer if answer.endswith("\n") else None


def end(process: subprocess.Popen[str], timeout_s: float) -> None:
    """Closes its input, at whose end it ends by itself; kills it if it does not within ``timeout_s``."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.close()
    except BrokenPipeError:
        process.kill()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
