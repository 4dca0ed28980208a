"""The whole measurement of training steps: a preset in, a report out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from blip3v import strict_json
from blip3v.bench.arithmetic import training_operations
from blip3v.bench.environment import describe_environment, load_average
from blip3v.bench.measure import take_turns
from blip3v.bench.training.device import gemm_rate
from blip3v.bench.training.random_model import row_config
from blip3v.bench.training.report import TrainingReport, TrainingRow, TrainingSetup
from blip3v.bench.training.rows import ROWS, Row
from blip3v.bench.training.steps import (
    COMPUTED,
    StepSample,
    Trainee,
    TrainingPrecision,
    synthetic_batch,
    trainee_bytes,
)
from blip3v.config import preset
from blip3v.errors import OutOfMemoryError, UsageError
from blip3v.runtime import memory
from blip3v.training.batch import Batch
from blip3v.units import format_bytes

__all__ = ["check_memory", "run_training", "setup_of"]

_PACKAGES = ("torch", "transformers", "accelerate")


def run_training(
    setup: TrainingSetup,
    *,
    batch_sizes: Sequence[int],
    precision: TrainingPrecision,
    device: str,
    rows: Sequence[Row] = ROWS,
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingReport:
    """Measures a step of every row at every batch size, in turns and in this process.

    Args:
        setup: from ``setup_of``, with the same precision and device.
        batch_sizes: clips of a step, at least one.
        precision: of the step.
        device: "auto", "cpu" or "cuda".
        rows: temporal encoders, at least one.
        command: that was typed, for the report.
        progress: called after each step with the number of steps taken so far and in total.

    Raises:
        UsageError: this is one of several processes.
        OutOfMemoryError: the device's memory is too small for a step.
    """
    load_before, config = load_average(), preset(setup.preset)
    trainee = Trainee(config, rows, precision=precision, device=device)
    trainee.set_checkpointing(setup.gradient_checkpointing)
    gemm_per_s = gemm_rate(trainee.device, COMPUTED[precision])
    batches = {
        size: synthetic_batch(
            config,
            size,
            question_tokens=setup.question_tokens,
            answer_tokens=setup.new_tokens,
            device=trainee.device,
            dtype=trainee.dtype,
        )
        for size in batch_sizes
    }
    subjects = [(row, size) for size in batch_sizes for row in rows]
    turns = take_turns(
        [partial(_sample, trainee, row, batches[size], size) for row, size in subjects],
        warmup=setup.warmup,
        repetitions=setup.repetitions,
        progress=progress,
    )
    measured = [_row(setup, row, size, samples) for (row, size), samples in zip(subjects, turns, strict=True)]
    environment = _environment() | {"load_average": {"before": load_before, "after": load_average()}}
    return TrainingReport(
        setup=setup, rows=tuple(measured), environment=environment, gemm_per_s=gemm_per_s, command=command
    )


def setup_of(
    preset_name: str,
    *,
    precision: TrainingPrecision,
    device: str = "auto",
    threads: int | None = None,
    gradient_checkpointing: bool = False,
    question_tokens: int,
    new_tokens: int,
    warmup: int,
    repetitions: int,
) -> TrainingSetup:
    """What is going to be measured; sets the number of PyTorch's threads.

    Raises:
        UsageError: the device is not available, or threads are given and the device is a GPU.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UsageError(
            "device is cuda, but torch finds no CUDA device", remedy="use `device='cpu'`, or see `blip3v doctor`"
        )
    on_gpu = has_gpu and device != "cpu"
    if on_gpu and threads is not None:
        raise UsageError("threads have no effect on a GPU", remedy="leave `threads` out, or use `device='cpu'`")
    if threads is not None:
        torch.set_num_threads(threads)
    return TrainingSetup(
        preset=preset_name,
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        threads=None if on_gpu else torch.get_num_threads(),
        question_tokens=question_tokens,
        new_tokens=new_tokens,
        warmup=warmup,
        repetitions=repetitions,
    )


def check_memory(setup: TrainingSetup, precision: TrainingPrecision, rows: Sequence[Row] = ROWS) -> None:
    """Checks that the device has room for the weights and the optimizer's state, activations aside.

    Raises:
        OutOfMemoryError: it has not.
    """
    needed = trainee_bytes(preset(setup.preset), rows, precision)
    what = f"training {setup.preset} in {precision}, activations not counted,"
    advice = "choose a smaller `precision`, such as bf16-weights, or a smaller `preset`"
    if setup.device == "cpu":
        memory.require(needed, what, advice)
        return
    free, _ = torch.cuda.mem_get_info()
    if needed > free:
        raise OutOfMemoryError(
            f"{what} needs about {format_bytes(needed)} of memory and {format_bytes(free)} of {setup.device} are free",
            remedy=advice,
        )


def _sample(trainee: Trainee, row: Row, batch: Batch, num_clips: int) -> StepSample:
    try:
        return trainee.sample(row, batch)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"a step of {num_clips} clips with {row.num_video_tokens} video tokens does not fit into the memory of the "
            f"GPU: {str(error).strip().splitlines()[0]}",
            remedy="use smaller `batch_sizes`, or `gradient_checkpointing=True`",
        ) from error


def _row(setup: TrainingSetup, row: Row, batch_size: int, samples: Sequence[StepSample]) -> TrainingRow:
    config = row_config(preset(setup.preset), row)
    of_clip = training_operations(
        config,
        num_text_tokens=1 + setup.question_tokens + setup.new_tokens,
        num_answer_tokens=setup.new_tokens,
    )
    peaks = [sample.peak_bytes for sample in samples if sample.peak_bytes is not None]
    return TrainingRow(
        row=row,
        batch_size=batch_size,
        config_sha256=hashlib.sha256(strict_json.dumps(config.to_dict()).encode()).hexdigest(),
        num_frames=config.num_frames,
        operations=None if of_clip is None else batch_size * of_clip,
        step_s=tuple(sample.step_s for sample in samples),
        losses=tuple(sample.loss for sample in samples),
        peak_bytes=max(peaks, default=None),
    )


def _environment() -> dict[str, Any]:
    found = describe_environment()
    return found | {
        "packages": {name: version(name) for name in _PACKAGES} | found["packages"],
        "cuda": torch.version.cuda,
    }
