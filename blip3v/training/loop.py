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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from blip3v.data.samples import Source
from blip3v.model import IGNORE_INDEX, Blip3Video
from blip3v.training.batch import Batch, ChatFormat, make_batch, visits_of_step
from blip3v.training.features import clip_pixels
from blip3v.training.recipe import PlannedStage, Stage
from blip3v.video.preprocess import PreprocessorConfig

__all__ = [
    "Batches",
    "Objective",
    "StageObjective",
    "StageRun",
    "StepBatches",
    "freeze",
    "learning_rate_factor",
    "make_optimizer",
    "run_stage",
    "train_step",
]


class StepBatch(Protocol):
    """The input of an objective."""

    def to(self, device: torch.device) -> StepBatch:
        """The same batch on ``device``."""


class StepBatches(Protocol):
    """The batches of a stage, by step."""

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> StepBatch:
        """The share of step ``step`` for process ``rank`` of ``world``."""


class StepObserver(Protocol):
    """Receives the progress of a stage."""

    def step(self, step: int, num_steps: int, loss: float) -> None:
        """Called after each logged step."""


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
            assert batch.pixels_CTCHW is not None, "a batch holds pixels or features"
            features_CTPD = self.model.features(batch.pixels_CTCHW)
        video_CMD = self.model.vision_tokenizer(features_CTPD)
        loss, _ = self.model.loss(batch.ids_CL, batch.labels_CL, batch.image_position_C, video_CMD, batch.question_CL)
        return loss


@dataclass(frozen=True)
class Batches:
    """The batch of every step.

    Attributes:
        source: clips and questions.
        chat: how a question becomes ids.
        preprocessor: how frames become pixels.
        batch_size: clips in a step, over all devices.
        seed: of the order of the clips.
        features: float16 (N, T, P, D) from the frozen vision encoder; None: pixels are computed at each visit.
    """

    source: Source
    chat: ChatFormat
    preprocessor: PreprocessorConfig
    batch_size: int
    seed: int
    features: npt.NDArray[np.float16] | None = None

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """The share of step ``step`` for process ``rank`` of ``world``."""
        visits = visits_of_step(step, len(self.source), self.batch_size, self.seed)[rank::world]
        rows = [[self.chat.row(pair) for pair in self.source.pairs(clip, visit)] for clip, visit in visits]
        pad_id = self.chat.tokenizer.pad_id
        if self.features is not None:
            return make_batch(rows, pad_id=pad_id, features=np.stack([self.features[clip] for clip, _ in visits]))
        pixels = [clip_pixels(self.source, clip, visit, self.preprocessor) for clip, visit in visits]
        return make_batch(rows, pad_id=pad_id, pixels=pixels)


@dataclass(frozen=True)
class StageRun:
    """What ``run_stage`` needs besides the model."""

    index: int  # of the stage in its recipe
    planned: PlannedStage
    batches: StepBatches
    log_path: Path
    log_every: int
    save_every: int


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
    num_steps = run.planned.num_steps
    started, losses = time.perf_counter(), []
    for step in range(first_step, num_steps):
        losses.append(_step(accelerator, objective, optimizer, run, step))
        done = step + 1
        if done % run.log_every == 0 or done == num_steps:
            loss = sum(losses) / len(losses)
            seconds = (time.perf_counter() - started) / len(losses)
            if accelerator.is_main_process:
                _log(run, done, loss, optimizer, seconds)
            observer.step(done, num_steps, loss)
            started, losses = time.perf_counter(), []
        if done % run.save_every == 0 or done == num_steps:
            yield done


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


def _step(
    accelerator: Accelerator, objective: nn.Module, optimizer: torch.optim.Optimizer, run: StageRun, step: int
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * learning_rate_factor(step, run.planned)
    world, stage = accelerator.num_processes, run.planned.stage
    parts = stage.micro_batches
    batches = [
        run.batches.batch(step, rank=accelerator.process_index + world * part, world=world * parts)
        for part in range(parts)
    ]
    return train_step(accelerator, objective, optimizer, batches, max_grad_norm=stage.max_grad_norm)


def _log(run: StageRun, step: int, loss: float, optimizer: torch.optim.Optimizer, seconds: float) -> None:
    record = {
        "stage": run.index,
        "task": run.planned.stage.task,
        "step": step,
        "loss": round(loss, 5),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "step_s": round(seconds, 4),
    }
    with run.log_path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
