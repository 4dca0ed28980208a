"""The small checkpoint in the released form, for tests that need real weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_checkpoint import small_preset as make_small_preset
from small_checkpoint import write_small

from blip3v import config


@pytest.fixture
def small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrinks the preset of the released model to the size of ``small_checkpoint.py``."""
    monkeypatch.setitem(config.PRESETS, "xgen-mm-vid", make_small_preset())


@pytest.fixture
def released(small_preset: None, tmp_path: Path) -> Path:
    return write_small(tmp_path / "released")
