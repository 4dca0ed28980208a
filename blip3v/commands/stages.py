"""The stages of long work: on a terminal a bar, elsewhere a line for each."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["ShowStage", "show_stages"]


class ShowStage(Protocol):
    """What a library function calls at each stage."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...  # noqa: D102


def show_stages(console: Console, stack: ExitStack) -> ShowStage:
    """On a terminal a bar with the current stage, which ``stack`` closes; elsewhere one line per stage."""
    if not console.is_terminal:
        return _lines(console)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = stack.enter_context(Progress(*columns, console=console))
    task = bar.add_task("start", total=None)

    def show(stage: str, done: int = 0, total: int = 0) -> None:
        bar.update(task, description=stage, completed=done, total=total or None)

    return show


def _lines(console: Console) -> ShowStage:
    stages: list[str] = []

    def show(stage: str, done: int = 0, total: int = 0) -> None:
        if stages[-1:] != [stage]:
            stages.append(stage)
            console.print(f"  {stage}")

    return show
