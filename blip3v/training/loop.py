"""The training loop of one stage: the same for the tiny model on two cores and the 4B model on H100s.

accelerate handles devices, mixed precision and gradient reduction. The step number determines a step's batch and
learning rate, so the loop has no state other than the weights and the optimizer state.
"""

# Shapes: C clips, T frames, P patches, M video tokens, L tokens.

from __future__ import annotations

import json
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from blip3v.model import IGNORE_INDEX, Blip3Video
from blip3v.training.batch import Batch
from blip3v.training.broken import BrokenClip, BrokenClips, Notes
from blip3v.training.loading import loaded_ahead
from blip3v.training.recipe import PlannedStage, Stage

__all__ = [
    "Objective",
    "StageObjective",
    "StageRun",
    "StageSummary",
    "StepBatches",
    "freeze",
    "learning_rate_factor",
    "make_optimizer",
    "run_stage",
    "train_step",
]


class StepBatch(Protocol):
    """The input of an objective."""

    @property
    def notes(self) -> Notes:
        """What there is to say about its clips."""

    def to(self, device: torch.device) -> StepBatch:
        """The same batch on ``device``."""

    def pin_memory(self) -> StepBatch:
        """The same batch in pinned memory."""


class StepBatches(Protocol):
    """The batches of a stage, by step."""

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> StepBatch:
        """The share of step ``step`` for process ``rank`` of ``world``."""


class StepObserver(Protocol):
    """Receives the progress of a stage."""

    def step(self, step: int, num_steps: int, loss: float) -> None:
        """Called after each logged step."""

    def broken(self, clip: BrokenClip) -> None:
        """Called with each clip that could not be read since the last logged step, before ``step``."""

    def end(self, summary: StageSummary) -> None:
        """Called at the end of the stage."""


class StageObjective(nn.Module):
    """The model with a loss as ``forward``, which is what data-parallel wrappers call.

    Attributes:
        unused: name prefixes of the parameters that the loss does not reach. They are frozen, since data-parallel
            wrappers wait for the gradient of every parameter that is not.
    """

    unused: tuple[str, ...] = ()

    def __init__(self, model: Blip3Video) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def count(self, batch: Any) -> Tensor:
        """The number by which the summed loss of ``batch`` is divided; int64 scalar."""

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """Summed loss of ``batch``."""


class Objective(StageObjective):
    """The loss of answers: captions, and answers to questions."""

    def count(self, batch: Batch) -> Tensor:
        """Number of answer tokens."""
        return (batch.labels_CL != IGNORE_INDEX).sum()

    def forward(self, batch: Batch) -> Tensor:
        """Summed loss of the answers in nats."""
        if batch.features_CTPD is not None:
            features_CTPD = batch.features_CTPD
        else:
            assert batch.pictures is not None, "a batch holds pictures or features"
            features_CTPD = self.model.features(batch.pictures.pixels())
        video_CMD = self.model.vision_tokenizer(features_CTPD)
        loss, _ = self.model.loss(batch.ids_CL, batch.labels_CL, batch.image_position_C, video_CMD, batch.question_CL)
        return loss


@dataclass(frozen=True)
class StageSummary:
    """What a stage, or what was left of it, came to."""

    num_steps: int
    step_s: float  # mean over the steps
    data_s: float  # of them, how long a step waited for its data
    num_broken: int  # visits to clips that could not be read, over all devices and also before the run was resumed
    num_cut: int  # conversations that were longer than max_tokens, over all devices


@dataclass(frozen=True)
class StageRun:
    """What ``run_stage`` needs besides the model."""

    index: int  # of the stage in its recipe
    planned: PlannedStage
    batches: StepBatches
    log_path: Path
    log_every: int
    save_every: int
    broken: BrokenClips  # so far
    workers: int = 0  # processes that make batches ahead; 0: this one makes them


def learning_rate_factor(step: int, planned: PlannedStage) -> float:
    """Factor of the peak rate at step ``step`` (from 0): linear warm-up from 0, then cosine decay to 0."""
    warmup = planned.stage.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, planned.num_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def freeze(objective: StageObjective, stage: Stage) -> None:
    """Makes the parameters that a stage trains require a gradient, and no others."""
    frozen = (*(f"model.{part}." for part in stage.freeze), *objective.unused)
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))


def make_optimizer(objective: StageObjective, stage: Stage) -> torch.optim.AdamW:
    """AdamW over the parameters that are not frozen, fused on GPUs. Each group stores its peak rate as ``peak``."""
    trained = [(name, x) for name, x in objective.named_parameters() if x.requires_grad]
    temporal = [x for name, x in trained if ".temporal_encoder." in name]
    rest = [x for name, x in trained if ".temporal_encoder." not in name]
    peak = stage.learning_rate if stage.temporal_learning_rate is None else stage.temporal_learning_rate
    groups = [{"params": rest, "peak": stage.learning_rate}, {"params": temporal, "peak": peak}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=stage.learning_rate,
        betas=stage.betas,
        weight_decay=stage.weight_decay,
        # One pass over weights, gradients and state, without a copy of any. None: torch's own choice on a CPU.
        fused=True if all(x.device.type == "cuda" for _, x in trained) else None,
    )


def run_stage(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: StageRun,
    *,
    first_step: int,
    observer: StepObserver,
) -> Iterator[int]:
    """Trains from ``first_step`` to the end of the stage; yields the number of steps done whenever it is time to save.

    Args:
        accelerator: devices and precision.
        objective: a ``StageObjective``, prepared by the accelerator or sharded.
        optimizer: of the objective's parameters.
        run: stage, data, log and intervals.
        first_step: number of steps already done.
        observer: receives each logged step.
    """
    objective.train()
    world, parts = accelerator.num_processes, run.planned.stage.micro_batches
    shares = [
        Share(step, accelerator.process_index + world * part, world * parts)
        for step in range(first_step, run.planned.num_steps)
        for part in range(parts)
    ]
    pin = accelerator.device.type == "cuda"
    meter = _Meter()
    with loaded_ahead(_Shares(run.batches), shares, workers=run.workers, pin=pin) as loaded:
        for step in range(first_step, run.planned.num_steps):
            batches = meter.waited(lambda: [next(loaded) for _ in range(parts)])
            _set_learning_rates(optimizer, learning_rate_factor(step, run.planned))
            norm = run.planned.stage.max_grad_norm
            meter.losses.append(train_step(accelerator, objective, optimizer, batches, max_grad_norm=norm))
            meter.notes.append(Notes.joined(batch.notes for batch in batches))
            done = step + 1
            if done % run.log_every == 0 or done == run.planned.num_steps:
                _report(accelerator, optimizer, run, meter, done, observer)
            if done % run.save_every == 0 or done == run.planned.num_steps:
                yield done
    observer.end(meter.summary(len(run.broken.names)))


class Share(NamedTuple):
    """The key of a batch: the share of a step for process ``rank`` of ``world``."""

    step: int
    rank: int
    world: int


@dataclass(frozen=True)
class _Shares:
    """The batches of a stage by their key."""

    batches: StepBatches

    def __getitem__(self, share: Share) -> StepBatch:
        return self.batches.batch(share.step, rank=share.rank, world=share.world)


class _Meter:
    """Losses, times and notes since the last logged step, and in all."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.notes: list[Notes] = []
        self._started, self._data_s = time.perf_counter(), 0.0
        self._num_steps, self._all_s, self._all_data_s, self._num_cut = 0, 0.0, 0.0, 0

    def waited(self, load: Callable[[], list[StepBatch]]) -> list[StepBatch]:
        """What ``load`` returns; its time is that of waiting for data."""
        started = time.perf_counter()
        batches = load()
        self._data_s += time.perf_counter() - started
        return batches

    def read(self, num_cut: int) -> tuple[float, float, float]:
        """Means of a step's loss, seconds, and seconds of waiting for data; starts again."""
        count, seconds = len(self.losses), time.perf_counter() - self._started
        means = sum(self.losses) / count, seconds / count, self._data_s / count
        self._num_steps, self._all_s = self._num_steps + count, self._all_s + seconds
        self._all_data_s, self._num_cut = self._all_data_s + self._data_s, self._num_cut + num_cut
        self.losses, self.notes, self._started, self._data_s = [], [], time.perf_counter(), 0.0
        return means

    def summary(self, num_broken: int) -> StageSummary:
        """Means over all steps."""
        count = max(1, self._num_steps)
        return StageSummary(self._num_steps, self._all_s / count, self._all_data_s / count, num_broken, self._num_cut)


def _report(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    run: StageRun,
    meter: _Meter,
    done: int,
    observer: StepObserver,
) -> None:
    """Logs the steps since the last call, from all processes.

    Raises:
        ConfigError: too many clips could not be read.
    """
    notes = Notes.joined(gather_object([Notes.joined(meter.notes)]))
    loss, step_s, data_s = meter.read(notes.num_cut)
    record: dict[str, Any] = {
        "stage": run.index,
        "task": run.planned.stage.task,
        "step": done,
        "loss": round(loss, 5),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "step_s": round(step_s, 4),
        "data_s": round(data_s, 4),
    }
    if notes.broken:
        record["broken"] = [clip.to_dict() for clip in notes.broken]
    if notes.num_cut:
        record["num_cut"] = notes.num_cut
    if accelerator.is_main_process:
        with run.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    for clip in notes.broken:
        observer.broken(clip)
    run.broken.add(notes.broken, done * run.planned.batch_size)
    observer.step(done, run.planned.num_steps, loss)


def _set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def train_step(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[StepBatch],
    *,
    max_grad_norm: float,
) -> float:
    """Takes one optimizer step: forward and backward of every batch, clipping, the optimizer. Waits for the loss.

    Args:
        accelerator: devices and precision.
        objective: a ``StageObjective``, prepared by the accelerator or sharded.
        optimizer: of the objective's parameters, with the step's learning rates.
        batches: this process's share of the step; their gradients are accumulated.
        max_grad_norm: to which the gradients are clipped.

    Returns:
        The loss before the step, the mean over what all processes' batches count.
    """
    # Answers differ in length between processes: the mean is over all tokens of the step, not over processes.
    unwrapped: StageObjective = accelerator.unwrap_model(objective)
    count = torch.stack([unwrapped.count(batch) for batch in batches]).sum().to(accelerator.device)
    total = accelerator.reduce(count, "sum").clamp(min=1)
    loss_sum = torch.zeros((), device=accelerator.device)
    for batch in batches:
        with accelerator.autocast():
            loss = objective(batch.to(accelerator.device))
        accelerator.backward(loss * accelerator.num_processes / total)
        loss_sum += loss.detach()
    accelerator.clip_grad_norm_(objective.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return float(accelerator.reduce(loss_sum, "sum") / total)
