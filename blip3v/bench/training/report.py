"""From the seconds of training steps to figures, ratios and JSON, in the form that results of inference have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blip3v.bench.report import SCHEMA_VERSION
from blip3v.bench.results import TRAINING
from blip3v.bench.statistics import Statistics
from blip3v.bench.training.rows import BASELINE, PAPER_SAMPLES_PER_S, Row

__all__ = ["TrainingReport", "TrainingRow", "TrainingSetup", "speed"]


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """What was measured, and how often."""

    preset: str
    device: str  # "cpu", or the GPU's name
    precision: str
    gradient_checkpointing: bool
    threads: int | None  # of PyTorch; None: the device is a GPU
    question_tokens: int
    new_tokens: int  # of the answer, which has labels
    warmup: int  # discarded turns before the measured ones
    repetitions: int  # measured turns
    frozen: str = "vision_encoder"
    optimizer: str = "AdamW"
    weights: str = "random"


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """A temporal encoder at a batch size, and its steps, one a turn."""

    row: Row
    batch_size: int
    config_sha256: str  # of the model's config
    num_frames: int
    operations: int | None  # of a step's matrix products; None: the temporal encoder is of another package
    step_s: tuple[float, ...]
    losses: tuple[float, ...]  # before each step
    peak_bytes: int | None  # the largest of its steps

    @property
    def operations_per_s(self) -> float | None:
        """At the median step; None: the operations are not known."""
        return None if self.operations is None else self.operations / Statistics.of(self.step_s).p50


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """A complete measurement. Steps with the same index in two rows were taken in the same turn."""

    setup: TrainingSetup
    rows: tuple[TrainingRow, ...]
    environment: dict[str, Any]
    gemm_per_s: float  # operations per second of PyTorch's product of large matrices, in the dtype of the step
    command: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The measurement, ready for JSON, including the seconds of every step."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": TRAINING,
            "command": self.command,
            "setup": dataclasses.asdict(self.setup),
            "environment": self.environment,
            "limits": {"gemm_per_s": self.gemm_per_s},
            "rows": [self._row(row) for row in self.rows],
        }

    def _row(self, row: TrainingRow) -> dict[str, Any]:
        baseline = next((x for x in self.rows if x.row == BASELINE and x.batch_size == row.batch_size), None)
        found = speed(row.row, row.step_s, None if baseline is None else baseline.step_s, row.batch_size)
        # Positions of the language model: <image> gives way to the video tokens.
        num_tokens = row.row.num_video_tokens + self.setup.question_tokens + self.setup.new_tokens
        reached = row.operations_per_s
        return {
            "model": self.setup.preset,
            "encoder": row.row.encoder,
            "num_video_tokens": row.row.num_video_tokens,
            "config_sha256": row.config_sha256,
            "num_frames": row.num_frames,
            "weights": self.setup.weights,
            "precision": self.setup.precision,
            "computed_in": self.setup.precision,
            "backend": None,
            "batch_size": row.batch_size,
            "requests_at_once": 1,
            TRAINING: found,
            "tokens_per_s": row.batch_size * num_tokens / Statistics.of(row.step_s).p50,
            "peak_bytes": row.peak_bytes,
            "operations": row.operations,
            "operations_per_s": reached,
            "share": None if reached is None else reached / self.gemm_per_s,
            "stages": {"step_s": dataclasses.asdict(Statistics.of(row.step_s))},
            "metrics": None,
            "step_s": list(row.step_s),
            "losses": list(row.losses),
        }


def speed(
    row: Row, step_s: Sequence[float], baseline_s: Sequence[float] | None, batch_size: int
) -> dict[str, float | None]:
    """Samples per second and the ratio to the baseline, ours and the paper's.

    Args:
        row: what was measured.
        step_s: seconds of its steps, a turn each.
        baseline_s: of the baseline's steps in the same turns and at the same batch size; None: not measured.
        batch_size: clips of a step.

    Returns:
        ``samples_per_s`` at the median step, ``ratio`` as the median of the ratios within each turn, and
        ``paper_samples_per_s`` and ``paper_ratio``; None where there is none.
    """
    paper = PAPER_SAMPLES_PER_S.get(row.num_video_tokens)
    ratio = None
    if baseline_s is not None:
        ratio = float(np.median([theirs / ours for theirs, ours in zip(baseline_s, step_s, strict=True)]))
    return {
        "samples_per_s": batch_size / Statistics.of(step_s).p50,
        "ratio": ratio,
        "paper_samples_per_s": paper,
        "paper_ratio": None if paper is None else paper / PAPER_SAMPLES_PER_S[BASELINE.num_video_tokens],
    }
