from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_bundles import small_bundles
from bench_samples import report, row
from click.testing import CliRunner, Result

from blip3v.bench import BenchReport
from blip3v.bench.csv_text import csv_text
from blip3v.bench.limits import GemmRate, Limits
from blip3v.bench.markdown_text import markdown_text
from blip3v.bundle import open_bundle
from blip3v.bundle.scan import hash_file
from blip3v.commands.bench import command
from blip3v.commands.bench_files import draw_default
from blip3v.commands.failure import failure_of
from blip3v.errors import ArtifactMissingError, ConfigError, SlowerError, UnsupportedVideoError, UsageError
from blip3v.extras import pip_line
from blip3v.runtime import VideoLM
from scripts import plot_bench

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples" / "turn.mp4"
FEW = ("-w", "1", "-r", "2", "--threads", "1")


LIMITS = Limits(
    threads=1,
    read_bytes_per_s=2e10,
    read_problem=None,
    cache_bytes=2**20,
    gemm=(GemmRate(backend="onnxruntime", kind="float32", operations_per_s=1e11),),
)


@pytest.fixture(scope="module", autouse=True)
def known_limits() -> Iterator[None]:
    """Measuring the machine's takes seconds and has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blip3v.commands.bench.measure_limits", lambda threads: LIMITS)
        yield


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return small_bundles(tmp_path_factory.getbasetemp()).paths


def _bench(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False)


@pytest.fixture(scope="module")
def result(bundles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One real measurement of both bundles, also written to files."""
    path = tmp_path_factory.mktemp("results") / "bench.json"
    files = [("--csv", path.with_suffix(".csv")), ("--markdown", path.with_suffix(".md"))]
    if importlib.util.find_spec("matplotlib") is not None:
        files.append(("--plot", path.with_suffix(".svg")))
    words = [str(word) for pair in files for word in pair]
    return _bench(*map(str, bundles), *FEW, "--clip", str(CLIP), "-o", str(path), *words, "--json"), path


def test_json_says_what_was_measured_on_what(result: tuple[Result, Path], bundles: list[Path]) -> None:
    ran, path = result
    found = json.loads(ran.stdout)
    assert json.loads(path.read_text("utf-8")) == found
    assert found["schema_version"] == 2
    assert found["setup"] == {
        **{"clip": "turn.mp4", "clip_sha256": hash_file(CLIP), "warmup": 1, "repetitions": 2, "threads": 1},
        **{"question_tokens": 32, "new_tokens": 32, "decoding": "greedy, stop token ignored"},
    }
    assert found["baseline"] == bundles[0].name
    assert {"cpu", "physical_cores", "memory_bytes", "python", "packages", "load_average", "date", "blip3v"} <= set(
        found["environment"]
    )
    for entry, path in zip(found["rows"], bundles, strict=True):
        assert entry["name"] == path.name
        assert entry["manifest_sha256"] == hash_file(path / "manifest.json")
        assert entry["precision"] == "fp16"
        assert entry["computed_in"] == "fp32 on OpenVINO CPU (video encoder) and fp32 on ONNX Runtime CPU (decoder)"
        assert (
            entry["backend"]["decoder"].items() >= {"backend": "onnxruntime", "device": "CPU", "dtype": "fp32"}.items()
        )
        assert entry["parity_checked"]
        assert entry["peak_rss_bytes"] > 2**25
        tokenizer = open_bundle(path).tokenizer
        assert len(tokenizer.encode(entry["question"])) == 32
        assert entry["prompt_tokens"] > entry["num_video_tokens"] + 32
    assert [entry["weights"] for entry in found["rows"]] == ["trained", "untrained"]


def test_every_stage_of_every_sample_took_time(result: tuple[Result, Path]) -> None:
    for entry in json.loads(result[0].stdout)["rows"]:
        assert len(entry["samples"]) == 2
        for sample in entry["samples"]:
            names = ("file_decode_s", "preprocess_s", "video_encoder_s", "prefill_s", "steps_s")
            stages = [sample[name] for name in names]
            assert all(seconds > 0 for seconds in stages)
            assert sum(stages) < sample["whole_chain_s"]
            assert sample["num_steps"] == 31  # the prefill produces the first of the 32 tokens
            (request,) = sample["requests"]
            assert sum(stages[:4]) < request["time_to_first_token_s"] < request["end_to_end_s"]
            assert request["end_to_end_s"] <= sample["whole_chain_s"]
            assert request["num_new_tokens"] == 32


def test_latencies_and_throughput_are_those_of_the_samples(result: tuple[Result, Path]) -> None:
    for entry in json.loads(result[0].stdout)["rows"]:
        metrics, samples = entry["metrics"], entry["samples"]
        assert metrics["inter_token_latency_s"]["n"] == 2 * 31
        assert metrics["time_to_first_token_s"]["n"] == 2
        duration_s = sum(sample["whole_chain_s"] for sample in samples)
        assert metrics["request_throughput"] == pytest.approx(2 / duration_s)
        assert metrics["output_token_throughput"] == pytest.approx(64 / duration_s)
        spans = [one["end_to_end_s"] - one["time_to_first_token_s"] for s in samples for one in s["requests"]]
        assert metrics["time_per_output_token_s"]["mean"] == pytest.approx(sum(spans) / 62)


def test_one_bundle_is_measured_at_several_counts_with_one_decoder(bundles: list[Path]) -> None:
    small = bundles[1]
    counts = ("--tokens", "16", "--tokens", "1024")
    ran = _bench(str(small), *counts, "-w", "0", "-r", "1", "--threads", "1", "--clip", str(CLIP), "--json")
    found = json.loads(ran.stdout)
    few, many = found["rows"]
    assert (few["num_video_tokens"], many["num_video_tokens"]) == (16, 1024)
    assert many["prompt_tokens"] - few["prompt_tokens"] == 1008
    assert few["own_num_video_tokens"] == many["own_num_video_tokens"] == 16
    assert few["open_s"] == many["open_s"] > 0
    assert found["baseline"] == small.name
    assert many["language_model"]["ratio"] == 1.0
    assert few["tokens_per_s"] == pytest.approx(1 / few["stages"]["per_token_s"]["p50"])


def test_each_stage_is_a_share_of_a_measured_limit(result: tuple[Result, Path]) -> None:
    found = json.loads(result[0].stdout)
    assert Limits.from_dict(found["limits"]) == LIMITS
    for entry in found["rows"]:
        encoder, prefill, step = entry["shares"]
        assert encoder["limit"] == prefill["limit"] == "fp32 GEMM"
        seconds = {name: entry["stages"][f"{name}_s"]["p50"] for name in ("video_encoder", "prefill", "per_token")}
        operations = entry["work"]["prefill_operations"]
        assert prefill["share"] == pytest.approx(operations / seconds["prefill"] / 1e11)
        assert encoder["share"] > 0
        assert step["share"] == pytest.approx(entry["work"]["step_bytes"] / seconds["per_token"] / 2e10)
        cache_bytes = (entry["prompt_tokens"] + 16) * 2 * 128 * 2  # keys and values of one layer in fp16
        weights_bytes = 4 * (128 * 384 + 128**2 + 3 * 128 * 384 + 128 * 611)  # widened to fp32
        assert entry["work"]["step_bytes"] == pytest.approx(weights_bytes + cache_bytes, rel=0.02)


def test_batches_and_requests_at_once_are_rows_of_their_own(bundles: list[Path]) -> None:
    shapes = ("--batch-sizes", "1,2", "--requests-at-once", "2", "--question-tokens", "5", "--new-tokens", "3")
    ran = _bench(str(bundles[1]), *shapes, "-w", "0", "-r", "1", "--threads", "1", "--clip", str(CLIP), "--json")
    found = json.loads(ran.stdout)
    rows = found["rows"]
    assert [(row["batch_size"], row["requests_at_once"]) for row in rows] == [(1, 1), (2, 1), (1, 2)]
    assert (found["setup"]["question_tokens"], found["setup"]["new_tokens"]) == (5, 3)
    assert [len(row["samples"][0]["requests"]) for row in rows] == [1, 2, 2]
    assert [row["metrics"]["inter_token_latency_s"] is None for row in rows] == [False, True, False]
    assert rows[1]["work"]["prefill_operations"] == 2 * rows[0]["work"]["prefill_operations"]
    assert (rows[2]["work"], rows[2]["shares"], rows[2]["language_model"]["samples_per_s"]) == (None, [], None)
    assert found["baseline"] == bundles[1].name
    assert rows[0]["whole_chain"]["ratio"] == 1.0


@pytest.mark.parametrize("counts", ["0", "1,,2", "x", "2,2", "-1", "99999999999"])
def test_counts_that_cannot_be_measured_are_refused(counts: str) -> None:
    for option in ("--batch-sizes", "--requests-at-once"):
        ran = _bench("x", f"{option}={counts}")
        assert ran.exit_code == 2
        assert "whole number from 1 to 1024" in ran.stderr or "twice" in ran.stderr


@pytest.mark.parametrize("share", ["10", "-1%", "x%", "1e3%", "%"])
def test_a_tolerance_is_a_percentage(share: str) -> None:
    ran = _bench("x", f"--tolerance={share}")
    assert ran.exit_code == 2
    assert "is not a percentage from 0% up; write for example 10%" in ran.stderr


def test_fewer_video_tokens_make_the_language_model_faster(result: tuple[Result, Path]) -> None:
    baseline, small = json.loads(result[0].stdout)["rows"]
    assert baseline["language_model"]["ratio"] == 1
    assert small["language_model"]["ratio"] > 1


def test_tables_go_to_stdout_and_a_default_clip_is_made(bundles: list[Path]) -> None:
    ran = _bench(str(bundles[1]), "-w", "0", "-r", "1")
    assert "samples per second" in ran.stdout
    assert "16  tokenlearner fp16, untrained" in ran.stdout
    assert "decoded from turn.mp4" in ran.stdout
    assert "No ratios" in ran.stdout


def test_every_file_is_made_from_the_result(result: tuple[Result, Path]) -> None:
    path = result[1]
    found = json.loads(path.read_text("utf-8"))
    assert path.with_suffix(".csv").read_text("utf-8") == csv_text(found)
    assert path.with_suffix(".md").read_text("utf-8") == markdown_text(found)
    assert found["command"]


def test_the_script_draws_what_the_command_draws(result: tuple[Result, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "bench.svg"
    plot_bench.main(result[1], output)
    assert output.read_bytes() == result[1].with_suffix(".svg").read_bytes()
    with pytest.raises(SystemExit, match=r"has to end in .png"):
        plot_bench.main(result[1], tmp_path / "bench.jpg")


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError) as refused:
        _bench("x", "--plot", str(tmp_path / "bench.png"))
    found = failure_of(refused.value, verb="bench")
    assert found is not None
    assert found.message == f"the package 'matplotlib' is not installed; run: {pip_line('eval')}"


def test_a_result_that_is_slower_than_its_baseline_ends_with_code_10(
    result: tuple[Result, Path], bundles: list[Path], tmp_path: Path
) -> None:
    baseline = json.loads(result[1].read_text("utf-8"))
    for entry in baseline["rows"]:
        for figures in entry["stages"].values():
            figures["p50"] /= 1000
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(baseline))
    arguments = ("-w", "0", "-r", "1", "--threads", "1", "--clip", str(CLIP), "--baseline", str(path), "--json")
    ran = CliRunner().invoke(command, [str(bundles[1]), *arguments])
    assert isinstance(ran.exception, SlowerError)
    assert ran.exception.exit_code == 10
    found = json.loads(ran.stdout)
    assert found["error"]["exit_code"] == 10
    assert found["comparison"]["tolerance"] == 0.1
    worse = [median["quantity"] for median in found["comparison"]["medians"] if median["is_worse"]]
    assert {"prefill_s", "whole_chain_s"} <= set(worse)


def test_a_baseline_of_another_setup_is_refused_before_anything_is_measured(
    result: tuple[Result, Path], bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blip3v.commands.bench.run_bench", lambda *of, **how: pytest.fail("measured"))
    arguments = (str(bundles[1]), "--threads", "1", "--clip", str(CLIP), "--baseline", str(result[1]))
    with pytest.raises(UsageError, match="new_tokens was 32 and is 8"):
        _bench(*arguments, "--new-tokens", "8")


def test_an_existing_file_is_kept_unless_forced(bundles: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    output.write_text("mine")
    arguments = (str(bundles[1]), "-w", "0", "-r", "1", "--clip", str(CLIP), "-o", str(output))
    with pytest.raises(UsageError, match="add --force"):
        _bench(*arguments)
    assert output.read_text() == "mine"
    _bench(*arguments, "--force")
    assert json.loads(output.read_text("utf-8"))["schema_version"] == 2
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([str(ROOT / "examples")], ArtifactMissingError, "is not a bundle: it is a folder of films"),
        (["nowhere"], ArtifactMissingError, "nowhere"),
        (["x", "--precision", "fp16"], UsageError, "--precision has no effect"),
        (["x", "--models", "y"], UsageError, "--models has no effect"),
        (["--force"], UsageError, "--force has no effect"),
        (["-o", "nowhere/bench.json"], UsageError, "is not a folder"),
        (["-o", "."], UsageError, "choose a file"),
        (["--csv", "nowhere/bench.csv"], UsageError, "choose --csv in an existing folder"),
        (["--csv", "a", "--markdown", "a"], UsageError, "two of --csv, --markdown name the same file"),
        (["--plot", "bench.jpg"], UsageError, "has to end in .png, .svg, .pdf"),
        (["--tolerance", "5%"], UsageError, "--tolerance has no effect without --baseline"),
        (["--allow-other-setup"], UsageError, "--allow-other-setup has no effect without --baseline"),
        (["--init", "random"], UsageError, "--init has no effect without --preset"),
        (["--preset", "tiny"], UsageError, "--preset tiny is measured with random weights; add --init random"),
        (["x", "--preset", "tiny", "--init", "random"], UsageError, "--preset and BUNDLE name different things"),
        (["--preset", "tiny", "--init", "random", "--models", "x"], UsageError, "--preset and --models name different"),
        (["--baseline", "nowhere.json"], ConfigError, "nowhere.json cannot be read"),
        (["--models", "nowhere"], ArtifactMissingError, "tiny-none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(
    arguments: list[str], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        _bench(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_clip_that_is_not_a_video_gets_the_error_of_the_runtime(bundles: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(UnsupportedVideoError) as direct, VideoLM.open(bundles[1]) as lm:
        lm.encode(text)
    with pytest.raises(UnsupportedVideoError) as measured:
        _bench(str(bundles[1]), "--clip", str(text))
    assert str(measured.value) == str(direct.value)
    with pytest.raises(UnsupportedVideoError, match="is not a file"):
        _bench(str(bundles[1]), "--clip", str(tmp_path / "none.mp4"))


def test_help_has_examples_and_defaults() -> None:
    text = _bench("--help").stdout
    assert text.count("blip3v bench ") == 9
    assert "default: 30" in text


def test_more_threads_than_cpus_are_refused_before_anything_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 threads were passed on to the engine of each bundle and did not end."""
    monkeypatch.setattr("blip3v.commands.bench.default_bundles", lambda *a, **k: pytest.fail("exported"))
    with pytest.raises(UsageError, match="threads is 100000; this machine has"):
        _bench("--threads", "100000")


def test_a_preset_is_measured_at_all_counts_in_few_turns(
    bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle stands for the export, which has its own test."""
    asked: dict[str, object] = {}

    def export(folder: Path, preset: str, **how: object) -> Path:
        asked.update(how, preset=preset)
        return bundles[1]

    def measure(paths: tuple[Path, ...], clip: Path, **how: object) -> BenchReport:
        asked.update(how, bundles=paths)
        return report(row([1, 1]))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "blip3v-bench").mkdir()
    monkeypatch.setattr("blip3v.commands.bench.random_bundle", export)
    monkeypatch.setattr("blip3v.commands.bench.run_bench", measure)
    ran = _bench("--preset", "xgen-mm-vid", "--init", "random", "--precision", "fp32", "--clip", str(CLIP))
    assert "samples per second" in ran.stdout
    assert (asked["preset"], str(asked["precision"]), asked["bundles"]) == ("xgen-mm-vid", "fp32", (bundles[1],))
    assert (asked["warmup"], asked["repetitions"]) == (1, 3)
    shapes = asked["shapes"]
    assert isinstance(shapes, list)
    assert [shape.num_video_tokens for shape in shapes] == [1024, 128, 32, 16]


def test_the_plot_that_comes_without_asking_says_what_it_needs(
    result: tuple[Result, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, path = json.loads(result[1].read_text("utf-8")), tmp_path / "bench.png"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    draw_default(found, path)
    assert not path.exists()
    assert f"no plot: matplotlib is not installed; run: {pip_line('eval')}" in capsys.readouterr().err
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    draw_default(found, path)
    assert path.read_bytes().startswith(b"\x89PNG")
