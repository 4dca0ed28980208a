"""Training in two processes, as on two devices: started by torchrun, connected by gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blip3v.model.folder import load_model_folder
from blip3v.training import load_recipe
from blip3v.training.broken import BrokenClip
from blip3v.training.loop import StageSummary
from blip3v.training.recipe import PlannedStage
from blip3v.training.run import TrainOptions, train

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


TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

# Ends a run after a logged step, in every process, like a kill.
STOPPED = """
import sys
from pathlib import Path
from blip3v.training import load_recipe
from blip3v.training.run import TrainOptions, train

class Stop:
    def start(self, origin): ...
    def stage(self, index, planned): self.index = index
    def features(self, done, total): ...
    def broken(self, clip): ...
    def end(self, summary): ...
    def step(self, step, num_steps, loss):
        if (self.index, step) == (1, 3):
            sys.exit(9)

train(load_recipe(sys.argv[1]), TrainOptions(output=Path(sys.argv[2]), device="cpu"), Stop())
"""


def start(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with one thread per process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def run(recipe: Path, output: Path, *launcher: str, resume: bool = False) -> tuple[list[float], str]:
    """Losses of the log, and what went to stdout."""
    arguments = ["-m", "blip3v", "train", "--recipe", str(recipe), "-o", str(output), "--device", "cpu"]
    done = start(*launcher, *arguments, *(["--resume"] if resume else []))
    assert done.returncode == 0, done.stderr[-3000:]
    return logged(output), done.stdout


def logged(output: Path) -> list[float]:
    """Losses of the log."""
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text("utf-8").splitlines()]


def test_two_processes_train_as_one_does_and_one_of_them_reports(tmp_path: Path) -> None:
    """Batches are split, gradients reduced, and features computed by one process and read by both."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'preset = "tiny"\nencoder = "tokenlearner"\nseed = 1\nlog_every = 1\ngradient_checkpointing = true\n{STAGES}'
    )
    alone, _ = run(recipe, tmp_path / "one", sys.executable)
    together, stdout = run(recipe, tmp_path / "two", *TWO)
    assert together == pytest.approx(alone, rel=1e-3)
    assert stdout.splitlines() == [str(tmp_path / "two" / "model")]
    record = json.loads((tmp_path / "two" / "model" / "training.json").read_text("utf-8"))
    assert record["num_processes"] == 2


class Silent:
    def start(self, origin: dict[str, str]) -> None: ...
    def stage(self, index: int, planned: PlannedStage) -> None: ...
    def features(self, done: int, total: int) -> None: ...
    def broken(self, clip: BrokenClip) -> None: ...
    def end(self, summary: StageSummary) -> None: ...
    def step(self, step: int, num_steps: int, loss: float) -> None: ...


def run_here(recipe: Path, output: Path) -> list[float]:
    """Losses of a run in this process."""
    train(load_recipe(str(recipe)), TrainOptions(output=output, device="cpu"), Silent())
    return logged(output)


def answers_recipe(path: Path, *, precision: str, parallel: str) -> Path:
    """Two stages that train everything but the vision encoder: on pixels, then on cached features."""
    head = 'preset = "tiny"\nencoder = "tokenlearner"\nseed = 1\nlog_every = 1\nsave_every = 2\nstart = "spread"\n'
    head += f'precision = "{precision}"\nparallel = "{parallel}"\ngradient_checkpointing = true\n'
    captions = STAGE.format(task="video-captions", freeze='["vision_encoder"]', cached="false")
    answers = STAGE.format(task="instructions", freeze='["vision_encoder"]', cached="true")
    path.write_text(head + captions + answers.replace("num_steps = 2", "num_steps = 4\nmicro_batches = 2"), "utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TWO, (sys.executable,)], ids=["two", "one"])
def test_a_sharded_model_trains_as_a_whole_one_and_resumes_where_it_was_killed(
    tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    """FSDP on two processes, ended after step 3 of stage 2, whose last saved step was 2; then on two, or on one."""
    plain = answers_recipe(tmp_path / "plain.toml", precision="fp32", parallel="ddp")
    recipe = answers_recipe(tmp_path / "split.toml", precision="fp32", parallel="fsdp")
    alone = run_here(plain, tmp_path / "one")
    (tmp_path / "stopped.py").write_text(STOPPED, "utf-8")
    output = tmp_path / "two"
    stopped = start(*TWO, str(tmp_path / "stopped.py"), str(recipe), str(output))
    assert stopped.returncode != 0
    assert len(logged(output)) == 5, stopped.stderr[-3000:]
    assert not (output / "model").exists()
    together, stdout = run(recipe, output, *launcher, resume=True)
    assert together == pytest.approx(alone, rel=1e-4)
    assert stdout.splitlines() == [str(output / "model")]
    whole, parts = (load_model_folder(tmp_path / name / "model").model.state_dict() for name in ("one", "two"))
    assert all(torch.allclose(whole[name], parts[name], atol=2e-3) for name in whole)
    states = [load_file(tmp_path / name / "checkpoint" / "optimizer.safetensors") for name in ("one", "two")]
    assert {name: x.shape for name, x in states[0].items()} == {name: x.shape for name, x in states[1].items()}


@pytest.mark.slow
def test_a_sharded_model_in_bf16_keeps_fp32_weights(tmp_path: Path) -> None:
    """Layers compute in bf16; weights and optimizer state are fp32, so that small steps are not lost."""
    # In a process of its own: accelerate keeps the precision of the first training in a process.
    alone, _ = run(
        answers_recipe(tmp_path / "a.toml", precision="bf16", parallel="ddp"), tmp_path / "one", sys.executable
    )
    recipe = answers_recipe(tmp_path / "b.toml", precision="bf16", parallel="fsdp")
    together, _ = run(recipe, tmp_path / "two", *TWO)
    assert together == pytest.approx(alone, rel=1e-2)
    for name in ("one", "two"):
        saved = load_file(tmp_path / name / "checkpoint" / "weights.safetensors")
        weight = saved["model.lang_model.model.layers.0.mlp.down_proj.weight"]
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, weight.bfloat16().float())
