"""A ``VideoLM`` keeps one decoder process ahead once a second video file has come, until it is closed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from film_files import write_film

from blip3v.errors import ArtifactError
from blip3v.runtime import VideoLM

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no descriptor can be sent there")


@pytest.fixture(autouse=True)
def others() -> set[int]:
    """Processes of other tests."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


def num_running(others: set[int]) -> int:
    return len([process for process in psutil.Process().children(recursive=True) if process.pid not in others])


def test_files_are_decoded_ahead_until_it_is_closed(
    backend: str, bundle_path: Path, film: np.ndarray, tmp_path: Path, others: set[int]
) -> None:
    path = write_film(tmp_path / "film.mp4", 12)
    with VideoLM.open(bundle_path, backend=backend, threads=1) as lm:
        for _ in range(3):
            lm.encode(film)
        first = lm.encode(path)
        assert num_running(others) == 0, "one file alone, and arrays, pay for nothing"
        for _ in range(2):
            np.testing.assert_array_equal(lm.encode(path).tokens, first.tokens)
            assert num_running(others) == 1
        stream = lm.stream(path, "which way?")
        lm.close()
        stream.close()
    assert num_running(others) == 0


def test_it_may_be_started_while_the_bundle_is_opened(
    backend: str, bundle_path: Path, tmp_path: Path, others: set[int]
) -> None:
    path = write_film(tmp_path / "film.mp4", 12)
    with VideoLM.open(bundle_path, backend=backend, threads=1, decoder_ahead=True) as lm:
        assert num_running(others) == 1
        lm.encode(path)
    assert num_running(others) == 0
    with pytest.raises(ArtifactError):
        VideoLM.open(tmp_path / "none", decoder_ahead=True)
    assert num_running(others) == 0
