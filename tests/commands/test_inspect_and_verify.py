"""``blip3v inspect`` and ``blip3v verify``."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_bundle import CONFIG, fake_manifest, rewrite, write_fake_bundle

from blip3v.bundle import GraphEntry, KVGeometry, Precision, decoder_io, video_encoder_io
from blip3v.commands.inspect import command as inspect
from blip3v.commands.verify import command as verify
from blip3v.errors import ArtifactHashError, ArtifactMissingError


@pytest.fixture(scope="module")
def pristine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For read-only use."""
    return write_fake_bundle(tmp_path_factory.mktemp("bundles") / "pristine")


@pytest.fixture
def bundle(pristine_bundle: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pristine_bundle, tmp_path / "bundle"))


def test_inspect_shows_what_a_bundle_contains(pristine_bundle: Path) -> None:
    result = CliRunner().invoke(inspect, [str(pristine_bundle)], catch_exceptions=False)
    assert result.exit_code == 0
    for text in (
        "tiny, tokenlearner",
        "8 frames to 32 tokens",
        "stored fp16, computed fp32 on ONNX Runtime CPU",
        "weights float16 (logits_bias float32)",
        "tiny: trained",
        "inputs_embeds",
        "past.0.key ... past.5.value (12)",
        "decoder.worst_relative_error",
        "0.0015",
        "onnx/decoder.data",
    ):
        assert text in result.stdout, text
    asks = rf"next: blip3v ask \S*examples/turn\.mp4 'Which way does the red circle turn\?' -m {pristine_bundle}\n"
    assert re.fullmatch(asks, result.stderr)


def test_inspect_says_what_opening_needs_and_that_there_is_no_window(pristine_bundle: Path) -> None:
    """ "window all" and "about 203 MiB of memory of 22.6 GiB that are free, 519 ms" had to be guessed."""
    shown = " ".join(CliRunner().invoke(inspect, [str(pristine_bundle)], catch_exceptions=False).stdout.split())
    assert re.search(r"opening needs \S+ \w*B of the \S+ GiB free, and about \d+\.\d s; ", shown), shown
    assert re.search(r"per token, (no sliding window|sliding window \d+) ", shown), shown


def test_the_examples_name_a_bundle_that_export_writes() -> None:
    """They named `tiny-tokenlearner-32-fp16`, which nothing writes."""
    for name, command in (("inspect", inspect), ("verify", verify)):
        shown = CliRunner().invoke(command, ["--help"]).stdout
        assert f"blip3v {name} blip3v-tiny-tokenlearner-32tok-fp16\n" in shown


def test_inspect_prints_one_json_object(pristine_bundle: Path) -> None:
    result = CliRunner().invoke(inspect, [str(pristine_bundle), "--json"], catch_exceptions=False)
    values = json.loads(result.stdout)
    assert values["manifest"]["weights"]["decoder"]["float16"]["num_elements"] == 32
    assert values["size_bytes"] == sum(entry["size_bytes"] for entry in values["manifest"]["files"].values())
    assert values["stored_and_computed"].startswith("stored fp16")
    assert values["manifest"]["precision"]["decoder"]["cache"] == "float16"


@pytest.mark.parametrize("key", ["random_init", "trained"])
def test_inspect_of_an_untrained_bundle_says_so_and_offers_bench(bundle: Path, key: str) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    values["source"][key] = key == "random_init"
    values["parity"] = None
    (bundle / "manifest.json").write_text(json.dumps(values))
    result = CliRunner().invoke(inspect, [str(bundle)], catch_exceptions=False)
    assert "good for benchmarks only" in result.stdout
    assert "--no-check" in result.stdout
    assert f"next: blip3v bench {bundle}" in result.stderr


def test_inspect_says_that_a_report_of_another_version_is_not_shown(bundle: Path) -> None:
    """It said that the answers "will be" compared, as if there were none."""
    values = json.loads((bundle / "manifest.json").read_text())
    precision = Precision.parse("int8")
    ios = {"video_encoder": video_encoder_io(CONFIG), "decoder": decoder_io(CONFIG)}
    quantized = dataclasses.replace(
        fake_manifest(),
        precision=precision,
        graphs={name: GraphEntry.of(name, io, precision.graphs[name]) for name, io in ios.items()},
        kv=KVGeometry.of(CONFIG, precision.decoder),
        parity=None,
    )
    (bundle / "manifest.json").write_text(json.dumps(quantized.to_dict() | {"files": values["files"]}))
    assert "will be by eval --reference" in _shown(bundle)
    (bundle / "reports" / "accuracy.json").write_text('{"schema_version": 1}')
    assert "reports/accuracy.json is not a report that this blip3v reads; measure again" in _shown(bundle)


def _shown(bundle: Path) -> str:
    return " ".join(CliRunner().invoke(inspect, [str(bundle)], catch_exceptions=False).stdout.split())


def test_inspect_does_not_interpret_markup_in_a_manifest(bundle: Path) -> None:
    """Rich would interpret ``[red]`` in a hostile manifest."""
    values = json.loads((bundle / "manifest.json").read_text())
    values["created_by"] = {"[/red][bold]": "1"}
    (bundle / "manifest.json").write_text(json.dumps(values))
    result = CliRunner().invoke(inspect, [str(bundle)], catch_exceptions=False)
    assert "[/red][bold] 1" in result.stdout


def test_verify_names_every_file(pristine_bundle: Path) -> None:
    result = CliRunner().invoke(verify, [str(pristine_bundle)], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.count("\nok ") == 10
    assert "all 11 files are unchanged" in result.stdout


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_verify_reports_and_then_refuses(bundle: Path, flags: list[str]) -> None:
    (bundle / "README.md").write_text("another card")
    result = CliRunner().invoke(verify, [str(bundle), *flags])
    assert isinstance(result.exception, ArtifactHashError)
    assert "README.md (changed)" in str(result.exception)
    if flags:
        values = json.loads(result.stdout)
        assert values["ok"] is False
        assert values["error"] == {"type": "ArtifactHashError", "message": str(result.exception), "exit_code": 3}
        assert [file["name"] for file in values["files"] if file["status"] == "changed"] == ["README.md"]
    else:
        assert "changed  README.md" in result.stdout


def test_verify_finds_what_correct_hashes_hide(bundle: Path) -> None:
    rewrite(bundle, "config.json", b"{}")
    result = CliRunner().invoke(verify, [str(bundle)])
    assert isinstance(result.exception, ArtifactHashError)
    assert "config.json" in str(result.exception)


@pytest.mark.parametrize("command", [inspect, verify], ids=["inspect", "verify"])
def test_commands_refuse_what_is_not_a_bundle(tmp_path: Path, command: object) -> None:
    result = CliRunner().invoke(command, [str(tmp_path / "nothing")])  # type: ignore[arg-type]
    assert isinstance(result.exception, ArtifactMissingError)


@pytest.mark.parametrize("command", [inspect, verify], ids=["inspect", "verify"])
def test_help_has_two_examples(command: object) -> None:
    text = CliRunner().invoke(command, ["--help"]).stdout  # type: ignore[arg-type]
    assert text.count("  blip3v ") >= 2


def test_bundles_and_text_load_no_training_framework() -> None:
    code = (
        "import sys, blip3v.bundle, blip3v.text, blip3v.commands.inspect, blip3v.commands.verify\n"
        "print([name for name in ('torch', 'transformers', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
