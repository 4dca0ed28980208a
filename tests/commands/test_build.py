"""``blip3v build`` as a user runs it: what it prints and writes, and what it says where TensorRT is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_tensorrt import write_trt_bundle

from blip3v import cli
from blip3v.bundle.engines import EngineRecord
from blip3v.export import engines
from blip3v.extras import pip_line
from blip3v.runtime.tensorrt_library import is_installed

needs_rtx = pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="TensorRT-RTX is not installed")


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", *map(str, args)])
    return int(ended.value.code or 0)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(engines, "compute_capability", lambda: None)  # as on a machine without a GPU
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    write_trt_bundle(tmp_path / "toy")
    return Path("toy")


@needs_rtx
@pytest.mark.trt
def test_engines_with_their_table_and_the_next_command(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle, "--compute-capability", "8.6, 8.9") == 0
    printed = capsys.readouterr()
    (folder,) = (bundle / "engines").iterdir()
    assert printed.out.startswith(f"{folder}: ")
    assert "peak memory" in printed.out
    for words in (
        "build the decoder\n",
        "for compute capability 8.6, 8.9",
        "video_encoder.engine",
        "at most 1 at once, 4 frames, 256 tokens, 256 of a prompt in one step",
        "no layer report: an engine can only be read with a GPU",
    ):
        assert words in printed.err
    assert printed.err.endswith("next: blip3v doctor\n")
    assert run(bundle, "--compute-capability", "8.6,8.9") == 0
    assert "these engines are there already; --force builds them again" in capsys.readouterr().err


@needs_rtx
@pytest.mark.trt
def test_json_is_the_record_with_the_files(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle, "--max-batch-size", 2, "--max-seq-len", 64, "--json", "-q") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    values = json.loads(printed.out)
    record = EngineRecord.load(Path(values["output"]))
    assert values["is_new"]
    assert values["engines"]["limits"] == {
        "max_batch_size": 2,
        "max_frames": 4,
        "max_seq_len": 64,
        "prefill_chunk": 64,
    }
    for name, graph in record.graphs.items():
        assert values["engines"]["graphs"][name]["sha256"] == graph.sha256
        assert Path(values["engines"]["graphs"][name]["file"]).stat().st_size == graph.size_bytes
    assert values["layers"]["decoder"]["MATRIX_MULTIPLY"] == {"HALF": 13}
    assert values["size_bytes"] == sum(graph.size_bytes for graph in record.graphs.values())


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "tensorrt-legacy"])
def test_without_tensorrt_one_sentence_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target
) -> None:
    for name in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    bundle = write_trt_bundle(tmp_path / "toy", target=target)
    assert run(bundle) == 6
    name, extra = ("TensorRT-RTX", "tensorrt-rtx") if target == "tensorrt-rtx" else ("TensorRT", "tensorrt")
    assert capsys.readouterr().err == f"error: {name} is not installed; run: {pip_line(extra)}\n"


def test_a_bundle_for_onnx_runtime_is_refused_with_the_line_that_exports_another(
    bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle_path) == 2
    error = capsys.readouterr().err
    assert f"{bundle_path} was exported for onnxruntime" in error
    assert "export` with --encoder mean --precision fp32 --target tensorrt-rtx, or --target tensorrt" in error


def test_options_that_have_no_effect_are_refused_as_options(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle, "--hardware-compatibility", "ampere-plus") == 2
    assert capsys.readouterr().err.endswith("list the GPUs instead: --compute-capability 8.6,8.9\n")
    assert run(bundle, "--library", "tensorrt", "--compute-capability", "8.6") == 2
    assert "build with --library tensorrt_rtx" in capsys.readouterr().err
    assert run(bundle, "--compute-capability", "sm86") == 2
    assert "numbers such as 8.6 or 12.0 are expected" in capsys.readouterr().err


@needs_rtx
@pytest.mark.trt
def test_neither_pytorch_nor_transformers_is_imported(bundle: Path) -> None:
    """Engines are built on the machine that runs them, which has no PyTorch."""
    hidden = "sys.modules.update(torch=None, transformers=None, onnxruntime=None)"
    arguments = [str(bundle), "--compute-capability", "8.6", "--json", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {hidden}; from blip3v.cli import main; main()", "build", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
