"""blip3v in lmms-eval: found by its entry point, and run on the harness's own NExT-QA task with a local fixture.

Runs where lmms-eval is installed; the harness looks for its data under HF_HOME and asks no network if it is there.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CLIP = ROOT / "examples" / "turn.mp4"

TASK = """
include: {harness}/tasks/nextqa/nextqa_mc_test.yaml
task: nextqa_local
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {records}}}}}
lmms_eval_specific_kwargs: {{default: {{pre_prompt: "", post_prompt: ""}}}}
"""
RECORD = {"video": "turn", "question": "which way does the circle turn", "answer": 1, "qid": 1, "type": "TN"}
OPTIONS = {"a0": "left", "a1": "right", "a2": "up", "a3": "down", "a4": "it stays"}


def test_the_entry_point_names_the_manifest():
    declared = (ROOT / "pyproject.toml").read_text()
    assert (
        '[project.entry-points."lmms_eval.models"]\nblip3v = "blip3v.evaluation.harness.manifest:model_manifest"'
        in declared
    )


@pytest.fixture
def fixture(tmp_path: Path) -> Path:
    """A home of the Hugging Face libraries with the clips where the harness looks for them, and a local task."""
    lmms_eval = pytest.importorskip("lmms_eval", exc_type=ImportError)
    videos = tmp_path / "home" / "nextqa" / "NExTVideo"
    videos.mkdir(parents=True)
    (videos / "turn.mp4").symlink_to(CLIP)
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps({**RECORD, **OPTIONS, "qid": n}) + "\n" for n in range(3)))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    harness = Path(lmms_eval.__file__).parent
    (tasks / "nextqa_local.yaml").write_text(TASK.format(harness=harness, records=records))
    return tmp_path


RUN = """
import json, sys
from lmms_eval import evaluator, models
from lmms_eval.tasks import TaskManager
from blip3v.evaluation.harness.manifest import model_manifest
if "blip3v" not in models.list_available_models():  # blip3v is run from its sources, without its entry points
    models.MODEL_REGISTRY_V2.register_manifest(model_manifest())
model, tasks, batch_size = sys.argv[1:]
results = evaluator.simple_evaluate(
    model="blip3v", model_args=f"model={model}", tasks=["nextqa_local"], batch_size=batch_size,
    task_manager=TaskManager(include_path=tasks, include_defaults=False), log_samples=True, bootstrap_iters=0,
)
samples = results["samples"]["nextqa_local"]
answers = [sample["filtered_resps"] for sample in samples]
print("RESULT", json.dumps({"scores": results["results"]["nextqa_local"], "answers": answers}))
"""


def run(fixture: Path, model: Path, batch_size: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(model), str(fixture / "tasks"), str(batch_size)],
        capture_output=True,
        text=True,
        check=False,
        cwd=fixture,
        env={
            "PATH": "",
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(fixture / "home"),
            "HF_HUB_OFFLINE": "1",
            "HOME": str(fixture),
        },
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("RESULT "))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bundle", "model folder"])
def test_a_task_of_the_harness_runs(fixture: Path, tmp_path: Path, kind: str):
    if kind == "bundle":
        from toy_bundle import write_bundle
        from toy_graphs import Weights, toy_config

        config = toy_config()
        model = write_bundle(tmp_path / "blip3v-toy", config, Weights.random(config.text))
    else:
        from export_models import small_config, write_folder

        model = write_folder(tmp_path / "untrained", small_config())
    together, alone = run(fixture, model, 3), run(fixture, model, 1)
    assert len(together["answers"]) == 3
    assert together["answers"] == alone["answers"]
    assert together["scores"]["exact_match,none"] in (0.0, 1.0)


def test_an_installed_blip3v_is_found():
    """Where this package is installed after its entry points were written, the harness lists it."""
    pytest.importorskip("lmms_eval", exc_type=ImportError)
    found = importlib.metadata.entry_points(group="lmms_eval.models", name="blip3v")
    if not found:
        pytest.skip("blip3v is run from its sources")
    (one,) = found
    assert one.load()().simple_class_path == "blip3v.evaluation.harness.model.Blip3vModel"
