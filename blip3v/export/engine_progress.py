"""What TensorRT calls back while it builds: progress, and the engine as it is written.

The package is imported by whoever builds, so the classes that it wants as base classes are made in functions here.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

__all__ = ["EngineFile", "Progress", "progress_monitor", "run_interruptibly", "stream_writer"]

_T = TypeVar("_T")

_POLL_S = 0.1  # between two looks for Ctrl-C
_STEPS = 1000  # of a build, as progress counts them


class Progress(Protocol):
    """What is called at each stage of a build."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...  # noqa: D102


@dataclass
class _Phase:
    parent: str | None
    num_steps: int
    done: int = 0


def progress_monitor(module: Any, stage: str, show: Progress, stop: threading.Event) -> Any:
    """An ``IProgressMonitor`` of the package ``module``.

    Args:
        module: the TensorRT package.
        stage: what ``show`` is called with.
        show: told about a thousand times, from the thread that builds.
        stop: ends the build at its next step.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._phases: dict[str, _Phase] = {}
            self._shown = 0

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            self._phases[name] = _Phase(parent, num_steps)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self._phases:
                self._phases[name].done = step + 1
                done = int(_STEPS * self._position(name))
                if done > self._shown:
                    self._shown = done
                    show(stage, min(done, _STEPS), _STEPS)
            return not stop.is_set()

        def phase_finish(self, name: str) -> None:
            self._phases.pop(name, None)

        def _position(self, name: str) -> float:
            """How far the outermost phase is, from 0 to 1: a step of a phase holds all steps of a phase inside it."""
            position, seen = 0.0, self._phases.get(name)
            while seen is not None:
                position = min(1.0, (seen.done + position) / max(1, seen.num_steps))
                seen = None if seen.parent is None else self._phases.get(seen.parent)
            return position

    return Monitor()


class EngineFile:
    """A file that an engine is written to in pieces, and hashed on the way. A context manager.

    An error of the file system cannot pass through TensorRT: it ends the build, and ``check`` raises it.

    Args:
        path: the file to create.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self._error: OSError | None = None
        self.size_bytes = 0

    def __enter__(self) -> EngineFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of what was written, as hex."""
        return self._digest.hexdigest()

    def write(self, data: bytes | memoryview) -> int:
        """Appends a piece and returns its size; 0 after an error."""
        if self._error is not None:
            return 0
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error
            return 0
        self._digest.update(data)
        self.size_bytes += len(data)
        return len(data)

    def check(self) -> None:
        """Raises the error that writing ended with, if any.

        Raises:
            OSError: the file system reported it.
        """
        if self._error is not None:
            raise self._error


def stream_writer(module: Any, file: EngineFile) -> Any:
    """An ``IStreamWriter`` of the package ``module`` that writes to ``file``."""

    class Writer(module.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            return file.write(data)

    return Writer()


def run_interruptibly(work: Callable[[], _T], stop: threading.Event) -> _T:
    """Runs ``work`` in a thread, so that Ctrl-C reaches this one while a library computes.

    Args:
        work: ends soon after ``stop`` is set.
        stop: set by Ctrl-C.

    Raises:
        KeyboardInterrupt: Ctrl-C, after ``work`` has ended.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="blip3v-build") as pool:
        future = pool.submit(work)
        try:
            while not future.done():
                wait([future], timeout=_POLL_S)
        except KeyboardInterrupt:
            stop.set()
            raise
        return future.result()
