"""Virtual environments, one for each file in ``requirements/``, made when a peer needs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.client import PeerError, last_words, log_file
from benchmarks.peers.peer_list import FOLDER

__all__ = ["REQUIREMENTS", "describe", "environment_python"]

REQUIREMENTS = FOLDER / "requirements"
_LIMIT_S = 3600.0  # some packages are built
_BUILD = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"}  # of llama.cpp: without its image encoders, half of the work
_NO_DEPS = "no-deps.txt"


def environment_python(name: str, work: Path, requirements: Path = REQUIREMENTS) -> Path:
    """The Python of an environment, which is made if it is not there.

    ``NAME.txt`` is installed, then ``NAME.no-deps.txt``, if there is one, without the packages that it asks for.
    Another content of the files makes the environment anew.

    Args:
        name: of the requirements.
        work: FOLDER.
        requirements: the folder of the files.

    Raises:
        PeerError: a package does not install.
    """
    folder = work / "envs" / name
    python = folder / "bin" / "python"
    files = [file for file in (requirements / f"{name}.txt", requirements / f"{name}.{_NO_DEPS}") if file.is_file()]
    wanted = "".join(file.read_text("utf-8") for file in files)
    installed = folder / "installed.txt"
    if installed.is_file() and installed.read_text("utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    log = log_file(work, f"install-{name}")
    _run([sys.executable, "-m", "venv", str(folder)], log)
    for file in files:
        words = ["--no-deps"] if file.name.endswith(_NO_DEPS) else []
        _run([str(python), "-m", "pip", "install", "--quiet", *words, "-r", str(file)], log)
    installed.write_text(wanted, "utf-8")
    return python


def describe(python: Path, name: str | None, work: Path) -> dict[str, Any]:
    """Versions of the packages of an environment, and its size on disk; None: of the runner's own."""
    listed = subprocess.run(
        [str(python), str(FOLDER / "worker.py"), "packages"], capture_output=True, text=True, check=True
    )
    packages = dict(sorted(json.loads(listed.stdout).items(), key=lambda item: item[0].lower()))
    folder = None if name is None else work / "envs" / name
    size = None if folder is None else sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
    return {"packages": packages, "size_bytes": size}


def _run(command: Sequence[str], log: Path) -> None:
    """Runs a command; the reason of a failure is the last line of its error."""
    with log.open("wb") as output:
        try:
            ran = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=_LIMIT_S, env=_BUILD | os.environ
            )
        except subprocess.TimeoutExpired:
            raise PeerError(f"not installed within {_LIMIT_S:.0f} s") from None
    if ran.returncode:
        raise PeerError(f"not installed: {last_words(log, ran.returncode)}")
