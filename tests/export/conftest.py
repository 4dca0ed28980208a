"""Fixtures of the exporter's tests: each export is made once per session, since it takes seconds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from export_models import Exported, export_decoder, export_video_encoder, small_config, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model folder that a test may break."""
    return write_folder(tmp_path / "model", small_config())


@pytest.fixture(scope="session")
def video_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Exported]:
    """Returns the exported video encoder for (encoder, precision)."""
    return functools.partial(export_video_encoder, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Returns the exported decoder: fp32, fp16 or windowed (fp32)."""
    return functools.partial(export_decoder, tmp_path_factory.getbasetemp())
