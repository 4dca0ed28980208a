"""Fixtures of the exporter's tests: one export a session, since each costs seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_models import small_config, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder of its own for a test that breaks it."""
    return write_folder(tmp_path / "model", small_config())
