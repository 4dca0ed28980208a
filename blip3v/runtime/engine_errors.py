"""The border to inference engines: what they raise becomes ours, and what they cannot open never reaches them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from blip3v.errors import BackendError, Blip3vError, OutOfMemoryError, UsageError

__all__ = ["engine_errors", "path_for_engine"]

# Of hosts and devices, with blanks for underscores: CUDA_ERROR_OUT_OF_MEMORY, CUBLAS_STATUS_ALLOC_FAILED.
_MEMORY_WORDS = (
    "alloc failed",
    "allocation failed",
    "allocation failure",
    "allocatorimpl",
    "bad alloc",
    "bfcarena",
    "cannot allocate memory",
    "exceeded max size of memory",
    "failed to allocate",
    "memoryallocation",
    "out of device memory",
    "out of host memory",
    "out of memory",
    "outofmemory",
    "std::length error",
)
# What engines raise besides classes of their own. UnicodeError, for a name or path that is not UTF-8, is a ValueError.
_BUILT_IN = (RuntimeError, TypeError, ValueError)
_MAX_CHARS = 500


@contextlib.contextmanager
def engine_errors(engine: str, package: str, doing: str) -> Iterator[None]:
    """Turns what an engine raises inside the block into our errors. Only calls of the engine belong into it.

    Args:
        engine: its name for people.
        package: the Python package whose exception classes are the engine's.
        doing: begins the message: "running the decoder".

    Raises:
        OutOfMemoryError: memory ran out.
        BackendError: anything else from the engine.
    """
    try:
        yield
    except Blip3vError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"{doing}: not enough memory; use a smaller precision or a shorter prompt") from error
    except Exception as error:
        if not isinstance(error, _BUILT_IN) and type(error).__module__.split(".")[0] != package:
            raise
        text = " ".join(str(error).split())[:_MAX_CHARS]
        plain = text.lower().replace("_", " ")
        if any(word in plain for word in _MEMORY_WORDS):
            raise OutOfMemoryError(f"{doing}: {engine} ran out of memory: {text}") from error
        raise BackendError(f"{doing}: {engine} failed: {text}") from error


def path_for_engine(path: Path) -> str:
    """``path`` as the engines take it.

    Raises:
        UsageError: its bytes are not UTF-8.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{str(path)!r} is not valid UTF-8, and inference engines open no other paths; rename the folder"
        ) from error
    return str(path)
