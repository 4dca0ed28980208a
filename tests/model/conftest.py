"""The small checkpoint in the released form, for tests that need real weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_checkpoint import shrunk_preset, write_small


@pytest.fixture
def small_preset() -> Iterator[None]:
    """Shrinks the preset of the released model to the size of ``small_checkpoint.py``."""
    with shrunk_preset():
        yield


@pytest.fixture
def released(small_preset: None, tmp_path: Path) -> Path:
    return write_small(tmp_path / "released")
