"""Checks of what callers of the runtime hand in: each refuses a wrong type or value with a sentence that names it."""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from blip3v.errors import RequestError, UsageError

__all__ = ["check_number", "check_timeout", "check_whole", "checked_path", "is_whole", "shown"]

_LARGEST = sys.float_info.max


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Refuses anything but an ``int`` from ``low`` to ``high``; None: without an upper bound.

    Raises:
        RequestError: with the value.
    """
    if not is_whole(value, low, high):
        span = f"at least {low}" if high is None else f"{low} to {high}"
        raise RequestError(f"{name} is {shown(value)}; a whole number, {span}, is expected")


def is_whole(value: object, low: int, high: int | None = None) -> bool:
    """Whether ``value`` is an ``int`` from ``low`` to ``high``; None: without an upper bound."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and low <= cast("int", value) and (high is None or cast("int", value) <= high)


def check_number(name: str, value: object, span: str, allowed: Callable[[float], bool]) -> None:
    """Refuses anything but a finite ``int`` or ``float`` that is ``allowed``; ``span`` says in words which are.

    Raises:
        RequestError: with the value.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST
    if not number or not allowed(cast("float", value)):
        raise RequestError(f"{name} is {shown(value)}; a number {span} is expected")


def check_timeout(value: object) -> None:
    """Refuses a ``timeout_s`` that is neither None nor a time.

    Raises:
        RequestError: with the value.
    """
    if value is not None:
        check_number("timeout_s", value, "of seconds above 0", lambda seconds: seconds > 0)


def checked_path(name: str, value: object) -> Path:
    """``value`` as a path.

    Raises:
        UsageError: neither a ``str`` nor a path, or one with a NUL character.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise UsageError(f"{name} is {shown(value)}; the path of a folder is expected")
    return Path(text)


def shown(value: object) -> str:
    """``value`` for a message, shortened."""
    try:
        return reprlib.repr(value)
    except Exception:  # a foreign __repr__, or a number with too many digits to write
        return f"a {type(value).__name__}"
