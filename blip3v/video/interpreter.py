"""Which Python runs the decoder process.

A program that embeds Python has no interpreter of its own to start: ``sys.executable`` is then None, empty, or the
program itself, which must not be started a second time.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from blip3v.errors import UsageError

__all__ = ["REMEDY", "find_python"]

_VARIABLE = "BLIP3V_PYTHON"
REMEDY = f"set the environment variable {_VARIABLE} to the Python of the environment that blip3v is installed in"

# pythonw.exe has no console; python3.13t has no GIL; python3.13d, python_d.exe and python3.11-dbg are debug builds.
_NAME = re.compile(r"(python|pypy)w?\d*(\.\d+)*t?(_?d|-dbg)?(\.exe)?", re.IGNORECASE)


def find_python() -> str:
    """The path of the Python that runs the decoder process.

    It is what the environment variable ``BLIP3V_PYTHON`` says at the time of the call; without it
    ``sys.executable``, if that is a Python by its name; else the Python in ``sys.prefix``. The process itself checks
    that it runs the same Python and the same blip3v as its caller.

    Raises:
        UsageError: the variable names no program, or there is no Python.
    """
    named = os.environ.get(_VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise UsageError(f"{_VARIABLE} is {named!r}, which is not a program; name the path of a Python")
        return found
    for path in (sys.executable, *_of_environment()):
        if path and _NAME.fullmatch(Path(path).name) and shutil.which(path):
            return path
    raise UsageError(
        f"there is no Python to decode videos with: sys.executable is {sys.executable!r}, and {sys.prefix} holds none",
        remedy=REMEDY,
    )


def _of_environment() -> list[str]:
    """Where an environment keeps its Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if os.name == "nt":
        return [os.path.join(sys.prefix, *folder, "python.exe") for folder in (("Scripts",), ())]
    return [os.path.join(sys.prefix, "bin", name) for name in (f"python{version}", "python3", "python")]
