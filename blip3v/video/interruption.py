"""How a load is ended early from another thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

__all__ = ["Interrupting", "uninterrupted"]

# Given a function that ends a block early, from any thread, returns the context manager to run that block in.
Interrupting = Callable[[Callable[[], None]], AbstractContextManager[None]]


def uninterrupted(interrupt: Callable[[], None]) -> AbstractContextManager[None]:
    """The ``Interrupting`` of a load that nobody ends early."""
    return nullcontext()
