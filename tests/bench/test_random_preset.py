"""A preset with random weights: what it takes is said and checked before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip3v.bench.random_preset import random_bundle, token_counts
from blip3v.bundle import open_bundle
from blip3v.bundle.precision import Precision
from blip3v.errors import ArtifactError, OutOfMemoryError


def test_a_preset_is_measured_at_the_counts_of_the_paper() -> None:
    assert token_counts("xgen-mm-vid") == (1024, 128, 32, 16)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("blip3v.export.export_bundle", lambda *of, **how: pytest.fail("exported"))
    return []


def _ask(folder: Path, lines: list[str]) -> None:
    random_bundle(
        folder, "xgen-mm-vid", precision=Precision.parse("fp16"), backends=["onnxruntime"], progress=lines.append
    )


def test_too_little_memory_to_measure_is_refused_with_numbers(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export fits into 12 GiB, and the bundle, whose weights the engine widens, does not."""
    monkeypatch.setattr("blip3v.runtime.memory.available_bytes", lambda: 12 * 2**30)
    monkeypatch.setattr("blip3v.export.estimate.require_disk", lambda *of: None)
    with pytest.raises(OutOfMemoryError, match=r"measuring blip3v-xgen-mm-vid-gttm-128tok-random-fp16-\w+ needs") as no:
        _ask(tmp_path / "cache", lines)
    assert "choose a smaller `precision`, such as int4" in no.value.remedy
    assert "8.20 GiB on disk" in lines[0]
    assert "of memory to measure" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_refused(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip3v.runtime.memory.available_bytes", lambda: 64 * 2**30)
    monkeypatch.setattr("blip3v.publishing._free", lambda path: (path.parent, 2**30))
    with pytest.raises(ArtifactError, match=r"needs about 8.20 GiB of disk space"):
        _ask(tmp_path / "cache", lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bundle_of_random_weights_is_exported_once(tmp_path: Path) -> None:
    lines: list[str] = []
    precision = Precision.parse("fp16")
    first = random_bundle(tmp_path, "tiny", precision=precision, progress=lines.append)
    assert random_bundle(tmp_path, "tiny", precision=precision, progress=lines.append) == first
    assert [line.split()[0] for line in lines[1:]] == ["exporting", "using"]
    assert open_bundle(first).manifest.source.random_init
