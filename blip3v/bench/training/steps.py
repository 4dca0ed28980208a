"""The trainer's step on synthetic batches, for several temporal encoders in one model."""

# Shapes: C clips, T frames.

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from blip3v.bench.training.device import Stopwatch, peak_bytes, reset_peak
from blip3v.bench.training.random_model import SharedModel, row_config
from blip3v.bench.training.rows import Row
from blip3v.config import ModelConfig
from blip3v.errors import UsageError
from blip3v.model import IGNORE_INDEX
from blip3v.model.weights import empty_model
from blip3v.training import load_recipe
from blip3v.training.batch import Batch, Pictures, make_batch
from blip3v.training.chat_rows import Row as TextRow
from blip3v.training.loop import Objective, freeze, make_optimizer, train_step
from blip3v.training.plan import sizes_of, state_bytes
from blip3v.training.recompute import recompute_activations, store_activations
from blip3v.training.run import make_accelerator
from blip3v.video.preprocess import PreprocessorConfig, level_values

__all__ = ["COMPUTED", "StepSample", "Trainee", "TrainingPrecision", "synthetic_batch", "trainee_bytes"]

# fp32 and bf16 are a recipe's: weights and optimizer state are fp32, and bf16 is what layers compute in. bf16-weights
# keeps everything in bf16, as a shard of several devices would leave room for.
TrainingPrecision = Literal["fp32", "bf16", "bf16-weights"]
COMPUTED = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-weights": torch.bfloat16}

_RECIPE = "xgen-mm-vid-instructions"  # the paper's stage 3: what is frozen, the optimizer, the clipping


@dataclass(frozen=True, kw_only=True)
class StepSample:
    """One step."""

    step_s: float
    loss: float  # before the step, the mean over the answers' tokens
    peak_bytes: int | None  # of the device's memory while it ran; None: not known


class Trainee:
    """The model of all rows, as the trainer prepares it, with the state of its optimizers.

    Rows share all weights and their optimizer state but those of the temporal encoder.
    """

    def __init__(self, config: ModelConfig, rows: Sequence[Row], *, precision: TrainingPrecision, device: str) -> None:
        """Makes random weights on the device.

        Args:
            config: of everything but the temporal encoder.
            rows: the encoders, at least one.
            precision: of the step.
            device: "auto", "cpu" or "cuda".

        Raises:
            UsageError: the device is not available, or this is one of several processes.
        """
        self._accelerator = make_accelerator("bf16" if precision == "bf16" else "fp32", device)
        if self._accelerator.num_processes > 1:
            raise UsageError("steps are measured on one device; start a single process, without torchrun or accelerate")
        self.device = self._accelerator.device
        self.dtype = torch.bfloat16 if precision == "bf16-weights" else torch.float32
        self.shared = SharedModel(config, rows, device=self.device, dtype=self.dtype)
        self._stage = load_recipe(_RECIPE).stages[0]
        self._objective = Objective(self.shared.model).train()
        self._prepared = self._accelerator.prepare(self._objective)
        self.optimizers: dict[Row, torch.optim.Optimizer] = {}
        for row in rows:
            self.shared.use(row)
            freeze(self._objective, self._stage)
            self.optimizers[row] = make_optimizer(self._objective, self._stage)
            self.optimizers[row].state = self.optimizers[rows[0]].state

    def step(self, row: Row, batch: Batch) -> float:
        """Takes one step; returns the loss before it."""
        self.shared.use(row)
        optimizer, norm = self.optimizers[row], self._stage.max_grad_norm
        return train_step(self._accelerator, self._prepared, optimizer, [batch], max_grad_norm=norm)

    def sample(self, row: Row, batch: Batch) -> StepSample:
        """Takes one step and measures it.

        Raises:
            torch.OutOfMemoryError: the device's memory is too small; ``free`` lets go of what the step left behind.
        """
        reset_peak(self.device)
        step_s, loss = Stopwatch(self.device).time(lambda: self.step(row, batch))
        return StepSample(step_s=step_s, loss=loss, peak_bytes=peak_bytes(self.device))

    def set_checkpointing(self, on: bool) -> None:
        """Sets whether layers store only their inputs for the backward pass, as a recipe's gradient_checkpointing."""
        for row in self.optimizers:
            (recompute_activations if on else store_activations)(self.shared.use(row))


def synthetic_batch(
    config: ModelConfig,
    num_clips: int,
    *,
    question_tokens: int,
    answer_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
) -> Batch:
    """A batch as the trainer makes it, on ``device``: random pixels in [-1, 1] of ``dtype``, one question each.

    A row is ``<image>``, the question, and the answer, which has labels; the ids are random.
    """
    generator, vision = np.random.default_rng(seed), config.vision
    ids = generator.integers(config.text.num_base_tokens, size=(num_clips, 1 + question_tokens + answer_tokens))
    unlabelled = [IGNORE_INDEX] * (1 + question_tokens)
    rows = [[TextRow(row, unlabelled + row[1 + question_tokens :], image_position=0)] for row in ids.tolist()]
    shape = num_clips, config.num_frames, vision.image_size, vision.image_size, 3
    levels = torch.from_numpy(generator.integers(256, size=shape, dtype=np.uint8))
    values = torch.from_numpy(level_values(PreprocessorConfig(image_size=vision.image_size))).to(dtype)
    return make_batch(rows, pad_id=0, pictures=Pictures(levels, values)).to(device)


def trainee_bytes(config: ModelConfig, rows: Sequence[Row], precision: TrainingPrecision) -> int:
    """Estimate of weights, gradients, optimizer state and working copies of a ``Trainee``, without activations."""
    recipe = load_recipe(_RECIPE)
    computed: Literal["fp32", "bf16"] = "bf16" if precision == "bf16" else "fp32"
    recipe = dataclasses.replace(recipe, precision=computed)
    largest = 0
    for row in rows:  # encoders are small beside the rest: the largest stands for all
        objective = Objective(empty_model(row_config(config, row)))
        freeze(objective, recipe.stages[0])
        largest = max(largest, state_bytes(recipe, sizes_of(objective), 1)["total"])
    return largest // 2 if precision == "bf16-weights" else largest
