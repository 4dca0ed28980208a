"""Steps from clips and devices, and what --dry-run says about a run that is too large for this machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from model.synthetic_checkpoint import TEMPORAL, released_shapes, write_checkpoint
from released_files import RELEASED_NUM_PIECES, write_released_tokenizer

from blip3v.commands.train import command
from blip3v.errors import ConfigError, UsageError
from blip3v.training import Recipe, Stage, load_recipe, recipe_names
from blip3v.training.plan import make_plan
from blip3v.training.run import TrainOptions

STAGE = Stage(
    task="instructions",
    num_films=10,
    num_epochs=1,
    batch_size_per_device=2,
    pairs_per_clip=1,
    learning_rate=1e-3,
    warmup_steps=1,
)


@pytest.mark.parametrize(
    ("changes", "num_devices", "steps"),
    [
        ({}, 1, (5, 2)),
        ({}, 4, (2, 8)),  # 10 clips in steps of 8: the second step starts over with the clips
        ({"num_epochs": 2.5}, 1, (13, 2)),
        ({"num_epochs": None, "num_steps": 7}, 4, (7, 8)),
        ({"batch_size_per_device": None, "batch_size": 4}, 4, (3, 4)),
    ],
    ids=["one-device", "four", "half-epochs", "steps", "batch-of-all"],
)
def test_epochs_and_clips_of_a_device_become_steps(
    changes: dict[str, object], num_devices: int, steps: tuple[int, int]
) -> None:
    planned = dataclasses.replace(STAGE, **changes).planned(10, num_devices)  # type: ignore[arg-type]
    assert (planned.num_steps, planned.batch_size) == steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 3}, "either num_steps or num_epochs, not both"),
        ({"num_epochs": None}, "either num_steps or num_epochs"),
        ({"batch_size": 3}, "either batch_size or batch_size_per_device"),
        ({"num_epochs": -1.0}, "num_epochs of stage instructions is -1.0"),
        ({"micro_batches": 0}, "micro_batches of stage instructions is 0"),
        ({"data": "clips.json"}, "sets both data and num_films"),
    ],
)
def test_a_stage_whose_steps_cannot_be_counted_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(STAGE, **changes)  # type: ignore[arg-type]


def test_a_device_needs_a_clip_for_every_micro_batch() -> None:
    stage = dataclasses.replace(STAGE, batch_size_per_device=None, batch_size=4, micro_batches=2)
    with pytest.raises(ConfigError, match="4 clips a step for 4 devices and 2 micro-batches"):
        stage.planned(10, 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 1000 clips; a dry run never opens the film."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "a.mp4").touch()
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cup."}]
    (folder / "clips.json").write_text(json.dumps([{"path": "a.mp4", "conversations": turns}] * 1000), "utf-8")
    return folder / "clips.json"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released names and shapes, with holes as weights."""
    folder = write_checkpoint(tmp_path_factory.mktemp("released"), released_shapes())
    return write_released_tokenizer(folder, num_pieces=RELEASED_NUM_PIECES)


def test_a_dry_run_of_the_full_size_says_what_would_be_trained_from_what(released: Path, data: Path) -> None:
    """The counts are those of the released tensors, minus the unused ones: a read layer, rows of no token, a buffer."""
    args = ["--recipe", "xgen-mm-vid-captions", "--init", str(released), "--data", str(data), "--dry-run", "--json"]
    result = CliRunner().invoke(command, args)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert set(plan["origin"].values()) == {str(released)}
    (stage,) = plan["stages"]
    assert stage["frozen"] == {"vision_encoder": 412_987_248}
    assert stage["trained"] == {
        "vision_tokenizer": 109_901_568,
        "temporal_encoder": 59_347_552 - 332_288 - 576,
        "lang_model": 3_821_130_051 - 52 * (3072 + 3072 + 1),
    }
    rows = {row["num_devices"]: row for row in stage["devices"]}
    assert (rows[8]["num_steps"], rows[8]["batch_size"]) == (8, 128)
    trained, frozen = sum(stage["trained"].values()), 412_987_248
    state = 4 * (trained + frozen) + 4 * trained + 8 * trained
    one, eight = rows[1]["state_bytes"], rows[8]["state_bytes"]
    assert set(one) == {"weights", "gradients", "optimizer_state", "working_copies", "total"}
    assert one["total"] == state + 2 * trained  # and the casts to bf16
    assert eight["total"] - eight["working_copies"] == pytest.approx(state / 8, abs=8)


def test_the_image_model_gives_all_but_the_temporal_encoder(tmp_path: Path, data: Path) -> None:
    shapes = {name: shape for name, shape in released_shapes().items() if not name.startswith(TEMPORAL)}
    folder = write_released_tokenizer(write_checkpoint(tmp_path / "image", shapes), num_pieces=RELEASED_NUM_PIECES)
    recipe = load_recipe("xgen-mm-vid-tokenlearner-captions")
    plan = make_plan(recipe, TrainOptions(output=tmp_path / "run", init=folder, data=str(data)))
    assert plan["origin"]["lang_model"] == str(folder)
    assert plan["origin"]["temporal_encoder"].startswith("random, since")
    assert plan["stages"][0]["trained"]["temporal_encoder"] == 80_384
    assert not (tmp_path / "run").exists()


def test_each_stage_may_name_its_own_data(data: Path, tmp_path: Path) -> None:
    """A run on captions, then questions; --data applies to the stage that names none."""
    few = data.with_name("few.json")
    few.write_text(json.dumps(json.loads(data.read_text("utf-8"))[:3]), "utf-8")
    stage = dataclasses.replace(STAGE, num_films=0)
    recipe = Recipe(preset="tiny", encoder="mean", seed=1, stages=(stage, dataclasses.replace(stage, data=str(few))))
    plan = make_plan(recipe, TrainOptions(output=tmp_path, data=str(data)))
    assert [stage["num_clips"] for stage in plan["stages"]] == [1000, 3]
    with pytest.raises(UsageError, match="as `data`, or as data of the stage"):
        make_plan(recipe, TrainOptions(output=tmp_path))


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("xgen")])
def test_recipes_of_the_full_size_have_the_papers_numbers(name: str) -> None:
    recipe: Recipe = load_recipe(name)
    (stage,) = recipe.stages
    captions = stage.task == "video-captions"
    assert (stage.num_epochs, stage.warmup_steps, stage.freeze) == (1, 500, ("vision_encoder",))
    assert (stage.batch_size_per_device, stage.learning_rate) == ((16, 2e-5) if captions else (4, 1e-5))
    assert (recipe.precision, recipe.parallel, recipe.gradient_checkpointing) == ("bf16", "fsdp", True)
    assert recipe.model_config().temporal.num_video_tokens == (32 if "tokenlearner" in name else 128)
