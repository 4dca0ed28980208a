"""The GPU check in its smallest form: a full run without packages that a GPU machine may lack, failures, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from blip3v.bench.training.device import Stopwatch
from blip3v.bench.training.random_model import SharedModel
from blip3v.bench.training.rows import BASELINE, ROWS, Row
from blip3v.config import preset
from blip3v.errors import ArtifactError
from blip3v.model.generate import greedy
from blip3v.model.temporal import encoder_names
from scripts.gpu import parity as parity_stage
from scripts.gpu import training as training_stage
from scripts.gpu.command import gpu_check
from scripts.gpu.generation import Answerer, Sample, speed
from scripts.gpu.models import make_inputs
from scripts.gpu.parity import TOLERANCES, Tolerance, compare, parity_rows
from scripts.gpu.plan import Budget, Plan
from scripts.gpu.report import Report
from scripts.gpu.training import CompiledTrainee, Form, summary

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PLAN = Plan(device=CPU, smallest=True, seconds=60)
STAGES = ("--only", "parity,training,generation")  # the others are in test_gpu_loading.py and test_gpu_runtime.py
# Packages that a machine for these three may lack.
ABSENT = ("av", "psutil", "matplotlib", "onnxscript")


def script(*options: str, absent: tuple[str, ...] = ABSENT) -> subprocess.CompletedProcess[str]:
    """Runs the script in a process in which ``absent`` is not installed."""
    path = str(ROOT / "scripts/gpu_check.py")
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({absent!r})); sys.path[0] = {str(ROOT / 'scripts')!r}; "
        f"sys.argv = {[path, *options]!r}; runpy.run_path({path!r}, run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tests")


def here(*options: str) -> Result:
    """Runs the command in this process."""
    return CliRunner().invoke(gpu_check, ["--device", "cpu", "--smallest", *options])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    done = script("--device", "cpu", "--smallest", *STAGES, "--output", str(path), "--commit", "abc")
    assert done.returncode == 0, done.stderr
    return path, done.stdout


@pytest.mark.slow
def test_every_stage_writes_what_it_measured(whole: tuple[Path, str]) -> None:
    content = json.loads(whole[0].read_text("utf-8"))
    assert content["schema_version"] == 1
    assert content["environment"]["is_gpu"] is False
    assert content["environment"]["smallest"] is True
    (run,) = content["runs"]
    assert run["commit"] == "abc"
    encoders = {key.split()[0] for key in content["parity"]["rows"]}
    assert encoders == set(encoder_names())
    for row in content["parity"]["rows"].values():
        assert row["passed"] is True
        assert {found["dtype"] for found in row["comparisons"]} >= {"float16", "bfloat16"}
    assert list(content["training"]["rows"]) == ["batch 2", "batch 2, compiled"]
    assert list(content["generation"]["rows"]) == ["batch 1, eager", "batch 1, compiled"]
    for stage in ("training", "generation"):
        for group in content[stage]["rows"].values():
            assert [row["num_video_tokens"] for row in group["rows"]] == [1024, 128]
            assert all(row["samples_per_s"] > 0 for row in group["rows"])


@pytest.mark.slow
def test_half_precision_is_really_used(whole: tuple[Path, str]) -> None:
    """An error of zero would mean that the reference was compared with itself."""
    content = json.loads(whole[0].read_text("utf-8"))
    for row in content["parity"]["rows"].values():
        for found in row["comparisons"]:
            if found["dtype"] != "float32":
                assert found["relative_error"] > 1e-5


@pytest.mark.slow
def test_the_tables_name_the_machine(whole: tuple[Path, str]) -> None:
    assert "not a GPU" in whole[1]
    assert all(stage in whole[1] for stage in ("parity", "training", "generation"))


@pytest.mark.slow
def test_the_same_command_again_measures_nothing_twice(whole: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    content = json.loads(whole[0].read_text("utf-8"))
    del content["parity"]["rows"]["gttm 128, tiny"]
    path.write_text(json.dumps(content), "utf-8")
    done = here(*STAGES, "--output", str(path))
    assert done.exit_code == 0, done.stderr
    again = json.loads(path.read_text("utf-8"))
    assert len(again["runs"]) == 2
    assert again["parity"]["rows"].pop("gttm 128, tiny")["run"] == 1
    for stage in ("parity", "training", "generation"):
        assert again[stage]["rows"] == content[stage]["rows"]


def test_wrong_weights_fail_the_command_and_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_stage, "encoder_names", lambda: ("gttm",))
    path = tmp_path / "gpu.json"
    done = here("--only", "parity", "--perturb", "0.5", "--output", str(path))
    assert done.exit_code == 5
    assert "missed their tolerance" in done.stderr
    rows = json.loads(path.read_text("utf-8"))["parity"]["rows"]
    assert [row["passed"] for row in rows.values()] == [False, False]


def test_a_tolerance_that_cannot_be_kept_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_stage, "encoder_names", lambda: ("mean",))
    monkeypatch.setitem(TOLERANCES, torch.float16, Tolerance(relative_error=0.0, cosine=1.0, reason="equal"))
    assert here("--only", "parity", "--output", str(tmp_path / "gpu.json")).exit_code == 5


def test_a_stage_whose_time_is_spent_says_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "spent", True)
    path = tmp_path / "gpu.json"
    assert here(*STAGES, "--output", str(path)).exit_code == 0
    content = json.loads(path.read_text("utf-8"))
    for stage in ("parity", "training", "generation"):
        assert content[stage]["rows"]
        assert all("were spent" in row["skipped"] for row in content[stage]["rows"].values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(("--device", "cpu"), "add --smallest", id="4B on a CPU"),
        pytest.param(("--device", "cpu", "--smallest", "--only", "speed"), "not a stage; allowed: parity", id="stage"),
    ],
)
def test_what_cannot_be_is_refused(options: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(gpu_check, [*options, "--output", str(tmp_path / "gpu.json")])
    assert done.exit_code == 2
    assert says in done.stderr
    assert not (tmp_path / "gpu.json").exists()


def test_a_missing_package_is_named_with_the_line_that_installs_it() -> None:
    done = script("--device", "cpu", "--smallest", absent=("rich",))
    assert done.returncode == 1
    assert 'pip install "rich>=' in done.stderr


def test_numbers_of_two_environments_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    Report(path, environment={"device": "A"}, run={})
    with pytest.raises(ArtifactError, match="device was 'A' and is 'B'"):
        Report(path, environment={"device": "B"}, run={})


def test_a_row_that_was_skipped_is_measured_next_time(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", environment={}, run={})
    report.skip("training", "batch 4", "no time")
    assert not report.holds("training", "batch 4")
    report.put("training", "batch 4", {"unfinished": True})
    assert not report.holds("training", "batch 4")
    report.put("training", "batch 4", {"rows": []})
    assert report.holds("training", "batch 4")


def test_parity_takes_every_encoder_at_the_papers_counts() -> None:
    rows = parity_rows(preset("tiny"))
    assert {row.encoder for row in rows} == set(encoder_names())
    assert {Row("tokenlearner", count) for count in (16, 32, 128, 256)} <= set(rows)
    assert Row("mean", 16) not in rows


@pytest.mark.parametrize(
    ("got", "passes"),
    [
        pytest.param([1.0, 2.0, -3.0], True, id="equal"),
        pytest.param([1.0, 2.0, -3.5], False, id="too far"),
        pytest.param([-1.0, -2.0, 3.0], False, id="turned"),
        pytest.param([1.0, 2.0, float("inf")], False, id="overflow"),
        pytest.param([1.0, 2.0, float("nan")], False, id="no number"),
    ],
)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_what_passes(got: list[float], passes: bool, dtype: torch.dtype) -> None:
    found = compare(torch.tensor(got), torch.tensor([1.0, 2.0, -3.0]), dtype)
    assert found["passed"] is passes
    json.dumps(found, allow_nan=False)


def test_ratios_and_the_papers_numbers() -> None:
    rows = summary({row: [1.0 / (1 + place)] * 3 for place, row in enumerate(ROWS)}, 4)
    assert [row["samples_per_s"] for row in rows] == pytest.approx([4, 8, 12, 16])
    assert [row["ratio"] for row in rows] == pytest.approx([1, 2, 3, 4])
    assert [row["paper_samples_per_s"] for row in rows] == [3.3, 7.5, 8.2, 8.5]


def test_medians_of_generation() -> None:
    found = speed(BASELINE, [Sample(1, 2, 31), Sample(1, 2, 62), Sample(10, 20, 31)], 4)
    assert (found["encode_ms"], found["prefill_ms"], found["token_ms"]) == (1000, 2000, 1000)
    assert found["samples_per_s"] == pytest.approx(4 / 61)  # of 34, 65 and 61 seconds
    assert found["tokens_per_s"] == pytest.approx(4)


def test_too_little_memory_is_recorded_and_less_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_turns(trainee: CompiledTrainee, form: Form, plan: Plan, budget: Budget) -> list[dict[str, Any]]:
        if form.batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")
        return [{"num_video_tokens": 1024}]

    monkeypatch.setattr(training_stage, "_take_turns", take_turns)
    found = training_stage._measure_form(CompiledTrainee(PLAN), Form(batch_size=4), PLAN, Budget(60))
    assert found["form"] == "batch 2, checkpointed"
    assert [failure["form"] for failure in found["failures"]] == ["batch 4", "batch 4, checkpointed"]
    assert "1 GiB" in found["failures"][0]["why"]


def test_other_errors_of_an_eager_step_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_turns(*arguments: object) -> list[dict[str, Any]]:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(training_stage, "_take_turns", take_turns)
    with pytest.raises(RuntimeError, match="assert"):
        training_stage._measure_form(CompiledTrainee(PLAN), Form(batch_size=4), PLAN, Budget(60))
    failed = training_stage._measure_form(CompiledTrainee(PLAN), Form(batch_size=4, compiled=True), PLAN, Budget(60))
    assert failed["rows"] == []
    assert "assert" in failed["failures"][0]["why"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
def test_both_forms_of_generation_say_what_the_reference_says() -> None:
    """In fp32, where rounding does not decide; against ``greedy``, the reference of the rest of the package."""
    shared = SharedModel(PLAN.config, ROWS[1:3], device=CPU, dtype=torch.float32)
    shared.model.eval()
    inputs = make_inputs(PLAN.config, 2, device=CPU, dtype=torch.float32)
    for row in ROWS[1:3]:
        model = shared.use(row)
        with torch.inference_mode():
            video = model.encode_video(inputs.frames_BTCHW)
        want = greedy(model, inputs.prompt(), inputs.position_B, video, max_new_tokens=32, stop_id=None)
        for compile_with in (None, {"backend": "eager"}):
            answerer = Answerer(shared, row, inputs, Stopwatch(CPU), compile_with)
            for _ in range(2):  # the second time the cache is used again
                assert answerer.answer()[1].tolist() == want


@pytest.mark.slow
def test_the_picture_refuses_what_no_gpu_measured(whole: tuple[Path, str], tmp_path: Path) -> None:
    output = tmp_path / "gpu.png"
    for result, says in ((whole[0], "says nothing about"), (tmp_path / "none.json", "is not there yet")):
        command = [sys.executable, str(ROOT / "scripts/plot_gpu.py"), str(result), str(output)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert says in done.stderr
        assert not output.exists()


@pytest.mark.slow
def test_the_picture_is_drawn_from_a_gpus_result(whole: tuple[Path, str], tmp_path: Path) -> None:
    content = json.loads(whole[0].read_text("utf-8"))
    content["environment"] |= {"is_gpu": True, "smallest": False}
    speeds = [{"num_video_tokens": count, "samples_per_s": 1000 / count} for count in (1024, 128)]
    rows = {
        "onnxruntime-cuda, fp16": {"passed": True, "speeds": speeds},
        "tensorrt, fp16": {"refused": "not installed"},
    }
    content["runtime"] = {"what": {"samples_per_s": "answered", "text": "32 tokens"}, "rows": rows}
    result, output = tmp_path / "gpu.json", tmp_path / "gpu.png"
    result.write_text(json.dumps(content), "utf-8")
    subprocess.run([sys.executable, str(ROOT / "scripts/plot_gpu.py"), str(result), str(output)], check=True)
    assert output.read_bytes().startswith(b"\x89PNG")
