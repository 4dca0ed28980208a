"""``blip3v inspect``, ``blip3v verify`` and the model card."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_bundle import FP16_TEXT, fake_manifest, rewrite

from blip3v.bundle import render_card
from blip3v.bundle.inspect_command import command as inspect
from blip3v.bundle.inspect_command import size_text
from blip3v.bundle.verify_command import command as verify
from blip3v.errors import ArtifactHashError, ArtifactMissingError


def test_inspect_shows_what_a_bundle_is(pristine_bundle: Path) -> None:
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
    assert result.stdout.splitlines()[-1] == f'next: blip3v ask VIDEO "QUESTION" -m {pristine_bundle}'


def test_inspect_gives_one_json_object(pristine_bundle: Path) -> None:
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
    assert "good for measuring only" in result.stdout
    assert "--no-check" in result.stdout
    assert f"next: blip3v bench {bundle}" in result.stdout


def test_inspect_does_not_take_markup_from_a_manifest(bundle: Path) -> None:
    """Rich would read ``[red]`` in a hostile manifest as an order."""
    values = json.loads((bundle / "manifest.json").read_text())
    values["created_by"] = {"[/red][bold]": "1"}
    (bundle / "manifest.json").write_text(json.dumps(values))
    result = CliRunner().invoke(inspect, [str(bundle)], catch_exceptions=False)
    assert "[/red][bold] 1" in result.stdout


def test_verify_names_every_file(pristine_bundle: Path) -> None:
    result = CliRunner().invoke(verify, [str(pristine_bundle)], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.count("\nok ") == 10
    assert "all 11 files are the ones that were written" in result.stdout


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_verify_reports_and_then_refuses(bundle: Path, flags: list[str]) -> None:
    (bundle / "README.md").write_text("another card")
    result = CliRunner().invoke(verify, [str(bundle), *flags])
    assert isinstance(result.exception, ArtifactHashError)
    assert "README.md (changed)" in str(result.exception)
    if flags:
        values = json.loads(result.stdout)
        assert values["ok"] is False
        assert [file["name"] for file in values["files"] if file["status"] == "changed"] == ["README.md"]
    else:
        assert "changed  README.md" in result.stdout


def test_verify_finds_what_right_hashes_hide(bundle: Path) -> None:
    rewrite(bundle, "config.json", b"{}")
    result = CliRunner().invoke(verify, [str(bundle)])
    assert isinstance(result.exception, ArtifactHashError)
    assert "config.json" in str(result.exception)


@pytest.mark.parametrize("command", [inspect, verify], ids=["inspect", "verify"])
def test_commands_refuse_what_is_no_bundle(tmp_path: Path, command: object) -> None:
    result = CliRunner().invoke(command, [str(tmp_path / "nothing")])  # type: ignore[arg-type]
    assert isinstance(result.exception, ArtifactMissingError)


@pytest.mark.parametrize("command", [inspect, verify], ids=["inspect", "verify"])
def test_help_has_two_examples(command: object) -> None:
    text = CliRunner().invoke(command, ["--help"]).stdout  # type: ignore[arg-type]
    assert text.count("  blip3v ") >= 2


def test_the_card_says_what_it_is_and_how_to_run_it() -> None:
    card = render_card(fake_manifest(), FP16_TEXT)
    assert card.startswith("# tiny with tokenlearner, 32 video tokens, fp16\n")
    for text in ("from blip3v.runtime import VideoLM", "blip3v ask VIDEO", "CC-BY-NC-4.0", "Apache-2.0", "| 0.0015 |"):
        assert text in card
    assert f"| precision | {FP16_TEXT} |" in card


def test_the_card_of_random_weights_warns() -> None:
    source = dataclasses.replace(fake_manifest().source, random_init=True)
    card = render_card(dataclasses.replace(fake_manifest(), source=source, parity=None), FP16_TEXT)
    assert "answers are meaningless" in card
    assert "Not checked" in card


def test_python_in_the_card_is_valid() -> None:
    code = render_card(fake_manifest(), FP16_TEXT).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**20, "5.0 MiB"), (3 * 2**30, "3.00 GiB")],
    ids=str,
)
def test_sizes_for_people(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text


def test_bundles_and_text_load_no_training_framework() -> None:
    code = (
        "import sys, blip3v.bundle, blip3v.text, blip3v.bundle.inspect_command, blip3v.bundle.verify_command\n"
        "print([name for name in ('torch', 'transformers', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
