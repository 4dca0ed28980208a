"""Stage ``runtime`` of the GPU check on toy bundles, with the real engines of a CPU; slow: on real exports.

``ToyBundles`` takes the place of the exports, which take longer than all of this.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_gpu_check import here, script
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

from blip3v.bench.sample import Sample
from blip3v.bundle.precision import Precision
from blip3v.errors import BackendError, ProviderError
from blip3v.runtime import VideoLimits, VideoLM
from blip3v.runtime.opening import open_model
from blip3v.runtime.tensorrt_library import is_installed
from blip3v.video import SpareDecoder
from scripts.gpu import runtime as stage
from scripts.gpu import wheels
from scripts.gpu.plan import Budget, Plan
from scripts.gpu.report import Report
from scripts.gpu.runtime_bundles import KeptWeights
from scripts.gpu.runtime_cases import Case, cases, refusal
from scripts.gpu.runtime_engines import build, count_layers
from scripts.gpu.runtime_reference import Reference, compare
from scripts.gpu.runtime_worker import Job, Outputs, RuntimeWorker, _outputs
from scripts.gpu.tables import print_report

QUESTION = "which way does the circle turn"
TOKEN_IDS = [5, 9, 13]
RIGHT, OTHER_ENGINE = Case("onnxruntime", "fp32"), Case("openvino", "fp32")
REFUSED, BROKEN = Case("onnxruntime-cuda", "int4"), Case("onnxruntime", "int8")


class ToyBundles:
    """Stands in for ``Bundles``."""

    question = QUESTION
    frames = np.random.default_rng(3).integers(0, 256, (6, 20, 30, 3), np.uint8)

    dropped: ClassVar[list[Case]] = []

    def __init__(self, plan: Plan) -> None:
        self._folder = plan.folder

    def path(self, case: Case) -> Path:
        return self._folder / case.precision

    def get(self, case: Case) -> tuple[Path, dict[str, Any]]:
        if case == BROKEN:
            raise RuntimeError("/opt/lib/engine.so: no such kernel, see https://some.page/kernels\nat line 1")
        path, config = self.path(case), toy_config(max_context=2048)
        if not path.exists():
            write_bundle(path, config, Weights.random(config.text), precision=case.precision, random_init=True)
        return path, {}

    def drop(self, case: Case) -> None:
        self.dropped.append(case)


def toy_reference(bundles: ToyBundles, plan: Plan) -> Reference:
    """What the bundle returns in this process."""
    path, _ = bundles.get(RIGHT)
    return Reference(outputs_of(path), TOKEN_IDS)


def outputs_of(bundle: Path) -> Outputs:
    options: dict[str, Any] = dict.fromkeys(("threads", "max_context", "max_cache_bytes"))
    options |= {"backend": "onnxruntime", "device": "cpu", "limits": VideoLimits(), "allow_random": True}
    model = open_model(bundle, on_estimate=lambda needed: None, spare_decoder=SpareDecoder(), **options)
    with VideoLM(model) as lm:
        return _outputs(lm, model, ToyBundles.frames, QUESTION, TOKEN_IDS)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan(device=torch.device("cpu"), smallest=True, seconds=60, folder=tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def report(plan: Plan) -> Iterator[Report]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "Bundles", ToyBundles)
        patch.setattr(stage, "reference_of", toy_reference)
        patch.setattr(stage, "cases", lambda plan: [REFUSED, BROKEN, RIGHT, OTHER_ENGINE])
        report = Report(plan.folder / "gpu.json", environment={}, run={})
        stage.runtime(plan, report)
        # Not what failed, which is tried again, nor the base's, which the other engine shares.
        assert ToyBundles.dropped == [REFUSED]
        yield report


def test_right_bundles_pass_and_are_measured_in_turns(report: Report) -> None:
    rows = report.rows("runtime")
    first, second = rows[str(RIGHT)], rows[str(OTHER_ENGINE)]
    assert first["passed"] is second["passed"] is True
    assert second["computed"]["decoder"]["engine"] == "OpenVINO"
    assert (first["base"], second["base"]) == (None, str(RIGHT))
    for row in (first, second):
        assert {found["output"] for found in row["comparisons"]} == {"video_tokens", "prefill", "steps"}
        assert [speed["num_video_tokens"] for speed in row["speeds"]] == [1024, 128]
        assert all(speed[name] > 0 for speed in row["speeds"] for name in ("samples_per_s", "prefill_ms", "token_ms"))
        assert row["open_s"] > 0
        assert row["peak_rss_bytes"] > 0
    assert 0 < second["comparisons"][-1]["relative_error"] < 1e-3  # another engine, so not the same sums
    assert all(speed["times_base"] > 0 for speed in second["speeds"])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_other_weights_miss_the_tolerance_of_every_precision(report: Report, plan: Plan, precision: str) -> None:
    path, config = plan.folder / "other", toy_config(max_context=2048)
    if not path.exists():
        write_bundle(path, config, Weights.random(config.text, seed=1), random_init=True)
    right, wrong = (outputs_of(plan.folder / name) for name in ("fp32", "other"))
    reference = Reference(right, TOKEN_IDS)
    assert compare(right, reference, Precision.parse(precision))["passed"] is True
    found = compare(wrong, reference, Precision.parse(precision))
    assert [row["passed"] for row in found["comparisons"]] == [True, False, False]  # the decoder's weights alone
    assert found["passed"] is False


def test_values_that_are_not_finite_miss_and_are_valid_json(report: Report, plan: Plan) -> None:
    right = outputs_of(plan.folder / "fp32")
    overflown = right._replace(logits_NV=np.full_like(right.logits_NV, np.inf))
    found = compare(overflown, Reference(right, TOKEN_IDS), Precision.parse("int4"))
    assert found["passed"] is False
    json.dumps(found, allow_nan=False)


def test_what_does_not_run_has_the_librarys_reason(report: Report) -> None:
    rows = report.rows("runtime")
    assert "no product of int8 by int8" in rows[str(REFUSED)]["refused"]
    assert rows[str(BROKEN)]["failed"] == "RuntimeError: engine.so: no such kernel, see https://some.page/kernels"
    assert report.misses() == [str(BROKEN)]
    assert not report.holds("runtime", str(REFUSED))
    assert not report.holds("runtime", str(BROKEN))


def test_a_worker_says_what_was_refused_and_what_failed(report: Report, plan: Plan, tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", ToyBundles.frames)
    job = Job(
        bundle=str(plan.folder / "fp32"), backend="openvino:npu", frames=str(tmp_path / "frames.npy"), question="?"
    )
    with pytest.raises(ProviderError, match="NPU"):
        RuntimeWorker(job)
    with pytest.raises(BackendError, match=r"FileNotFoundError: .*nowhere\.npy"):
        RuntimeWorker(replace(job, frames=str(tmp_path / "nowhere.npy")))


def test_the_table_has_the_speeds_and_the_reasons(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    environment = {"device": "CPU", "is_gpu": False, "preset": "toy"}
    print_report({**report.content, "environment": environment}, Console(width=180))
    printed = capsys.readouterr().out
    assert "samples/s at 1024" in printed
    assert "refused: onnxruntime-cuda does not run int8" in printed


def test_a_second_run_measures_only_what_is_missing_and_failures_last(
    report: Report, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads(json.dumps(report.rows("runtime")))
    tried: list[Case] = []

    def refuse(case: Case) -> str:
        tried.append(case)
        return "not now"

    monkeypatch.setattr(stage, "cases", lambda plan: [BROKEN, REFUSED, RIGHT])
    monkeypatch.setattr(stage, "refusal", refuse)
    stage.runtime(plan, report)
    assert tried == [REFUSED, BROKEN]
    assert report.rows("runtime")[str(RIGHT)] == before[str(RIGHT)]
    report.rows("runtime").update(before)


def test_a_stage_without_time_exports_nothing(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "spent", True)
    monkeypatch.setattr(stage, "refusal", lambda case: None)
    report = Report(tmp_path / "gpu.json", environment={}, run={})
    stage.runtime(plan, report)
    assert all("were spent" in row["skipped"] for row in report.rows("runtime").values())


def test_on_a_gpu_every_precision_of_the_provider_and_every_engine_is_a_case() -> None:
    wanted = cases(Plan(device=torch.device("cuda"), smallest=False, seconds=1))
    assert len(set(wanted)) == len(wanted)
    assert {case.target for case in wanted} == {"onnxruntime", "tensorrt", "tensorrt-rtx", "tensorrt-legacy"}
    runs = {case.precision for case in wanted if case.backend == "onnxruntime-cuda"}
    assert {"fp16", "fp16+kv-int8", "video_encoder=fp32,decoder=fp16", "int8"} <= runs
    assert refusal(Case("tensorrt", "fp16+kv-int8", "tensorrt")) is not None


def test_noise_on_the_weights_is_relative_and_stays() -> None:
    weights = {"a": torch.ones(1000), "b": torch.full((1000,), 100.0)}
    assert torch.equal(KeptWeights(weights)["a"], weights["a"])
    noisy = KeptWeights(weights, 0.1)
    assert noisy["b"].std() == pytest.approx(10, rel=0.2)
    assert noisy["b"] is noisy["b"]


def test_ratios_are_medians_over_the_turns() -> None:
    def taken(*whole_s: float) -> list[Sample]:
        stages = {
            "preprocess_s": 0.25,
            "video_encoder_s": 0.25,
            "prefill_s": 0.25,
            "steps_s": 0.31,
            "num_steps": 31,
            "requests": (),
        }
        return [Sample(whole_chain_s=s, file_decode_s=0, prompt_tokens=1, **stages) for s in whole_s]  # type: ignore

    samples = {
        ("case", 1024): taken(4, 8, 8),
        ("base", 1024): taken(8, 8, 8),
        ("case", 16): taken(1, 2, 4),
        ("base", 16): taken(2, 2, 2),
    }
    slow, quick = stage.speeds(samples, (1024, 16))
    assert (slow["samples_per_s"], slow["times_baseline"], slow["times_base"]) == (1 / 8, 1, 1)
    assert (quick["samples_per_s"], quick["times_baseline"], quick["times_base"]) == (1 / 2, 4, 1)
    assert quick["first_token_ms"] == pytest.approx(1690)
    assert quick["token_ms"] == pytest.approx(10)


def test_layers_are_counted_by_what_they_write() -> None:
    report = {
        "Layers": [
            {"Name": "a", "Outputs": [{"Name": "x", "Format/Datatype": "Half"}]},
            {"Name": "b", "Outputs": [{"Name": "int8_y", "Format/Datatype": "Row major linear FP16 format"}]},
            {"Name": "c", "Outputs": [{"Name": "z", "Format/Datatype": "Int8"}]},
            {"Name": "d", "Outputs": []},
            "only a name",
        ]
    }
    assert count_layers(report) == {"FP16": 2, "not told": 2, "INT8": 1}


def test_a_wheel_is_split_and_joined_byte_for_byte(tmp_path: Path) -> None:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    wheel.write_bytes(np.random.default_rng(0).bytes(2500))
    *parts, record = wheels.split(wheel, tmp_path / "parts", part_bytes=1000)
    assert [part.stat().st_size for part in parts] == [1000, 1000, 500]
    joined = wheels.join(record, tmp_path / "parts")
    assert (joined.name, joined.read_bytes()) == (wheel.name, wheel.read_bytes())


@pytest.mark.parametrize(
    ("content", "says"),
    [pytest.param(b"x" * 1000, "damaged", id="damaged"), pytest.param(None, "not there", id="missing")],
)
def test_a_part_that_is_not_as_it_was_is_refused(content: bytes | None, says: str, tmp_path: Path) -> None:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    wheel.write_bytes(bytes(2500))
    _, second, _, record = wheels.split(wheel, tmp_path, part_bytes=1000)
    second.unlink()
    if content is not None:
        second.write_bytes(content)
    with pytest.raises(SystemExit, match=rf"part01 is {says}; bring it again"):
        wheels.join(record, tmp_path)


def test_without_what_exports_need_the_stage_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = here("--output", str(tmp_path / "gpu.json"))
    assert done.exit_code != 0
    assert "stage runtime exports bundles, which needs onnxscript; run:" in done.stderr
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.slow
@pytest.mark.trt
@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="TensorRT-RTX is not installed")
def test_engines_are_built_and_described_where_they_cannot_be_read(tmp_path: Path) -> None:
    config = toy_config(max_context=2048)
    weights = Weights.random(config.text)
    path = write_bundle(tmp_path / "rtx", config, weights, precision="fp16", graphs_for="tensorrt-rtx")
    made = build(path)
    assert all(graph["size_bytes"] > 0 and graph["build_s"] > 0 for graph in made["graphs"].values())
    assert (made["layers"]["decoder"] is None) is (made["unreadable"] is not None)
    with pytest.raises(ProviderError, match="was exported for onnxruntime"):
        build(write_bundle(tmp_path / "other", config, weights))


@pytest.mark.slow
def test_the_whole_stage_runs_without_pyav_and_sees_wrong_weights(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--smallest", "--only", "runtime", "--folder", str(tmp_path / "bundles"))
    done = script(*options, "--output", str(tmp_path / "right.json"), absent=("av",))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "right.json").read_text("utf-8"))["runtime"]["rows"]
    assert len(rows) == 4
    assert all(row["passed"] for row in rows.values())
    wrong = (*options, "--perturb", "0.5", "--output", str(tmp_path / "wrong.json"))
    done = script(*wrong, absent=("av",))
    assert done.returncode == 5
    rows = json.loads((tmp_path / "wrong.json").read_text("utf-8"))["runtime"]["rows"]
    assert [row["passed"] for row in rows.values()] == [False] * 4


@pytest.mark.slow
def test_a_wheel_that_came_in_parts_is_installed(tmp_path: Path) -> None:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("thing.py", "ANSWER = 42\n")
        file.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        file.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("thing-1.0.dist-info/RECORD", "")
    wheels.split(wheel, tmp_path / "parts", part_bytes=200)
    path = Path(__file__).parents[2] / "scripts/gpu/wheels.py"
    command = [sys.executable, str(path), "install", str(tmp_path / "parts"), "--target", str(tmp_path / "site")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "site" / "thing.py").read_text("utf-8") == "ANSWER = 42\n"
