"""``blip3v export`` as a user runs it: what it writes, what it refuses, and that a mismatch leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from export_models import export_decoder, export_video_encoder, small_config, write_folder

from blip3v import cli
from blip3v.bundle import open_bundle, verify_bundle
from blip3v.export import pipeline
from blip3v.runtime import memory

Graphs = dict[str, ir.Model]
FP32 = ("--precision", "fp32")  # of the graphs that are ready


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model folder."""
    return write_folder(tmp_path / "model", small_config())


@pytest.fixture
def ready_graphs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Makes ``export_bundle`` use the session's fp32 graphs of ``small_config()``; a test may break them first."""
    graphs = {
        "video_encoder": ir.load(export_video_encoder(tmp_path_factory.getbasetemp(), "tokenlearner", "fp32").path),
        "decoder": ir.load(export_decoder(tmp_path_factory.getbasetemp(), "fp32").path),
    }
    monkeypatch.setattr(pipeline, "video_encoder_to_onnx", lambda *_, **__: graphs["video_encoder"])
    monkeypatch.setattr(pipeline, "decoder_to_onnx", lambda *_, **__: graphs["decoder"])
    return graphs


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", *map(str, args)])
    return int(ended.value.code or 0)


def test_a_bundle_with_its_parity_report(
    ready_graphs: Graphs, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bundle"
    assert run("-m", folder, "-o", output, *FP32, "--json") == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["output"] == str(output)
    assert report["parity"] == json.loads((output / "reports" / "parity.json").read_text())
    stages = [(row["stage"], row["passed"]) for row in report["parity"]["comparisons"]]
    wanted = ["vision", "resampler", "temporal", "video_tokens", "prefill", *(f"step {n}" for n in range(1, 17))]
    assert all((stage, True) in stages for stage in wanted)
    assert report["parity"]["tokens"] == {"compared": 17, "differing": 0, "close_calls": 0}
    assert "H.264" in report["parity"]["clip"]["film"]
    assert report["size_bytes"] == sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    assert "16 steps, worst" in printed.err
    verify_bundle(output)
    manifest = open_bundle(output).manifest
    assert manifest.parity is not None
    assert manifest.parity["passed"] is True
    assert not manifest.source.random_init
    assert set(manifest.source.sha256) >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_without_a_check_the_manifest_says_so(ready_graphs: Graphs, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    assert run("-m", folder, "-o", output, *FP32, "--no-check") == 0
    assert open_bundle(output).manifest.parity is None
    assert not (output / "reports" / "parity.json").exists()
    assert run("-m", folder, "-o", output, "--no-check") == 2
    assert run("-m", folder, "-o", output, *FP32, "--no-check", "--force") == 0


@pytest.mark.parametrize(
    ("graph", "weight", "stage"),
    [
        ("decoder", "layers.1.o_proj.weight", "prefill"),
        ("video_encoder", "temporal.final_output.mlp.1.weight", "temporal"),
    ],
)
def test_a_wrong_weight_is_a_mismatch_and_leaves_nothing(
    ready_graphs: Graphs,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    graph: str,
    weight: str,
    stage: str,
) -> None:
    value = ready_graphs[graph].graph.initializers[weight]
    assert value.const_value is not None
    value.const_value = ir.Tensor(np.roll(value.const_value.numpy(), 1, axis=0), name=weight)
    output = tmp_path / "out" / "bundle"
    assert run("-m", folder, "-o", output, *FP32) == 5
    printed = capsys.readouterr().err
    assert "MISS" in printed
    assert f"do not match PyTorch: {stage}" in printed
    assert list(output.parent.iterdir()) == []


def test_a_quantised_model_over_its_budget_leaves_no_bundle(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "bundle"
    arguments = ("--precision", "int8", "--max-accuracy-drop", "0", "--backend", "onnxruntime")
    assert run("-m", folder, "-o", output, *arguments) == 5
    printed = capsys.readouterr().err
    assert "0 points of tokens that differ, EXCEEDED" in printed
    assert "layers with the largest errors" in printed
    assert "the int8 graphs lose too much" in printed
    assert "; worst layers: " in printed
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_dry_run_writes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    chosen = () if precision == "fp16" else ("--precision", precision)  # fp16 is the default
    assert run("-m", folder, *chosen, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["output"] == f"blip3v-tiny-tokenlearner-32tok-{precision}"
    assert plan["estimate"]["disk_bytes"] > 0
    assert list(empty.iterdir()) == []


def test_an_int8_cache_is_in_the_name_of_the_precision_and_of_the_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-m", folder, "--kv-cache", "int8", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["precision"] == "fp16+kv-int8"
    assert plan["output"] == "blip3v-tiny-tokenlearner-32tok-fp16-kv-int8"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--kv-cache", "int8", "--no-check"], 2, "fp16+kv-int8 needs the scales of its cache"),
        (["--preset", "tiny"], 2, "--preset has no effect with --model"),
        (["--init", "random"], 2, "--init has no effect with --model"),
        (["--encoder", "gttm"], 2, "holds the encoder tokenlearner, not gttm"),
        (["--tokens", "16"], 2, "produce 32 tokens from 8 frames, not 16"),
        (["--target", "tensorflow"], 2, "is not one of 'onnxruntime'"),
        (["--target", "tensorrt", "--precision", "fp32"], 2, "TensorRT's attention computes in half precision"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_cannot_apply_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    output = tmp_path / "bundle"
    assert run("-m", folder, "-o", output, *arguments) == code
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_folder_with_broken_weights_gives_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    output = tmp_path / "out" / "bundle"
    assert run("-m", folder, "-o", output) == 3
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "not a complete safetensors file" in errors[0]
    assert not output.parent.exists()


def test_a_clip_that_does_not_fit_the_context_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--init", "random", "--encoder", "none", "--frames", "16", "-o", tmp_path / "bundle") == 2
    assert "2048 video tokens with a question" in capsys.readouterr().err


def test_a_preset_without_weights_suggests_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--preset", "xgen-mm-vid", "-o", tmp_path / "bundle") == 2
    assert "--init random" in capsys.readouterr().err


@pytest.mark.parametrize(("memory_mib", "disk_mib", "code"), [(64, 10**6, 6), (10**6, 1, 3)], ids=["memory", "disk"])
def test_what_does_not_fit_is_refused_with_numbers_before_the_work(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    memory_mib: int,
    disk_mib: int,
    code: int,
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: memory_mib * 2**20)
    usage = shutil.disk_usage(tmp_path)._replace(free=disk_mib * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert run("-m", folder, "-o", tmp_path / "out" / "bundle") == code
    error = capsys.readouterr().err
    assert "this export needs about" in error
    assert "free" in error
    assert "export video encoder" not in error
    assert not (tmp_path / "out").exists()


def test_at_full_size_the_estimate_fits_24_gib_and_counts_one_component_at_a_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = ("--preset", "xgen-mm-vid", "--init", "random", "--encoder", "gttm", "--precision", "fp16", "--dry-run")
    needed = {}
    for extra in ((), ("--no-check",)):
        assert run(*full, *extra, "--json") == 0
        needed[extra] = json.loads(capsys.readouterr().out)["estimate"]["memory_bytes"]
    assert 4 * 3_700_000_000 < needed[()] < 20 * 2**30
    assert needed["--no-check",] < 3 * 2**30
