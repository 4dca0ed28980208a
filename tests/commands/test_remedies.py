"""Remedies that the library phrases as Python arguments are shown as options on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blip3v import cli

RECIPE = """
preset = "tiny"
encoder = "mean"
seed = 1
[[stages]]
task = "instructions"
num_epochs = 1
batch_size = 1
pairs_per_clip = 1
learning_rate = 1e-3
warmup_steps = 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, "utf-8")
    return path


def refusal(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert cli._run([str(arg) for arg in args]) in (2, 3)
    return capsys.readouterr().err


def test_weights_alone_need_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "checkpoint.pt")
    error = refusal(capsys, "convert", tmp_path / "checkpoint.pt")
    assert "run `blip3v convert` with the released folder whose tokenizer goes with them as --tokenizer" in error


def test_a_stage_on_clips_names_data(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(capsys, "train", "--recipe", recipe, "-o", tmp_path / "run", "--dry-run")
    assert "name their JSON list as --data, or as data of the stage" in error


def test_nothing_to_resume(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(RECIPE.replace("pairs_per_clip", "num_films = 2\npairs_per_clip"), "utf-8")
    error = refusal(capsys, "train", "--recipe", recipe, "-o", tmp_path / "run", "--device", "cpu", "--resume")
    assert error.endswith("contains no checkpoint to resume; leave --resume out\n")


def test_an_encoder_that_is_not_shipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(capsys, "export", "--encoder", "mean", "-o", tmp_path / "bundle")
    assert "pass a model folder as --model, or use random weights with --init random" in error
