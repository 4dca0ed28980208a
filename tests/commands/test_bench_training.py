"""``blip3v bench --training``: its output, what it compares with, and what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from blip3v.bench.training.report import TrainingReport, TrainingRow, TrainingSetup
from blip3v.bench.training.rows import ROWS
from blip3v.commands.bench import command
from blip3v.errors import ConfigError, SlowerError, UsageError
from blip3v.python_arguments import code_arguments

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ENVIRONMENT = {
    **{"cpu": "a CPU", "physical_cores": 2, "usable_cpus": 2, "cpu_quota": None, "memory_bytes": 2**34},
    **{
        "system": "Linux",
        "architecture": "x86_64",
        "python": "3.11.1",
        "blip3v": "0.1.0",
        "packages": {"torch": "2.13"},
    },
    **{"date": "2026-01-01T00:00:00+00:00", "load_average": {"before": [0.1, 0.2, 0.3], "after": [0.4, 0.2, 0.3]}},
}


def _bench(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["--training", *arguments], catch_exceptions=False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was asked of the measurement, which is a fake here: steps of row i take 4 / (i + 1) s, times ``slower``."""
    found: dict[str, Any] = {"slower": 1.0}

    def run(setup: TrainingSetup, **how: Any) -> TrainingReport:
        found.update(how, setup=setup)
        rows = [
            TrainingRow(
                row=row,
                batch_size=size,
                config_sha256="ab" * 32,
                num_frames=8,
                operations=10**9 * size,
                step_s=(found["slower"] * 4 / (place + 1),) * setup.repetitions,
                losses=(1.0,) * setup.repetitions,
                peak_bytes=2**30,
            )
            for size in how["batch_sizes"]
            for place, row in enumerate(ROWS)
        ]
        return TrainingReport(
            setup=setup, rows=tuple(rows), environment=dict(ENVIRONMENT), gemm_per_s=1e9, command=how["command"]
        )

    monkeypatch.setattr("blip3v.bench.training.run.run_training", run)
    monkeypatch.setattr("blip3v.bench.training.run.check_memory", lambda *of: None)
    monkeypatch.setattr("blip3v.commands.bench_training.describe_environment", lambda: ENVIRONMENT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return found


def test_the_table_shows_the_paper_beside_the_machine(asked: dict[str, Any]) -> None:
    text = _bench().stdout
    lines = [line.split() for line in text.splitlines()]
    assert ["1024", "none", "1.00", "1.00x", "3.30", "1.00x", "4000", "±", "0", "100", "%", "1024"] in lines
    assert ["32", "tokenlearner", "3.00", "3.00x", "8.20", "2.48x", "1333", "±", "0", "300", "%", "1024"] in lines
    for words in ("the trainer's own", "tiny with random weights in fp32", "compare the ratios alone", "ab" * 8):
        assert words in text
    assert asked["batch_sizes"] == (4,)
    assert (asked["setup"].warmup, asked["setup"].repetitions) == (1, 5)


def test_every_file_says_what_was_measured(asked: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = {"-o": "a.json", "--csv": "a.csv", "--markdown": "a.md", "--plot": "a.svg"}
    files = [word for option, name in names.items() for word in (option, str(tmp_path / name))]
    found = json.loads(_bench("--batch-sizes", "2,4", *files, "--json").stdout)
    assert found == json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert (found["kind"], found["schema_version"]) == ("training", 2)
    assert found["setup"]["threads"] == torch.get_num_threads()
    assert [row["batch_size"] for row in found["rows"]] == [2] * 4 + [4] * 4
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["samples_per_s"] for line in lines[:2]] == ["0.5", "1.0"]
    for name in ("config_sha256", "paper_samples_per_s", "step_s_p99", "setup_precision", "cpu", "packages", "blip3v"):
        assert all(line[name] for line in lines), name
    page = (tmp_path / "a.md").read_text("utf-8")
    assert "| tokenlearner | 4 | 32 | 3.00 | 3.00x | 8.20 | 2.48x | 288 /s | 1.00 GiB | 300 % |" in page
    assert "- gttm 128: config sha256 abababababababab" in page
    assert (tmp_path / "a.svg").stat().st_size > 10_000


def test_a_preset_computes_as_its_recipes(asked: dict[str, Any]) -> None:
    _bench("--preset", "xgen-mm-vid", "--init", "random", "--gradient-checkpointing")
    setup = asked["setup"]
    assert (setup.preset, setup.precision, setup.gradient_checkpointing) == ("xgen-mm-vid", "bf16", True)
    assert (setup.warmup, setup.repetitions) == (2, 10)


def test_a_baseline_is_compared_and_only_one_of_its_kind(asked: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    _bench("-o", str(path))
    against = ("--baseline", str(path))
    assert "0 of 4 medians worse by more than 10 %" in _bench(*against).stdout
    with pytest.raises(UsageError, match=r"precision was fp32 and is bf16"):
        _bench(*against, "--precision", "bf16")
    with pytest.raises(ConfigError, match="of training steps; one of bundles is expected"):
        CliRunner().invoke(command, [*against], catch_exceptions=False)
    with pytest.raises(ConfigError, match="of bundles; one of training steps is expected"):
        _bench("--baseline", str(RESULTS / "bench-cpu.json"))
    asked["slower"] = 1.5
    with pytest.raises(SlowerError, match=r"4 of 4 medians are slower .* step at 1024, none the most \(1.50x\)"):
        _bench(*against)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "BUNDLE has no effect with --training"),
        (["--tokens", "32"], "--tokens has no effect with --training"),
        (["--requests-at-once", "2"], "--requests-at-once has no effect with --training"),
        (["--backend", "onnxruntime"], "--backend has no effect with --training"),
        (["--clip", "x"], "--clip has no effect with --training"),
        (["--models", "x"], "--models has no effect with --training"),
        (["--precision", "int8"], "int8 is not for training; allowed: fp32, bf16, bf16-weights"),
        (["--preset", "tiny"], "add --init random"),
        (["--init", "random"], "add --preset"),
        (["--device", "cuda"], "torch finds no CUDA device"),
        (["--force"], "--force has no effect"),
        (["--tolerance", "5%"], "--tolerance has no effect without --baseline"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_together_is_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=message):
        _bench(*arguments)


@pytest.mark.parametrize("option", [["--device", "cpu"], ["--gradient-checkpointing"]], ids=lambda words: words[0])
def test_options_of_training_have_no_effect_without_it(option: list[str]) -> None:
    with pytest.raises(UsageError, match=f"{option[0]} has no effect without --training"):
        CliRunner().invoke(command, option, catch_exceptions=False)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-weights"])
def test_a_whole_run(precision: str, tmp_path: Path) -> None:
    """In a process of its own, since accelerate keeps the precision of the first."""
    path = tmp_path / "training.json"
    options = ("--training", "--precision", precision, "--batch-sizes", "1", "-w", "0", "-r", "1", "--device", "cpu")
    code = "from blip3v.cli import main; main()"
    done = subprocess.run(
        [sys.executable, *code_arguments(code, "bench", *options, "-o", str(path))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [row["num_video_tokens"] for row in rows] == [1024, 128, 32, 16]
    assert all(row["training"]["samples_per_s"] > 0 and 0 < row["losses"][0] < 20 for row in rows)
