"""A child process that answers lines with lines: what it is started in, how it is asked, and how it ends.

``Child`` and ``serve`` are its two sides where the lines are JSON objects.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from blip3v import errors

__all__ = ["Child", "ask", "child_environment", "end", "serve"]

_Self = TypeVar("_Self", bound="Child")
_END_TIMEOUT_S = 10.0


class Child:
    """A process that answers JSON values with JSON values; a context manager. See ``serve`` for its other side.

    Args:
        command: that starts it.
        doing: what it does, for the error if it dies: "measured my-bundle".
    """

    def __init__(self, command: tuple[str, ...], doing: str) -> None:
        self._doing = doing
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is for the parent, which then ends this process
        )

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        end(self._process, _END_TIMEOUT_S)

    def exchange(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Sends one JSON object and returns the one that comes back.

        Raises:
            BackendError: the process ended without an answer.
            Blip3vError: what was raised in it.
        """
        answer = ask(self._process, json.dumps(values))
        if answer is None:
            raise errors.BackendError(
                f"the process that {self._doing} ended with code {self._process.wait()} in the middle of a "
                "sample; code -9 usually means that memory ran out: measure fewer bundles at once"
            )
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            kind: type[errors.Blip3vError] = getattr(errors, found["error"])
            raise kind(found["message"], remedy=found["remedy"])
        return found


_Answerer = Callable[[Mapping[str, Any] | None], Mapping[str, Any]]


def serve(answers: Callable[[Mapping[str, Any]], contextlib.AbstractContextManager[_Answerer]]) -> None:
    """The child's side: the first object opens something, which answers each further one, until the input ends.

    A blip3v error is sent by name and ends the process.

    Args:
        answers: takes the first object; what it enters is called with each of the others, and with None at first.
    """
    try:
        with answers(json.loads(sys.stdin.readline())) as answer:
            _write(answer(None))
            for line in sys.stdin:
                _write(answer(json.loads(line)))
    except errors.Blip3vError as error:
        _write({"error": type(error).__name__, "message": error.message, "remedy": error.remedy})


def _write(values: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


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
