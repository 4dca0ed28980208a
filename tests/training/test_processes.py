"""Training in two processes, as on two devices: started by torchrun, joined by gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STAGE = """
[[stages]]
task = "{task}"
num_films = 8
num_steps = 2
batch_size = 4
pairs_per_clip = 2
learning_rate = 1e-3
warmup_steps = 1
freeze = {freeze}
cache_features = {cached}
"""
STAGES = (
    STAGE.format(task="patches", freeze='["lang_model"]', cached="false")
    + STAGE.format(task="objects", freeze='["vision_encoder"]', cached="true")
    + STAGE.format(task="instructions", freeze='["vision_encoder"]', cached="true")
)


def run(recipe: Path, output: Path, *launcher: str) -> tuple[list[float], str]:
    """Losses of the log, and what went to stdout."""
    command = [*launcher, "-m", "blip3v", "train", "--recipe", str(recipe), "-o", str(output), "--device", "cpu"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text("utf-8").splitlines()], done.stdout


def test_two_processes_train_as_one_does_and_one_of_them_speaks(tmp_path: Path) -> None:
    """Batches are split, gradients joined, features computed by one and read by both."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'preset = "tiny"\nencoder = "tokenlearner"\nseed = 1\nlog_every = 1\n{STAGES}')
    alone, _ = run(recipe, tmp_path / "one", sys.executable)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    together, said = run(recipe, tmp_path / "two", *launcher)
    assert together == pytest.approx(alone, rel=1e-3)
    assert said.splitlines() == [str(tmp_path / "two" / "model")]
    record = json.loads((tmp_path / "two" / "model" / "training.json").read_text("utf-8"))
    assert record["num_processes"] == 2
