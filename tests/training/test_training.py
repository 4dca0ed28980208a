"""The trainer: bit-for-bit resume, schedule, freezing, feature cache, refusals. Real runs of a few steps."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blip3v.errors import ConfigError, UsageError
from blip3v.model.folder import load_model_folder
from blip3v.training import Recipe, Stage, load_recipe, recipe_names
from blip3v.training.broken import BrokenClip
from blip3v.training.loop import StageSummary, learning_rate_factor
from blip3v.training.order import visits_of_step
from blip3v.training.recipe import PlannedStage
from blip3v.training.run import TrainOptions, train

PATCHES = Stage(
    task="patches",
    num_films=8,
    num_steps=3,
    batch_size=2,
    pairs_per_clip=1,
    learning_rate=1e-3,
    warmup_steps=2,
    freeze=("lang_model",),
)
CAPTIONS = dataclasses.replace(
    PATCHES, task="video-captions", num_steps=6, pairs_per_clip=2, freeze=("vision_encoder",)
)


STAGE = """
[[stages]]
task = "video-captions"
num_films = 2
num_steps = 1
batch_size = 1
pairs_per_clip = 1
learning_rate = 1e-3
warmup_steps = 1
"""

OBJECTS = dataclasses.replace(CAPTIONS, task="objects", num_steps=3, pairs_per_clip=1, cache_features=True)


class Silent:
    """Watches a run and can end it, like a kill, after a given step of a given stage."""

    def __init__(self, kill_at: tuple[int, int] | None = None) -> None:
        self.kill_at, self.index, self.losses = kill_at, -1, list[float]()

    def start(self, origin: dict[str, str]) -> None:
        self.origin = origin

    def stage(self, index: int, planned: PlannedStage) -> None:
        self.index = index

    def features(self, done: int, total: int) -> None: ...
    def broken(self, clip: BrokenClip) -> None: ...
    def end(self, summary: StageSummary) -> None: ...

    def step(self, step: int, num_steps: int, loss: float) -> None:
        self.losses.append(loss)
        if self.kill_at == (self.index, step):
            raise KeyboardInterrupt


def recipe(*stages: Stage, encoder: str = "tokenlearner") -> Recipe:
    return Recipe(preset="tiny", encoder=encoder, seed=5, stages=stages, start="spread", save_every=2, log_every=1)


def logged(run: Path) -> list[tuple[int, int, float]]:
    """(stage, step, loss) from every line of the run's log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    return [(line["stage"], line["step"], line["loss"]) for line in lines]


def test_a_run_that_was_killed_and_resumed_equals_one_that_was_not_bit_for_bit(tmp_path: Path) -> None:
    """Killed in the first stage, then in the second after step 5, whose last saved step was 4."""
    plan = recipe(PATCHES, CAPTIONS)
    whole = train(plan, TrainOptions(output=tmp_path / "whole", device="cpu"), Silent())
    for at, kill in enumerate([(0, 3), (1, 5), None]):
        options = TrainOptions(output=tmp_path / "parts", device="cpu", resume=at > 0)
        if kill is None:
            parts = train(plan, options, Silent())
        else:
            with pytest.raises(KeyboardInterrupt):
                train(plan, options, Silent(kill))
    logs = [logged(tmp_path / run) for run in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert [(stage, step) for stage, step, _ in logs[0]] == [
        *((0, i) for i in (1, 2, 3)),
        *((1, i) for i in range(1, 7)),
    ]
    want, got = (load_file(path / "model.safetensors") for path in (whole, parts))
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    states = [load_file(tmp_path / run / "checkpoint" / "optimizer.safetensors") for run in ("whole", "parts")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_training_learns_and_leaves_frozen_weights_alone(tmp_path: Path) -> None:
    stage = dataclasses.replace(CAPTIONS, num_films=2, num_steps=25, learning_rate=3e-3)
    seen = Silent()
    short = dataclasses.replace(stage, num_steps=1)
    before = train(recipe(short), TrainOptions(output=tmp_path / "short", device="cpu"), Silent())
    after = train(recipe(stage), TrainOptions(output=tmp_path / "long", device="cpu"), seen)
    assert seen.losses[-1] < 0.7 * seen.losses[0]
    old, new = (load_model_folder(path).model.state_dict() for path in (before, after))
    for name in old:
        if name.startswith("vision_encoder."):
            assert torch.equal(old[name], new[name]), name
    assert not torch.equal(old["vision_tokenizer.latents"], new["vision_tokenizer.latents"])
    lines = [json.loads(line) for line in (tmp_path / "long" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 26))


@pytest.mark.parametrize("encoder", ["tokenlearner", pytest.param("gttm", marks=pytest.mark.slow), "single-frame"])
def test_the_stage_of_objects_trains_encoder_and_language_model(tmp_path: Path, encoder: str) -> None:
    """On two films the loss falls by a third; the vision encoder does not change."""
    seen = Silent()
    stage = dataclasses.replace(OBJECTS, num_films=2, num_steps=30, learning_rate=3e-3)
    short = dataclasses.replace(stage, num_steps=1, learning_rate=1e-9)
    options = TrainOptions(output=tmp_path / "run", device="cpu")
    after = train(recipe(stage, encoder=encoder), options, seen)
    before = train(recipe(short, encoder=encoder), dataclasses.replace(options, output=tmp_path / "short"), Silent())
    assert seen.losses[-1] < 0.67 * seen.losses[0]
    old, new = (load_model_folder(path).model.state_dict() for path in (before, after))
    moved = {name.split(".")[0] for name in old if (old[name] - new[name]).abs().max() > 1e-4}
    assert moved == {"vision_tokenizer", "lang_model"}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_films": 0}, "set num_films"), ({"cache_features": False}, "set cache_features")],
    ids=["no-films", "no-cache"],
)
def test_a_stage_of_objects_says_what_it_needs(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(OBJECTS, **change)  # type: ignore[arg-type]


def test_cached_features_give_the_losses_of_computed_ones(tmp_path: Path) -> None:
    """Up to the rounding of the cache to fp16; a second run reads the same file."""
    plain, cached, again = Silent(), Silent(), Silent()
    with_cache = recipe(dataclasses.replace(CAPTIONS, cache_features=True))
    cache = tmp_path / "cache"
    train(recipe(CAPTIONS), TrainOptions(output=tmp_path / "a", device="cpu"), plain)
    train(with_cache, TrainOptions(output=tmp_path / "b", device="cpu", cache=cache), cached)
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    train(with_cache, TrainOptions(output=tmp_path / "c", device="cpu", cache=cache), again)
    assert cached.losses == pytest.approx(plain.losses, rel=2e-3)
    assert again.losses == cached.losses
    assert file.stat().st_mtime_ns == written


def test_a_step_in_parts_is_the_step_in_one(tmp_path: Path) -> None:
    """Three clips in two parts, with answers of different lengths: the mean is over the tokens of all three clips."""
    losses = []
    for parts in (1, 2):
        seen, stage = Silent(), dataclasses.replace(CAPTIONS, batch_size=3, num_steps=3, micro_batches=parts)
        train(recipe(stage), TrainOptions(output=tmp_path / str(parts), device="cpu"), seen)
        losses.append(seen.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_new_temporal_encoder_is_trained_on_a_base(tmp_path: Path) -> None:
    base = train(
        recipe(PATCHES, encoder="single-frame"), TrainOptions(output=tmp_path / "base", device="cpu"), Silent()
    )
    short = dataclasses.replace(CAPTIONS, num_steps=1, learning_rate=1e-9)
    grown_path = train(recipe(short), TrainOptions(output=tmp_path / "grown", init=base, device="cpu"), Silent())
    old, grown = load_model_folder(base).model, load_model_folder(grown_path).model
    assert grown.config.temporal.encoder == "tokenlearner"
    torch.testing.assert_close(grown.vision_tokenizer.latents, old.vision_tokenizer.latents, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.1), (9, 1.0), (10, 1.0), (60, 0.5), (110, 0.0)],
)
def test_warm_up_then_cosine(step: int, factor: float) -> None:
    stage = dataclasses.replace(CAPTIONS, warmup_steps=10, num_steps=110)
    assert learning_rate_factor(step, stage.planned(1, 1)) == pytest.approx(factor)


def test_every_clip_is_seen_once_before_any_is_seen_twice() -> None:
    visits = [visit for step in range(10) for visit in visits_of_step(step, 7, 3, seed=1)]
    assert len(visits) == 30
    for epoch in range(4):
        assert sorted(clip for clip, visit in visits if visit == epoch) == list(range(7))
    assert math.prod(visits_of_step(0, 7, 3, seed=1) != visits_of_step(0, 7, 3, seed=s) for s in (2, 3))


def test_shipped_recipes_are_valid_and_the_paper_size_freezes_its_vision() -> None:
    recipes = {name: load_recipe(name) for name in recipe_names()}
    assert {"tiny-base", "tiny-tokenlearner", "tiny-gttm", "tiny-none", "tiny-single-frame"} <= recipes.keys()
    for plan in recipes.values():
        if plan.preset == "xgen-mm-vid":
            assert all("vision_encoder" in stage.freeze for stage in plan.stages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('preset = "tiny"', "lacks the key 'encoder'"),
        ('preset = "tiny"\nencodr = "mean"', "did you mean 'encoder'"),
        ("preset = [", "cannot be read as TOML"),
        ('preset = "huge"\nencoder = "mean"\nseed = 1\nstages = []', "preset 'huge' is unknown"),
        ('preset = "tiny"\nencoder = "mean"\nseed = 1\nstages = []', "has no stages"),
        ('preset = "tiny"\nencoder = "gttm"\nseed = 1\ntemporal.num_slot = 2\n' + STAGE, "num_slots"),
    ],
    ids=["missing", "misspelt", "broken", "preset", "no-stage", "temporal"],
)
def test_an_invalid_recipe_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(path))


def test_a_run_is_never_overwritten_and_never_resumed_with_another_recipe(tmp_path: Path) -> None:
    options = TrainOptions(output=tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match="no checkpoint to resume"):
        train(recipe(PATCHES), dataclasses.replace(options, resume=True), Silent())
    train(recipe(PATCHES), options, Silent())
    with pytest.raises(UsageError, match="continue it with `resume=True`, or choose another `output`"):
        train(recipe(PATCHES), options, Silent())
    with pytest.raises(ConfigError, match="another recipe"):
        train(recipe(CAPTIONS), dataclasses.replace(options, resume=True), Silent())
