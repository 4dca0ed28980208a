"""Imports: the contracts of pyproject.toml, and the torch-free parts in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH_FREE = (
    "blip3v.config",
    "blip3v.endpoint",
    "blip3v.video",
    "blip3v.text",
    "blip3v.bundle",
    "blip3v.hub",
    "blip3v.runtime",
)
HEAVY = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "accelerate")


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def test_import_contracts_hold():
    done = fresh("import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("part", TORCH_FREE)
def test_a_torch_free_part_loads_nothing_heavy(part: str):
    done = fresh(f"import sys, {part}; print(*(name for name in {HEAVY} if name in sys.modules))")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("part", TORCH_FREE)
def test_a_torch_free_part_works_where_nothing_heavy_is_installed(part: str):
    done = fresh(f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); import {part}")
    assert done.returncode == 0, done.stderr


def test_a_heavy_part_would_be_caught():
    """The check above can fail: the reference needs torch."""
    assert fresh(f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); import blip3v.model.blocks").returncode != 0
