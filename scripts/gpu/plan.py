"""What is measured, how long it may take, and how work is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from blip3v.config import ModelConfig, preset

__all__ = [
    "ANSWER_TOKENS",
    "BASELINE",
    "PAPER_SAMPLES_PER_S",
    "QUESTION_TOKENS",
    "ROWS",
    "Budget",
    "Plan",
    "Row",
    "Stopwatch",
    "first_line",
]

QUESTION_TOKENS, ANSWER_TOKENS = 32, 32
T = TypeVar("T")


class Row(NamedTuple):
    """A temporal encoder with its token count."""

    encoder: str
    num_video_tokens: int

    def __str__(self) -> str:
        return f"{self.encoder} {self.num_video_tokens}"


BASELINE = Row("none", 1024)
ROWS = (BASELINE, Row("gttm", 128), Row("tokenlearner", 32), Row("tokenlearner", 16))
# Training samples per second on one H100, from the paper, which does not state the batch size.
PAPER_SAMPLES_PER_S = {1024: 3.3, 128: 7.5, 32: 8.2, 16: 8.5}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options of the command line that all stages share."""

    device: torch.device
    smallest: bool  # the smallest form of each stage, for a machine without a GPU
    seconds: float  # that a stage may take; work under way is finished
    perturb: float = 0.0  # parity and runtime: relative noise on the weights under test
    folder: Path = Path("runs/gpu-check")  # runtime: where bundles and engines are until they are measured

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


class Stopwatch:
    """Times work on a device, from idle to idle."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def time(self, work: Callable[[], T]) -> tuple[float, T]:
        """Returns the seconds that ``work`` took, and its result."""
        self._wait()
        began = time.perf_counter()
        result = work()
        self._wait()
        return time.perf_counter() - began, result

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def first_line(error: Exception) -> str:
    """The type and message of an error, short enough for a report."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
