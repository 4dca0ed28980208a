"""A whole run: the stages of a recipe one after the other, resumable, ending in a model folder.

A run's folder holds ``checkpoint/`` (to go on from), ``log.jsonl`` and, at the end, ``model/``.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import accelerate
import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator

import blip3v
from blip3v.config import ModelConfig
from blip3v.data.clips import open_clips
from blip3v.data.samples import FilmSource, FilmTask, Source, film_texts
from blip3v.errors import ConfigError, UsageError
from blip3v.model import Blip3Video
from blip3v.model.folder import load_model_folder, save_model_folder
from blip3v.model.temporal.single_frame import middle_frame
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, Tokenizer, train_tokenizer
from blip3v.training.batch import ChatFormat
from blip3v.training.checkpoint import Position, load_checkpoint, load_position, load_weights, save_checkpoint
from blip3v.training.features import feature_cache
from blip3v.training.initialise import new_model
from blip3v.training.loop import Batches, Objective, StageObjective, StageRun, StepBatches, make_optimizer, run_stage
from blip3v.training.objects import ObjectBatches, ObjectObjective
from blip3v.training.patches import PatchBatches, PatchObjective
from blip3v.training.recipe import Recipe, Stage, Task
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["Observer", "TrainOptions", "train"]

_LOG = "log.jsonl"
_ANSWER_TOKENS = 48  # the default bound of an answer about a film
# What each stage shows of the synthetic films.
_FILM_TASKS: dict[Task, FilmTask] = {
    "patches": "image-captions",
    "image-captions": "image-captions",
    "objects": "video-captions",
    "video-captions": "video-captions",
    "instructions": "instructions",
}
_OBJECTIVES: dict[Task, type[StageObjective]] = {"patches": PatchObjective, "objects": ObjectObjective}


class Observer(Protocol):
    """Who is told how a run goes."""

    def stage(self, index: int, stage: Stage) -> None:
        """A stage begins or goes on."""

    def features(self, done: int, total: int) -> None:
        """Features of ``done`` of ``total`` clips are computed."""

    def step(self, step: int, num_steps: int, loss: float) -> None:
        """A logged step."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a run needs beside its recipe."""

    output: Path  # folder of the run
    init: Path | None = None  # model folder to start from; None: random weights
    data: str | None = None  # authors' JSON list for the stages without synthetic films
    cache: Path | None = None  # where features are kept; None: beside the run's folder
    device: str = "auto"  # "auto", "cpu" or "cuda"
    resume: bool = False  # go on from the run's checkpoint


@dataclass(frozen=True)
class _Start:
    """The model at step 0, and how it is spoken to."""

    model: Blip3Video
    tokenizer_json: str
    chat: ChatFormat
    preprocessor: PreprocessorConfig


def train(recipe: Recipe, options: TrainOptions, observer: Observer) -> Path:
    """Runs ``recipe``; returns the folder of the trained model.

    Raises:
        UsageError: a run is there already, or there is nothing to resume, or the device is not there.
        ConfigError: the recipe and what it starts from do not fit together.
    """
    accelerator = _accelerator(recipe, options.device)
    checkpoint = options.output / "checkpoint"
    digest = hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()
    position = _position(options, checkpoint, digest)
    torch.manual_seed(recipe.seed)
    start = _start(recipe, options.init)
    options.output.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        _cut_log(options.output / _LOG, position)
    began = time.time()
    for index, stage in enumerate(recipe.stages):
        if index < position.stage:
            continue
        observer.stage(index, stage)
        first_step = position.step if index == position.stage else 0
        if index == position.stage and checkpoint.is_dir() and not first_step:
            load_weights(checkpoint, start.model)
        plain = _OBJECTIVES.get(stage.task, Objective)(start.model).to(accelerator.device)
        optimizer = make_optimizer(plain, stage)
        if first_step:
            load_checkpoint(checkpoint, plain, optimizer)
        run = _stage_run(recipe, options, index, start, accelerator, observer)
        objective, prepared = accelerator.prepare(plain, optimizer)
        for done in run_stage(accelerator, objective, prepared, run, first_step=first_step, watcher=observer):
            at = Position(index, done, digest) if done < stage.num_steps else Position(index + 1, 0, digest)
            if accelerator.is_main_process:
                save_checkpoint(checkpoint, plain, prepared.optimizer, at)
            accelerator.wait_for_everyone()
        accelerator.free_memory()
    return _finish(recipe, options, start, accelerator, began)


def _accelerator(recipe: Recipe, device: str) -> Accelerator:
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for and torch sees none; use --device cpu, or see `blip3v doctor`")
    mixed = "no" if recipe.precision == "fp32" else recipe.precision
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed)


def _position(options: TrainOptions, checkpoint: Path, digest: str) -> Position:
    found = load_position(checkpoint)
    if found is None:
        if options.resume:
            raise UsageError(f"{options.output} holds no checkpoint to resume; leave --resume out")
        return Position(0, 0, digest)
    if not options.resume:
        raise UsageError(f"{options.output} holds a run already; go on with --resume, or choose another --output")
    if found.recipe_sha256 != digest:
        raise ConfigError(f"the run in {options.output} follows another recipe; resume it with the one it began with")
    return found


def _cut_log(path: Path, position: Position) -> None:
    """Drops what was logged after the checkpoint: those steps come again."""
    # A kill may have torn the last line; what stands behind the last newline is no record.
    lines = path.read_text("utf-8").split("\n")[:-1] if path.is_file() else []
    records = [(json.loads(line), line) for line in lines]
    kept = [line for x, line in records if (x["stage"], x["step"]) <= (position.stage, position.step)]
    path.write_text("".join(f"{line}\n" for line in kept), "utf-8")


def _start(recipe: Recipe, init: Path | None) -> _Start:
    config = recipe.model_config()
    if init is None:
        if recipe.init != "random":
            raise UsageError(f"this recipe starts from the result of {recipe.init!r}; name that folder with --init")
        return _from_nothing(config)
    folder = load_model_folder(init)
    model = new_model(config)
    _copy_weights(folder.model, model)
    tokenizer = Tokenizer.load(folder.tokenizer)
    generation = GenerationConfig.load(folder.generation)
    chat = ChatFormat(tokenizer, folder.chat_template.read_text("utf-8"), generation)
    preprocessor = PreprocessorConfig.load(folder.preprocessor)
    return _Start(model, folder.tokenizer.read_text("utf-8"), chat, preprocessor)


def _from_nothing(config: ModelConfig) -> _Start:
    if config.name != "tiny":
        raise UsageError(f"preset {config.name} has no tokenizer of its own; name a model folder with --init")
    tokenizer = train_tokenizer(film_texts(), vocab_size_base=config.text.num_base_tokens)
    generation = GenerationConfig(system_prompt=None, max_new_tokens=_ANSWER_TOKENS)
    chat = ChatFormat(Tokenizer(tokenizer), RELEASED_TEMPLATE, generation)
    preprocessor = PreprocessorConfig(image_size=config.vision.image_size)
    return _Start(new_model(config), tokenizer.to_str(pretty=True), chat, preprocessor)


def _copy_weights(source: Blip3Video, target: Blip3Video) -> None:
    """All weights where the temporal encoder is the same; else all but its own, which stay random."""
    given, wanted = source.state_dict(), target.state_dict()
    same = source.config.temporal == target.config.temporal
    names = [name for name in wanted if same or ".temporal_encoder." not in name]
    wrong = [name for name in names if name not in given or given[name].shape != wanted[name].shape]
    if wrong:
        raise ConfigError(
            f"the weights to start from do not fit the recipe's model: {', '.join(wrong[:4])} ({len(wrong)} in all); "
            "take a recipe and a folder of the same preset"
        )
    target.load_state_dict(wanted | {name: given[name] for name in names})


def _stage_run(
    recipe: Recipe,
    options: TrainOptions,
    index: int,
    start: _Start,
    accelerator: Accelerator,
    observer: Observer,
) -> StageRun:
    stage = recipe.stages[index]
    source = _source(recipe, options, stage, start.model.config.num_frames)
    features = None
    if stage.cache_features:
        folder = options.cache if options.cache is not None else options.output.parent / "features"
        with accelerator.main_process_first():
            features = feature_cache(
                folder,
                source,
                start.model,
                start.preprocessor,
                device=accelerator.device,
                progress=observer.features,
            )
    batches = _batches(recipe, stage, start, source, features)
    return StageRun(index, stage, batches, options.output / _LOG, recipe.log_every, recipe.save_every)


def _batches(
    recipe: Recipe, stage: Stage, start: _Start, source: Source, features: npt.NDArray[np.float16] | None
) -> StepBatches:
    if stage.task == "patches":
        assert isinstance(source, FilmSource), "the recipe's check asks for films"
        vision = start.model.config.vision
        grid = vision.image_size // vision.patch_size
        return PatchBatches(source, start.preprocessor, stage.batch_size, recipe.seed, grid)
    if stage.task == "objects":
        assert isinstance(source, FilmSource), "the recipe's check asks for films"
        assert features is not None, "and for cached features"
        middle = middle_frame(source.num_frames)
        frames = slice(middle, middle + 1) if recipe.encoder == "single-frame" else slice(None)
        return ObjectBatches(source, features, stage.batch_size, recipe.seed, frames)
    return Batches(source, start.chat, start.preprocessor, stage.batch_size, recipe.seed, features)


def _source(recipe: Recipe, options: TrainOptions, stage: Stage, num_frames: int) -> Source:
    if stage.num_films:
        return FilmSource(_FILM_TASKS[stage.task], stage.num_films, num_frames, stage.pairs_per_clip, recipe.seed)
    if options.data is None:
        raise UsageError(f"stage {stage.task} trains on your clips; name their JSON list with --data")
    return open_clips(options.data, num_frames=num_frames, seed=recipe.seed)


def _finish(recipe: Recipe, options: TrainOptions, start: _Start, accelerator: Accelerator, began: float) -> Path:
    path = options.output / "model"
    if accelerator.is_main_process:
        save_model_folder(
            path,
            start.model,
            start.tokenizer_json,
            start.preprocessor,
            start.chat.generation,
            start.chat.template,
            _record(recipe, accelerator, began),
            replace=True,
        )
    accelerator.wait_for_everyone()
    return path


def _record(recipe: Recipe, accelerator: Accelerator, began: float) -> dict[str, Any]:
    return {
        "recipe": recipe.to_dict(),
        "last_session_s": round(time.time() - began, 1),
        "device": str(accelerator.device.type),
        "num_processes": accelerator.num_processes,
        "num_threads": torch.get_num_threads(),
        "versions": {
            "blip3v": blip3v.__version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        },
    }
