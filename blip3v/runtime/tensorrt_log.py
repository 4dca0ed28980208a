"""What TensorRT says: errors are kept for the message of ours that follows them, warnings go to logging.

TensorRT has one logger for the whole process, the first that it was given, so everybody who makes a builder or a
runtime takes it from here.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
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
    """The log of one TensorRT package; ``logger`` is what its classes take."""

    logger: Any

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_MAX_ERRORS)

    def forget(self) -> None:
        """Forgets the errors so far: what follows is about something else."""
        self._errors.clear()

    def reasons(self) -> str:
        """The first errors since ``forget``, in a line."""
        errors = list(dict.fromkeys(self._errors))
        causes = [error for error in errors if _NO_DRIVER not in error] or errors
        return "; ".join(causes[:_MAX_SHOWN]) or "no reason given"

    def add_error(self, text: str) -> None:
        """Keeps an error."""
        self._errors.append(" ".join(text.split()))


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
                _LOGGER.log(logging.DEBUG if _EXPECTED in text else logging.WARNING, "TensorRT: %s", text)

    log.logger = Logger()
    return log
