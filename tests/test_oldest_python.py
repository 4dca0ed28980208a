"""The oldest Python, 3.10: that of JetPack 6, whose TensorRT has bindings for no other.

Its standard library is checked by mypy, which is told the same version. To run it for real: make an environment with
Python 3.10, ``pip install ".[openvino]"`` into it, and set BLIP3V_OLDEST_PYTHON to its interpreter.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

ROOT = Path(__file__).parents[1]
PYTHON = os.environ.get("BLIP3V_OLDEST_PYTHON")


def test_every_tool_is_told_the_same_version() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    for line in ('requires-python = ">=3.10"', 'target-version = "py310"', 'python_version = "3.10"'):
        assert re.search(f"^{re.escape(line)}$", text, re.MULTILINE), line


def test_every_file_is_in_its_syntax() -> None:
    for path in (ROOT / "blip3v").rglob("*.py"):
        ast.parse(path.read_text("utf-8"), str(path), feature_version=(3, 10))


def test_what_is_newer_would_be_caught() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("try: pass\nexcept* OSError: pass", feature_version=(3, 10))


def test_no_process_is_started_with_an_option_that_it_lacks() -> None:
    for path in (ROOT / "blip3v").rglob("*.py"):
        assert '"-P"' not in path.read_text("utf-8"), path


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="BLIP3V_OLDEST_PYTHON names no Python 3.10 with blip3v and OpenVINO")
def test_it_answers(tmp_path: Path) -> None:
    assert PYTHON is not None
    config = toy_config()
    bundle = write_bundle(tmp_path / "bundle", config, Weights.random(config.text))
    command = [PYTHON, "-m", "blip3v", "ask", "examples/turn.mp4", "Why?", "-m", str(bundle), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"text"' in done.stdout
