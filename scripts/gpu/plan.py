"""What is measured, and how long it may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from blip3v.bench.training.rows import ROWS, Row
from blip3v.config import ModelConfig, preset

__all__ = ["ANSWER_TOKENS", "QUESTION_TOKENS", "Budget", "Plan", "first_line"]

QUESTION_TOKENS, ANSWER_TOKENS = 32, 32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options of the command line that all stages share."""

    device: torch.device
    smallest: bool  # the smallest form of each stage, for a machine without a GPU
    seconds: float  # that a stage may take; work under way is finished
    perturb: float = 0.0  # parity and runtime: relative noise on the weights under test
    folder: Path = Path("runs/gpu-check")  # runtime: bundles and engines until they are measured; loading: clips

    @property
    def config(self) -> ModelConfig:
        """The model whose speed is measured."""
        return preset("tiny" if self.smallest else "xgen-mm-vid")

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows that training and generation compare, the baseline first."""
        return ROWS[:2] if self.smallest else ROWS

    @property
    def turns(self) -> tuple[int, int]:
        """Number of warm-up turns, number of measured turns."""
        return (1, 1) if self.smallest else (2, 10)

    @property
    def compile_backend(self) -> str:
        """Backend of ``torch.compile``. The smallest form traces like the real one but generates no kernels."""
        return "aot_eager" if self.smallest else "inductor"


@dataclass(frozen=True)
class Budget:
    """The time of a stage, counted from construction."""

    seconds: float
    started: float = field(default_factory=time.perf_counter)

    @property
    def spent(self) -> bool:
        """Whether nothing new should start."""
        return time.perf_counter() - self.started >= self.seconds


def first_line(error: Exception) -> str:
    """The type and message of an error, short enough for a report."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
