"""The options of ``blip3v eval --benchmark``: what is asked, where results are kept, and who judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click

from blip3v.commands.completed_values import completes
from blip3v.commands.options import gathered
from blip3v.commands.prices import PricesType
from blip3v.endpoint import Endpoint, Prices
from blip3v.errors import UsageError
from blip3v.evaluation.benchmark.predicting import ChooseBy
from blip3v.evaluation.benchmark.tasks import BENCHMARKS

__all__ = ["BenchmarkOptions", "JudgeOptions", "benchmark_options", "judge_options"]

_Command = Callable[..., Any]
_KEY_VARIABLE = "OPENAI_API_KEY"
_BATCH_SIZE = 8
_RESULTS = Path("benchmark-results")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What is asked. None is what the user left out."""

    benchmark: str | None
    split: str | None
    results: Path | None
    batch_size: int | None
    choose_by: ChooseBy | None

    def check_unused(self) -> None:
        """Refuses options that have no effect without --benchmark.

        Raises:
            UsageError: one is given.
        """
        _refuse({**vars(self), "benchmark": None}, "without --benchmark")

    @property
    def folder(self) -> Path:
        """Where results are kept."""
        return self.results or _RESULTS

    @property
    def questions_at_once(self) -> int:
        """How many are asked together."""
        return self.batch_size or _BATCH_SIZE


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Who judges. None is what the user left out."""

    judge: str | None
    judge_model: str | None
    judge_prompt: Path | None
    judge_key: str | None
    judge_rate: float | None
    judge_parallel: int | None
    judge_price: Prices | None
    judge_max_cost: float | None

    def check_unused(self) -> None:
        """Refuses options that have no effect without --judge.

        Raises:
            UsageError: one is given.
        """
        _refuse({**vars(self), "judge": None}, "without --judge")

    def endpoint(self) -> Endpoint | None:
        """The judge; None: nobody judges.

        Raises:
            UsageError: options that do not go together, or a value that is not allowed.
        """
        if self.judge is None:
            self.check_unused()
            return None
        if self.judge_model is None:
            raise UsageError("--judge needs --judge-model, the name of a model that the endpoint serves")
        if self.judge_max_cost is not None and self.judge_price is None:
            raise UsageError("--judge-max-cost needs --judge-price, what the endpoint charges for a million tokens")
        return Endpoint(
            url=self.judge,
            model=self.judge_model,
            key_variable=self.judge_key or _KEY_VARIABLE,
            requests_per_minute=self.judge_rate,
            parallel=self.judge_parallel or Endpoint.parallel,
        )


def _refuse(values: dict[str, Any], why: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in values.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect {why}")


_POSITIVE = click.FloatRange(min=0, min_open=True)
_BENCHMARK = {
    "benchmark": click.option(
        "--benchmark",
        shell_complete=completes(tuple(BENCHMARKS)),
        help=f"Ask the questions of a benchmark, whose data is in --data: {', '.join(BENCHMARKS)}.",
    ),
    "split": click.option("--split", help="Split of the benchmark.  [default: the one that papers report]"),
    "results": click.option(
        "--results",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder in which predictions, results and tables of all models and benchmarks are kept.  "
        f"[default: {_RESULTS}]",
    ),
    "batch_size": click.option(
        "-b",
        "--batch-size",
        type=click.IntRange(1, 256),
        help=f"Questions of a benchmark that are asked together.  [default: {_BATCH_SIZE}]",
    ),
    "choose_by": click.option(
        "--choose-by",
        type=click.Choice(get_args(ChooseBy)),
        help="How an option of a choice is chosen: the answer is read for it, or the likeliest letter is taken.  "
        "[default: answer]",
    ),
}
_JUDGE = {
    "judge": click.option(
        "--judge", metavar="URL", help="OpenAI-compatible endpoint that judges answers, such as https://HOST/v1."
    ),
    "judge_model": click.option("--judge-model", metavar="NAME", help="Model of that endpoint."),
    "judge_prompt": click.option(
        "--judge-prompt",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder with judge_system.txt and judge_user.txt, to judge with another prompt than ours.",
    ),
    "judge_key": click.option(
        "--judge-key",
        metavar="VARIABLE",
        help=f"Environment variable that holds the endpoint's key.  [default: {_KEY_VARIABLE}]",
    ),
    "judge_rate": click.option("--judge-rate", type=_POSITIVE, help="Requests a minute at most.  [default: no limit]"),
    "judge_parallel": click.option(
        "--judge-parallel", type=click.IntRange(1, 256), help=f"Requests at once.  [default: {Endpoint.parallel}]"
    ),
    "judge_price": click.option(
        "--judge-price",
        type=PricesType(),
        help="What the endpoint charges for a million tokens of prompts and of replies, such as 0.5,1.5.",
    ),
    "judge_max_cost": click.option(
        "--judge-max-cost", type=_POSITIVE, help="End once the verdicts have cost this much, by --judge-price."
    ),
}


def benchmark_options(command: _Command) -> _Command:
    """What is asked of a benchmark: ``asked``, a ``BenchmarkOptions``."""
    return gathered(command, "asked", _BENCHMARK, BenchmarkOptions)


def judge_options(command: _Command) -> _Command:
    """Who judges: ``judging``, a ``JudgeOptions``."""
    return gathered(command, "judging", _JUDGE, JudgeOptions)
