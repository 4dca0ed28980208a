"""``blip3v eval`` on an untrained model, and on its bundle against it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest
from click.testing import CliRunner
from export_models import export_decoder, export_video_encoder, small_config, write_folder
from published import lay_out

from blip3v.bundle import Precision, open_bundle, verify_bundle
from blip3v.commands.eval import command
from blip3v.errors import UsageError
from blip3v.export import export_bundle, folder_source, pipeline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "untrained", small_config())


def test_the_command_writes_what_it_prints_and_overwrites_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    arguments = ["-m", str(folder), "--questions", "8", "-o", str(out), "--json"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads(out.read_text())
    assert record["num_questions"] == 8
    again = CliRunner().invoke(command, arguments)
    assert isinstance(again.exception, UsageError)


FILMS = '{"recipe": {"stages": [{"task": "instructions", "num_films": 9}]}}'


@pytest.fixture
def bundle(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> Path:
    """The bundle of ``folder`` in fp32, made of the session's graphs."""
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setattr(
        pipeline,
        "video_encoder_to_onnx",
        lambda *_, **__: ir.load(export_video_encoder(base, "tokenlearner", "fp32").path),
    )
    monkeypatch.setattr(pipeline, "decoder_to_onnx", lambda *_, **__: ir.load(export_decoder(base, "fp32").path))
    output = tmp_path / "bundle"
    export_bundle(folder_source(folder), output, precision=Precision.parse("fp32"), check=False)
    return output


def compare(*arguments: object) -> dict:
    result = CliRunner().invoke(command, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output or repr(result.exception)
    return json.loads(result.stdout)


def test_a_bundle_against_its_model_on_every_engine(folder: Path, bundle: Path) -> None:
    report = compare("-m", bundle, "--reference", folder, "--questions", 8)
    assert [engine["backend"] for engine in report["engines"]] == ["onnxruntime", "openvino"]
    for engine in report["engines"]:
        answers = engine["answers"]
        assert engine["data"]["num_prompts"] == answers["num_answers"] == answers["answers_agreeing"] == 8
        assert answers["tokens_agreeing"] == answers["num_tokens"] > 8
        assert answers["kl_max"] < 1e-5
        assert engine["video"]["cosine_min"] > 0.9999
        assert engine["films"] is None, "nobody trained it on films"
        assert engine["command"]
        assert engine["backend"] in engine["versions"]
    assert (report["budget"], report["passed"]) == ("tokens", True)
    assert report["sizes"]["bundle"] == open_bundle(bundle).manifest.size_bytes
    assert "ask" in report["next"]
    written = json.loads((bundle / "reports" / "accuracy.json").read_text())
    assert written == {key: value for key, value in report.items() if key != "next"}
    verify_bundle(bundle)  # the report is not hashed


def test_a_model_of_films_is_scored_by_exact_match(folder: Path, bundle: Path, tmp_path: Path) -> None:
    (folder / "training.json").write_text(FILMS)
    out = tmp_path / "report.json"
    arguments = ("-m", bundle, "--reference", folder, "--questions", 8, "--backend", "onnxruntime")
    report = compare(*arguments, "-o", out)
    [engine] = report["engines"]
    assert report["budget"] == "exact match"
    assert engine["films"]["num_questions"] == 8
    assert engine["films"]["drop"]["points"] == 0
    assert json.loads(out.read_text())["engines"] == report["engines"]
    assert not (bundle / "reports" / "accuracy.json").exists()
    result = CliRunner().invoke(command, [*map(str, arguments)])
    assert "1 point of exact match lost, kept" in result.stdout
    # A later run adds an engine and keeps the other's result.
    later = compare(*arguments[:-1], "openvino")
    assert [engine["backend"] for engine in later["engines"]] == ["onnxruntime", "openvino"]


def test_a_bundle_answers_a_benchmark_as_its_model_does(folder: Path, bundle: Path, tmp_path: Path) -> None:
    """In fp32 on the same frames, so that nothing is lost; the second run opens neither model."""
    data, results = lay_out("msrvtt-qa", tmp_path / "msrvtt"), tmp_path / "results"
    asked = ("--benchmark", "msrvtt-qa", "--data", data, "--results", results, "-m", bundle, "--reference", folder)
    found = compare(*asked, "--backend", "onnxruntime")["comparison"]
    assert (found["num_compared"], found["num_not_compared"], found["num_changed"]) == (2, 0, 0)
    assert (found["reference"]["model_kind"], found["model"]["model_kind"]) == ("model folder", "bundle")
    assert (found["reference"]["computed"], found["model"]["computed"][:4]) == ("fp32 on PyTorch cpu", "fp32")
    assert {(one["lost"], one["num_lost"], one["num_gained"]) for one in found["scores"]} == {(0.0, 0, 0)}
    again = CliRunner().invoke(command, [*map(str, asked)])
    assert again.stderr.count("has all predictions") == 2
    assert "0 of 2 answers differ" in again.stdout


def test_what_a_bundle_was_not_made_from_is_refused(folder: Path, bundle: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", small_config(), seed=1)
    for arguments, words in (
        (["-m", bundle, "--reference", other], "other files than that: model.safetensors"),
        (["-m", folder, "--reference", folder], "is not a bundle"),
        (["-m", folder, "--data", tmp_path], "no effect without --reference"),
    ):
        result = CliRunner().invoke(command, [*map(str, arguments)])
        assert isinstance(result.exception, UsageError)
        assert words in str(result.exception)
    assert not (bundle / "reports" / "accuracy.json").exists()
