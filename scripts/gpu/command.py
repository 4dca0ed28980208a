"""The command line of ``scripts/gpu_check.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click
import torch
from rich.console import Console

from blip3v.errors import Blip3vError, ParityError, ProviderError, UsageError
from scripts.gpu.environment import check_export_packages, describe_environment, describe_run
from scripts.gpu.generation import generation
from scripts.gpu.loading import loading
from scripts.gpu.parity import parity
from scripts.gpu.plan import Plan
from scripts.gpu.report import STAGES, Report
from scripts.gpu.tables import print_report
from scripts.gpu.training import training

__all__ = ["gpu_check"]


def _runtime(plan: Plan, report: Report) -> None:
    from scripts.gpu.runtime import runtime  # needs packages that the other stages do not

    runtime(plan, report)


_STAGES: dict[str, Callable[[Plan, Report], None]] = {
    "parity": parity,
    "training": training,
    "loading": loading,
    "generation": generation,
    "runtime": _runtime,
}
# Layers share their code, and every length and batch size is another shape; beyond this limit dynamo gives up.
_MAX_SHAPES = 64
_WIDTH = 180


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("benchmarks/results/gpu.json"),
    show_default=True,
    help="JSON to write or to continue.",
)
@click.option(
    "--only", default=",".join(STAGES), show_default=True, metavar="STAGES", help="Stages to run, separated by commas."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=180.0,
    show_default=True,
    help="Time after which a stage starts nothing new.",
)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True, help="Where to run.")
@click.option(
    "--smallest",
    is_flag=True,
    help="Smallest form of every stage: the tiny preset, few turns. Required on a CPU.",
)
@click.option(
    "--perturb",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Relative noise on the weights under test, to see parity fail.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Plan.folder,
    show_default=True,
    help="Where stage loading puts clips, and where runtime keeps bundles and engines until they are measured: 40 GB.",
)
@click.option("--commit", help="Commit that is measured, for a checkout without .git.  [default: git describe]")
def gpu_check(
    output: Path,
    only: str,
    seconds: float,
    device: str,
    smallest: bool,
    perturb: float,
    folder: Path,
    commit: str | None,
) -> None:
    """Checks parity and measures training, generation and the runtime on a GPU, with random weights.

    \b
    Examples:
      python scripts/gpu_check.py -o benchmarks/results/gpu.json
      python scripts/gpu_check.py --device cpu --smallest -o /tmp/gpu.json
    """
    plan = Plan(device=torch.device(device), smallest=smallest, seconds=seconds, perturb=perturb, folder=folder)
    talk = Console(stderr=True)
    try:
        stages = _checked(plan, only)
        run = describe_run(plan, stages, commit=commit)
        report = Report(output, environment=describe_environment(plan), run=run)
        for stage in stages:
            talk.print(f"{stage} ...")
            with torch._dynamo.config.patch(recompile_limit=_MAX_SHAPES):
                _STAGES[stage](plan, report)
        print_report(report.content, _wide(Console()))
        talk.print(f"written: {output}")
        _check_misses(report)
    except Blip3vError as error:
        talk.print(f"error: {error}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)


def _wide(console: Console) -> Console:
    """The console, or if it is no terminal, one that is wide enough for the tables."""
    return console if console.is_terminal else Console(width=_WIDTH)


def _checked(plan: Plan, only: str) -> tuple[str, ...]:
    stages = tuple(name.strip() for name in only.split(","))
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise UsageError(f"--only {only}: {', '.join(unknown)} is not a stage; allowed: {', '.join(STAGES)}")
    if "runtime" in stages:
        check_export_packages()
    if plan.device.type == "cpu" and not plan.smallest:
        raise UsageError("--device cpu would take hours with the 4B model; add --smallest")
    if plan.device.type == "cuda" and not torch.cuda.is_available():
        raise ProviderError(
            f"torch {torch.__version__} sees no CUDA device; run on a machine with one, or with --device cpu --smallest"
        )
    return stages


def _check_misses(report: Report) -> None:
    misses = report.misses()
    if misses:
        shown = "; ".join(misses[:4]) + (f"; and {len(misses) - 4} more" if len(misses) > 4 else "")
        raise ParityError(
            f"{len(misses)} rows of parity failed or missed their tolerance: {shown}; the JSON holds every error; "
            "a miss in float32 means a wrong computation, one in half precision alone an overflow or a tight tolerance"
        )
