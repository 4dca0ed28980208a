"""How this program was started, so that the commands it shows can be pasted."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

__all__ = ["command_line", "program"]


def program() -> list[str]:
    """The words that started this program: ``blip3v``, or its path if it is not on PATH, or ``python -m blip3v``."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name == "blip3v":
        return [sys.orig_argv[0], "-m", "blip3v"]
    if started.stem != "blip3v" or _is_on_path(started):
        return ["blip3v"]
    return [sys.argv[0]]


def command_line(*arguments: str) -> str:
    """A command of this program, quoted for a shell."""
    return shlex.join([*program(), *arguments])


def _is_on_path(started: Path) -> bool:
    found = shutil.which(started.name)
    try:
        return found is not None and os.path.samefile(found, started)
    except OSError:
        return False
