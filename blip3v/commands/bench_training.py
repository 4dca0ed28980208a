"""``blip3v bench --training``: what it refuses, and the measurement."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from rich.progress import Progress

from blip3v.bench.compare import check_same
from blip3v.bench.environment import describe_environment
from blip3v.bench.results import Result
from blip3v.commands.output import talk, talk_console
from blip3v.commands.program import command_line
from blip3v.errors import UsageError

if TYPE_CHECKING:
    from blip3v.bench.training.steps import TrainingPrecision

__all__ = ["PRECISIONS", "TrainingAsked", "check_training", "measure_training"]

PRECISIONS = ("fp32", "bf16", "bf16-weights")
# As the recipes of each preset compute; the 4B model in turns that take a GPU seconds.
_PRECISION = {"tiny": "fp32", "xgen-mm-vid": "bf16"}
_BATCH_SIZES = (4,)  # of the paper's last stage, on each device
_TURNS = {"tiny": (1, 5), "xgen-mm-vid": (2, 10)}  # of warm-up, and measured


@dataclass(frozen=True, kw_only=True)
class TrainingAsked:
    """What is asked for; None: the default."""

    preset: str | None
    precision: str | None
    device: str | None
    gradient_checkpointing: bool
    batch_sizes: tuple[int, ...] | None
    threads: int | None
    question_tokens: int
    new_tokens: int
    warmup: int | None
    repetitions: int | None


def check_training(
    given: Mapping[str, Any], *, training: bool, preset: str | None, init: str | None, precision: str | None
) -> None:
    """Checks that what is asked for goes together.

    Args:
        given: by option, what belongs to inference alone if ``training``, else to training alone; false or None: not
            given.
        training: whether training steps are measured.
        preset: the model's shape.
        init: its weights.
        precision: of the step.

    Raises:
        UsageError: an option has no effect, or one is missing.
    """
    found = next((option for option, value in given.items() if value), None)
    if found is not None:
        if training:
            raise UsageError(
                f"{found} has no effect with --training, which measures steps of random models; leave it out"
            )
        raise UsageError(f"{found} has no effect without --training")
    if not training:
        return
    if (preset is None) != (init is None):
        missing = "--preset" if preset is None else "--init random"
        raise UsageError(f"--training measures a preset with random weights; add {missing}, or leave both out for tiny")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"--precision {precision} is not for training; allowed: {', '.join(PRECISIONS)}")


def measure_training(
    asked: TrainingAsked, baseline: Result | None, allow_other_setup: bool
) -> tuple[Result, tuple[str, ...]]:
    """The result, and in what it differs from the baseline, which is checked before anything is measured.

    Raises:
        UsageError: the device is not available, or the baseline was measured otherwise.
        OutOfMemoryError: the device's memory is too small.
        ModuleNotFoundError: PyTorch is not installed.
    """
    # PyTorch, which takes seconds.
    from blip3v.bench.training.run import check_memory, run_training, setup_of

    preset = asked.preset or "tiny"
    precision = cast("TrainingPrecision", asked.precision or _PRECISION[preset])
    warmup, repetitions = _TURNS[preset]
    setup = setup_of(
        preset,
        precision=precision,
        device=asked.device or "auto",
        threads=asked.threads,
        gradient_checkpointing=asked.gradient_checkpointing,
        question_tokens=asked.question_tokens,
        new_tokens=asked.new_tokens,
        warmup=warmup if asked.warmup is None else asked.warmup,
        repetitions=repetitions if asked.repetitions is None else asked.repetitions,
    )
    differences: tuple[str, ...] = ()
    if baseline is not None:
        differences = check_same(
            baseline,
            setup=dataclasses.asdict(setup),
            environment=describe_environment(),
            bundles={},
            allow_other_setup=allow_other_setup,
        )
    check_memory(setup, precision)
    talk(f"measuring training steps of {preset} on {setup.device}")
    console = talk_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("steps", total=None)
        report = run_training(
            setup,
            batch_sizes=asked.batch_sizes or _BATCH_SIZES,
            precision=precision,
            device=asked.device or "auto",
            command=command_line(*sys.argv[1:]),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return report.to_dict(), differences
