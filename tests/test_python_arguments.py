"""Processes of our own import nothing from the working directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from blip3v.python_arguments import code_arguments

CODE = "import json, sys; print(json.__name__, sys.argv[1:])"


@pytest.mark.parametrize("options", [(), ("-W", "ignore")], ids=["plain", "with options"])
def test_a_file_of_the_working_directory_is_not_imported(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('theirs')")
    command = [sys.executable, *options, *code_arguments(CODE, "-a", "b c")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "json ['-a', 'b c']\n", "")


def test_the_test_above_can_fail(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('theirs')")
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
