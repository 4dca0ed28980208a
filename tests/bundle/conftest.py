"""One fake bundle per session, copied for each test that breaks it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_bundle import write_fake_bundle


@pytest.fixture(scope="session")
def pristine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For read-only use."""
    return write_fake_bundle(tmp_path_factory.mktemp("bundles") / "pristine")


@pytest.fixture
def bundle(pristine_bundle: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pristine_bundle, tmp_path / "bundle"))
