"""The stage ``loading`` of the GPU check in its smallest form, on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from blip3v.training.loading import loaded_ahead
from scripts.gpu.command import gpu_check
from scripts.gpu.loading import Waited, waits
from scripts.gpu.tables import print_report
from scripts.gpu.training import CompiledTrainee

MEASURED = {"encoder": "gttm", "num_video_tokens": 128, "batch_size": 2}


def check(folder: Path) -> tuple[Result, dict[str, Any]]:
    """The command's result, and its JSON."""
    path = folder / "gpu.json"
    words = ["--device", "cpu", "--smallest", "--only", "loading", "--folder", str(folder), "--output", str(path)]
    return CliRunner().invoke(gpu_check, words), json.loads(path.read_text("utf-8"))["loading"]


def without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are made in this process, when they are asked for."""

    def here(made: Any, keys: Any, **options: Any) -> Any:
        return loaded_ahead(made, keys, workers=0)

    monkeypatch.setattr("scripts.gpu.loading.loaded_ahead", here)


def test_waiting_is_a_share_of_all_time() -> None:
    found = waits([Waited(step_s=1.0, data_s=0.5), Waited(step_s=3.0, data_s=0.0)])
    assert found == {"num_steps": 2, "step_s": 2.0, "data_s": 0.25, "waited": 0.125}


@pytest.mark.slow
def test_steps_wait_for_a_loader_of_its_own_processes(tmp_path: Path) -> None:
    done, found = check(tmp_path)
    assert done.exit_code == 0, done.stderr
    (row,) = found["rows"].values()
    assert row.items() >= (MEASURED | {"workers": 1, "num_steps": 2}).items()
    assert 0 <= row["data_s"] < row["step_s"]
    assert row["waited"] == pytest.approx(row["data_s"] / row["step_s"])
    assert "waited for data" in done.stdout
    assert check(tmp_path)[1] == found  # nothing is measured twice


def test_a_loader_that_steps_wait_for_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same process every batch is waited for."""
    without_workers(monkeypatch)
    done, found = check(tmp_path)
    assert done.exit_code == 0, done.stderr
    assert found["rows"]["batch 2"]["waited"] > 0.05


def test_what_cannot_be_measured_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr("scripts.gpu.loading.is_installed", lambda module: False)
    assert "pip install av" in check(tmp_path)[1]["rows"]["batch 2"]["skipped"]
    monkeypatch.undo()
    monkeypatch.setattr(CompiledTrainee, "step", fail)
    without_workers(monkeypatch)
    done, found = check(tmp_path)
    assert "1 GiB" in found["rows"]["batch 2"]["failed"]
    assert "1 GiB" in done.stdout


def test_the_table_shows_the_share() -> None:
    row = MEASURED | {"workers": 8, "num_steps": 20, "step_s": 0.5, "data_s": 0.02, "waited": 0.04}
    console = Console(record=True, width=120)
    environment = {"device": "H200", "is_gpu": True, "preset": "xgen-mm-vid"}
    print_report({"environment": environment, "loading": {"rows": {"batch 4": row}}}, console)
    assert "4.0 %" in console.export_text()
