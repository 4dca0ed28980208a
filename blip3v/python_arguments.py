"""How a Python process of our own is started, so that nothing in the working directory is imported by it."""

from __future__ import annotations

__all__ = ["code_arguments"]

# What -c puts in front of the import path, and what Python 3.10 has no option (-P) to leave out. Only sys, which is
# built in, is imported before it is gone.
_LEAVE_OUT = "import sys; '' in sys.path and sys.path.remove('')"


def code_arguments(code: str, *arguments: str) -> tuple[str, ...]:
    """The arguments of an interpreter that runs ``code``.

    The working directory is not in the import path: a file there named numpy.py is not ours.

    Args:
        code: Python.
        arguments: what it finds in ``sys.argv[1:]``.
    """
    return "-c", f"{_LEAVE_OUT}\n{code}", *arguments
