"""What TensorRT says: errors are kept for the message of ours that follows them, warnings go to logging.

TensorRT has one logger for the whole process, the first that it was given, so everybody who makes a builder or a
runtime takes it from here.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["TensorRTLog", "tensorrt_log"]

_LOGGER = logging.getLogger(__name__)
_MAX_ERRORS = 64  # that are kept
_MAX_SHOWN = 3  # that a message lists
# Said after any other error on a machine without a GPU, where building works nevertheless.
_NO_DRIVER = "CUDA driver version is insufficient"
# Said about every int64 input; those of the decoder are meant to be int64.
_EXPECTED = "has Int64 binding"


class TensorRTLog:
    """The log of one TensorRT package; ``logger`` is what its classes take. Threads have errors of their own."""

    logger: Any

    def __init__(self) -> None:
        self._errors: deque[tuple[int, str]] = deque(maxlen=_MAX_ERRORS)
        self._level = logging.DEBUG

    def forget(self) -> None:
        """Forgets the errors of this thread so far: what follows is about something else."""
        this = threading.get_ident()
        self._errors = deque((error for error in self._errors if error[0] != this), maxlen=_MAX_ERRORS)

    def reasons(self) -> str:
        """The first errors of this thread since ``forget``, in a line."""
        this = threading.get_ident()
        errors = list(dict.fromkeys(text for thread, text in self._errors if thread == this))
        causes = [error for error in errors if _NO_DRIVER not in error] or errors
        return "; ".join(causes[:_MAX_SHOWN]) or "no reason given"

    @contextmanager
    def showing_warnings(self) -> Iterator[None]:
        """Logs TensorRT's warnings as warnings while the block runs, and not for debugging only."""
        self._level = logging.WARNING
        try:
            yield
        finally:
            self._level = logging.DEBUG

    def add_error(self, text: str) -> None:
        """Keeps an error."""
        self._errors.append((threading.get_ident(), " ".join(text.split())))

    def add_warning(self, text: str) -> None:
        """Passes a warning to logging."""
        _LOGGER.log(logging.DEBUG if _EXPECTED in text else self._level, "TensorRT: %s", text)


@functools.cache
def tensorrt_log(module: Any) -> TensorRTLog:
    """The one log of a TensorRT package in this process.

    Args:
        module: the package, as ``TensorRT.module`` holds it.
    """
    log = TensorRTLog()

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                log.add_error(text)
            elif severity == module.ILogger.WARNING:
                log.add_warning(text)

    log.logger = Logger()
    return log
