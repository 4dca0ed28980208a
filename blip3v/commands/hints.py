"""Commands that are shown to people: each can be pasted as it is, and names files that exist."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from blip3v.folders import example_clip

__all__ = ["command_line", "program", "question_for", "shorter", "try_out"]

_FILM_QUESTION = "Which way does the red circle turn?"  # about the example clip, to a model of synthetic films
_ANY_QUESTION = "What happens in this video?"
_NEW_CLIP = Path("films-test-0") / "test-00000.mp4"  # what `blip3v data` writes first


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


def question_for(model: str) -> str:
    """A question about the example clip that the preset ``model`` can be expected to answer."""
    return _FILM_QUESTION if model == "tiny" else _ANY_QUESTION


def try_out(bundle: Path, model: str) -> str:
    """The command that asks ``bundle``, of the preset ``model``, about a clip."""
    clip = example_clip()
    if clip is not None:
        return command_line("ask", shorter(clip), question_for(model), "-m", str(bundle))
    ask = command_line("ask", str(_NEW_CLIP), _ANY_QUESTION, "-m", str(bundle))
    return ask if _NEW_CLIP.is_file() else f"{command_line('data', '--count', '1')} && {ask}"


def _is_on_path(started: Path) -> bool:
    found = shutil.which(started.name)
    try:
        return found is not None and os.path.samefile(found, started)
    except OSError:
        return False


def shorter(path: Path) -> str:
    """The path from the current folder, if that is the shorter one."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive on Windows
        return str(path)
    return min(relative, str(path), key=len)
