"""A data set in its published form, all the way: trained on, killed, resumed, and asked as a benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner
from published import lay_out
from test_clips import Watching

from blip3v.commands import eval as eval_command
from blip3v.commands import train as train_command
from blip3v.data.readers import data_set
from blip3v.training.options import TrainOptions
from blip3v.training.recipe import read_recipe
from blip3v.training.run import train

RECIPE = """
preset = "tiny"
encoder = "mean"
num_frames = 2
seed = 1
start = "spread"
save_every = 1
log_every = 1
[[stages]]
task = "instructions"
num_steps = 2
batch_size = 1
pairs_per_clip = 1
learning_rate = 1e-3
warmup_steps = 1
"""


def test_a_data_set_is_trained_on_and_its_test_questions_are_asked(tmp_path: Path) -> None:
    root, recipe, run = lay_out("msrvtt-qa", tmp_path / "msrvtt"), tmp_path / "mine.toml", tmp_path / "run"
    recipe.write_text(RECIPE, "utf-8")
    word, reader = f"msrvtt-qa={root}", data_set("msrvtt-qa")
    with pytest.raises(KeyboardInterrupt):
        train(
            read_recipe(str(recipe)),
            TrainOptions(output=run, data=(word,), device="cpu", workers=0),
            Watching(stop_at=2),
        )
    assert not (run / "model").exists()
    arguments = ["--recipe", str(recipe), "--data", word, "-o", str(run), "--device", "cpu", "--workers", "0"]
    with mock.patch.object(reader, "read", wraps=reader.read) as read:
        resumed = CliRunner().invoke(train_command.command, [*arguments, "--resume"])
    assert resumed.exit_code == 0, resumed.output or repr(resumed.exception)
    assert read.call_count == 1, "for the notice, for what the run was begun with, and for its stage"
    assert "1 record, 1 video; missing: 1 video with 1 record (video1)" in resumed.stderr
    assert f"next: blip3v eval --benchmark msrvtt-qa --data {root} -m {run / 'model'}" in resumed.stderr
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text("utf-8").splitlines()] == [1, 2]
    asked = [
        "--benchmark",
        "msrvtt-qa",
        "--data",
        str(root),
        "-m",
        str(run / "model"),
        "--results",
        str(tmp_path / "r"),
    ]
    evaluated = CliRunner().invoke(eval_command.command, [*asked, "--json"])
    assert evaluated.exit_code == 0, evaluated.output or repr(evaluated.exception)
    header = json.loads(evaluated.stdout)["result"]["header"]
    assert (header["model"], header["split"], header["num_samples"]) == ("run", "test", 2)
