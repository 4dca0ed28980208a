"""A whole run: the stages of a recipe one after the other, resumable, with a model folder as the result.

A run's folder contains ``checkpoint/`` (to resume from), ``log.jsonl`` and, at the end, ``model/``.
"""

from __future__ import annotations

import functools
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import accelerate
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast_object_list
from torch import Tensor

import blip3v
from blip3v.data.mixture import PartReader, read_part
from blip3v.data.samples import Source
from blip3v.errors import UsageError
from blip3v.model.folder import save_model_folder
from blip3v.model.weights import empty_model, fill
from blip3v.publishing import complete_lines, write_file
from blip3v.training.broken import BrokenClip, BrokenClips
from blip3v.training.checkpoint import (
    Position,
    load_optimizer_state,
    load_position,
    load_random_state,
    model_weights,
    objective_weights,
    save_checkpoint,
)
from blip3v.training.clip_pixels import ClipPixels
from blip3v.training.features import Features, feature_cache
from blip3v.training.identity import Identity, check_recipe, identity_of
from blip3v.training.loading import default_workers
from blip3v.training.loop import StageObjective, StageRun, StageSummary, freeze, make_optimizer, run_stage
from blip3v.training.options import TrainOptions, check_output, checkpoint_folder
from blip3v.training.parallel import load_weights, shard
from blip3v.training.recipe import PlannedStage, Recipe
from blip3v.training.recompute import recompute_activations
from blip3v.training.stages import objective_of, stage_batches, stage_source
from blip3v.training.start import Start, find_start

__all__ = ["Observer", "TrainOptions", "make_accelerator", "train"]

_LOG = "log.jsonl"
# Only those that keep whole models: sharding is done by parallel.py.
_DISTRIBUTED_TYPES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class Observer(Protocol):
    """Receives the progress of a run."""

    def start(self, origin: dict[str, str]) -> None:
        """Called with the origin of each part of the model, in words."""

    def stage(self, index: int, planned: PlannedStage) -> None:
        """Called when a stage starts or resumes."""

    def features(self, done: int, total: int) -> None:
        """Called when the features of ``done`` of ``total`` clips are computed."""

    def step(self, step: int, num_steps: int, loss: float) -> None:
        """Called after each logged step."""

    def broken(self, clip: BrokenClip) -> None:
        """Called with each clip that could not be read since the last logged step, before ``step``."""

    def end(self, summary: StageSummary) -> None:
        """Called at the end of each stage."""


@dataclass(frozen=True)
class _Run:
    """What every stage of a run needs."""

    recipe: Recipe
    options: TrainOptions
    start: Start
    sources: tuple[Source, ...]  # the data of each stage
    accelerator: Accelerator
    observer: Observer
    identity: Identity

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint."""
        return checkpoint_folder(self.options.output)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a shard of the model."""
        return self.recipe.parallel == "fsdp" and self.accelerator.num_processes > 1

    def weights(self) -> Mapping[str, Tensor]:
        """Weights of the model between two stages."""
        return model_weights(self.checkpoint) if self.checkpoint.is_dir() else self.start.weights


def train(recipe: Recipe, options: TrainOptions, observer: Observer, *, read: PartReader | None = None) -> Path:
    """Runs ``recipe``; returns the folder of the trained model.

    Args:
        recipe: the stages.
        options: what the run needs besides.
        observer: receives the progress.
        read: reads a list of records; None: each is read once. For a caller that has read some of them already.

    Raises:
        UsageError: ``output`` already contains a run, there is nothing to resume, or the device is not available.
        ConfigError: the recipe and the initial weights do not fit together, or the run to resume was started with
            others, or too many clips cannot be read.
        ArtifactError: the initial weights cannot be used.
    """
    accelerator = make_accelerator(recipe.precision, options.device)
    check_output(options)
    found = load_position(checkpoint_folder(options.output))
    if found is not None:  # before the initial weights are read for the rest
        check_recipe(recipe, accelerator.num_processes, found, options.output)
    torch.manual_seed(recipe.seed)
    start = find_start(recipe, options.init)
    sources = _sources(recipe, options, start, read or functools.cache(read_part))
    identity = _identity(recipe, sources, start, accelerator)
    if found is not None:
        identity.check(found, options.output)
    position = found or identity.at(0, 0)
    run = _Run(recipe, options, start, sources, accelerator, observer, identity)
    observer.start(run.start.origin)
    options.output.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        _truncate_log(options.output / _LOG, position)
    started = time.time()
    for index in range(position.stage, len(recipe.stages)):
        _run_stage(run, index, position.step if index == position.stage else 0)
        accelerator.free_memory()
    return _finish(run, started)


def _run_stage(run: _Run, index: int, first_step: int) -> None:
    accelerator, recipe, stage, source = run.accelerator, run.recipe, run.recipe.stages[index], run.sources[index]
    planned = stage.planned(len(source), accelerator.num_processes)
    run.observer.stage(index, planned)
    plain = _objective(run, planned, first_step)
    optimizer = make_optimizer(plain, stage)
    if first_step:
        load_optimizer_state(run.checkpoint, plain, optimizer)
        load_random_state(run.checkpoint)
    features = _features(run, source) if stage.cache_features else None
    batches = stage_batches(planned, run.start, source, features, seed=recipe.seed)
    log, decodes = run.options.output / _LOG, features is None and _has_files(source)
    broken = BrokenClips(run.options.max_broken_clips, run.options.max_broken_share)
    broken.restore(log, index, first_step)
    workers = _workers(run.options, planned, decodes=decodes)
    stage_run = StageRun(index, planned, batches, log, recipe.log_every, recipe.save_every, broken, workers)
    objective = plain if run.is_sharded else accelerator.prepare(plain)
    for done in run_stage(accelerator, objective, optimizer, stage_run, first_step=first_step, observer=run.observer):
        is_last = done == planned.num_steps
        position = run.identity.at(index + 1, 0) if is_last else run.identity.at(index, done)
        save_checkpoint(run.checkpoint, plain, optimizer, position, writes=accelerator.is_main_process)
        accelerator.wait_for_everyone()


def _objective(run: _Run, planned: PlannedStage, first_step: int) -> StageObjective:
    """The model with the loss of a stage, on this process's device, as it was after ``first_step`` steps."""
    device, stage = run.accelerator.device, planned.stage
    if run.checkpoint.is_dir() and not first_step:
        load_random_state(run.checkpoint)
    objective = objective_of(stage)(empty_model(run.start.config))
    freeze(objective, stage)
    if run.recipe.gradient_checkpointing:
        recompute_activations(objective.model)
    if run.is_sharded:
        shard(objective, device, bf16=run.recipe.precision == "bf16")
    if first_step:
        load_weights(objective, objective_weights(run.checkpoint), device)
    else:
        load_weights(objective.model, run.weights(), device)
    return objective if run.is_sharded else objective.to(device)


def _has_files(source: Source) -> bool:
    return source.request(0, 0) is not None


def _workers(options: TrainOptions, planned: PlannedStage, *, decodes: bool) -> int:
    """Processes for a stage: as many as asked for; of its own accord only where there are videos to decode."""
    chosen = options.workers if options.workers is not None else default_workers() if decodes else 0
    return min(chosen, planned.num_steps * planned.stage.micro_batches)


def _features(run: _Run, source: Source) -> Features:
    """Patch tokens of all clips, from an encoder of its own, since the run's may be sharded."""
    model = empty_model(run.start.config)
    fill(model.vision_encoder, run.weights(), "vision_encoder.")
    model.vision_encoder.to(run.accelerator.device)
    chosen = run.options.workers
    if chosen is None:
        chosen = default_workers() if _has_files(source) else 0
    folder = run.options.cache if run.options.cache is not None else run.options.output.parent / "features"
    with run.accelerator.main_process_first():
        return feature_cache(
            folder,
            ClipPixels(source, run.start.preprocessor),
            model,
            device=run.accelerator.device,
            progress=run.observer.features,
            workers=min(chosen, len(source)),
        )


def make_accelerator(precision: Literal["fp32", "bf16"], device: str) -> Accelerator:
    """The devices and the precision of a run, as the recipe and ``TrainOptions`` name them.

    Raises:
        UsageError: the device is not available, or accelerate is configured to shard models itself.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device is cuda, but torch finds no CUDA device", remedy="use `device='cpu'`, or see `blip3v doctor`"
        )
    mixed = "no" if precision == "fp32" else precision
    # Without this, every process would hold all gradients twice.
    shared = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed, kwargs_handlers=[shared])
    if accelerator.distributed_type not in _DISTRIBUTED_TYPES:
        raise UsageError(
            f"accelerate is configured to use {accelerator.distributed_type.value}; launch without it: the recipe "
            "decides whether the model is sharded (parallel)"
        )
    return accelerator


def _sources(recipe: Recipe, options: TrainOptions, start: Start, read: PartReader) -> tuple[Source, ...]:
    """The data of each stage."""
    num_frames = start.config.num_frames
    return tuple(
        stage_source(stage, options.data, num_frames=num_frames, seed=recipe.seed, read=read) for stage in recipe.stages
    )


def _identity(recipe: Recipe, sources: tuple[Source, ...], start: Start, accelerator: Accelerator) -> Identity:
    """What the run begins with. One process reads it, for all."""
    found = [identity_of(recipe, sources, start, accelerator.num_processes) if accelerator.is_main_process else None]
    (identity,) = broadcast_object_list(found)
    assert isinstance(identity, Identity)
    return identity


def _truncate_log(path: Path, position: Position) -> None:
    """Drops the records logged after the checkpoint: those steps will run again."""
    records = [(json.loads(line), line) for line in (complete_lines(path) if path.is_file() else ())]
    kept = [line for x, line in records if (x["stage"], x["step"]) <= (position.stage, position.step)]
    write_file(path, "".join(f"{line}\n" for line in kept))


def _finish(run: _Run, started: float) -> Path:
    path = run.options.output / "model"
    if run.accelerator.is_main_process:
        # From the checkpoint, so that no process has to hold the gathered model.
        model = empty_model(run.start.config)
        fill(model, model_weights(run.checkpoint))
        save_model_folder(
            path,
            model,
            run.start.tokenizer_json,
            run.start.preprocessor,
            run.start.chat.generation,
            run.start.chat.template,
            _record(run, started),
            replace=True,
        )
    run.accelerator.wait_for_everyone()
    return path


def _record(run: _Run, started: float) -> dict[str, Any]:
    return {
        "recipe": run.recipe.to_dict(),
        "origin": run.start.origin,
        "last_session_s": round(time.time() - started, 1),
        "device": str(run.accelerator.device.type),
        "num_processes": run.accelerator.num_processes,
        "num_threads": torch.get_num_threads(),
        "versions": {
            "blip3v": blip3v.__version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        },
    }
