"""``blip3v train``: train a model from a recipe."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from blip3v.commands.completed_values import completes
from blip3v.commands.held_lines import held_line
from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.output import quiet_option, talk, talk_console
from blip3v.commands.program import command_line
from blip3v.data.mixture import Part, PartReader, read_part
from blip3v.evaluation.benchmark.tasks import BENCHMARKS
from blip3v.training.changes import changed
from blip3v.training.options import TrainOptions, check_data, check_options, check_output
from blip3v.training.recipe import PlannedStage, read_recipe, recipe_names
from blip3v.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from blip3v.training.broken import BrokenClip
    from blip3v.training.loop import StageSummary

__all__ = ["command"]


class _Screen:
    """Progress bars on a terminal; elsewhere a line now and then. Only the main process prints."""

    def __init__(self, progress: Progress, *, is_main: bool, interactive: bool) -> None:
        self._progress, self._is_main, self._prints_lines = progress, is_main, is_main and not interactive
        self._task: TaskID | None = None
        self._name = ""

    def start(self, origin: dict[str, str]) -> None:
        if self._is_main:  # on a terminal too: a part that should have been copied may be drawn at random
            for part, where in origin.items():
                talk(f"{part}: {where}")

    def stage(self, index: int, planned: PlannedStage) -> None:
        self._name = f"stage {index + 1}: {planned.stage.task}"
        self._print(f"{self._name}, {_steps(planned.num_steps, planned.batch_size)}")
        self._task = self._progress.add_task(self._name, total=planned.num_steps)

    def features(self, done: int, total: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, description=f"{self._name}: features")
        if done == total:
            self._print(f"{self._name}: features of {format_count(total, 'clip')} computed")

    def step(self, step: int, num_steps: int, loss: float) -> None:
        if self._task is not None:
            self._progress.update(
                self._task, completed=step, total=num_steps, description=f"{self._name}: loss {loss:.3f}"
            )
        self._print(f"{self._name}: step {step}/{num_steps} loss {loss:.4f}")

    def broken(self, clip: BrokenClip) -> None:
        if self._is_main:  # on a terminal too: the next clip was taken in its place
            talk(f"{self._name}: step {clip.step}: {clip.name} left out: {clip.error}")

    def end(self, summary: StageSummary) -> None:
        if self._is_main:
            talk(f"{self._name}: {_summary_text(summary)}")

    def _print(self, line: str) -> None:
        if self._prints_lines:
            talk(line)


@click.command()
@click.option(
    "--recipe",
    "recipe_name",
    required=True,
    metavar="NAME|FILE",
    shell_complete=completes(recipe_names(), or_files=True),
    help="Shipped recipe or TOML file.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for the run.  [default: runs/NAME]")
@click.option(
    "--init",
    type=MODEL_PATH,
    help="Checkpoint to start from: a model folder, a released folder or its hub id, or a .pt file.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="FILE|NAME=FOLDER",
    help="What to train on: a JSON list of your own clips, a data set of `blip3v data list` with its folder, or a "
    "mixture file. May be repeated.",
)
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder to keep features in.  [default: next to the run]"
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device to train on; auto: a GPU if there is one.",
)
@click.option(
    "--steps",
    multiple=True,
    metavar="[STAGE=]N",
    help="Optimizer steps of the recipe's stage, or of the one with this number, in place of the recipe's own.",
)
@click.option(
    "--learning-rate",
    multiple=True,
    metavar="[STAGE=]RATE",
    help="Peak learning rate of the recipe's stage, or of the one with this number.",
)
@click.option(
    "--batch-size-per-device",
    multiple=True,
    metavar="[STAGE=]N",
    help="Clips of a step on each device, of the recipe's stage, or of the one with this number.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that read clips ahead, on each device; 0: none.  [default: one for each CPU, up to 8, if there are "
    "videos to decode]",
)
@click.option(
    "--max-broken-clips",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Clips of a stage that may be impossible to read. The run ends if there are more, and more than the share.",
)
@click.option(
    "--max-broken-share",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="Their share of all clips that were read.",
)
@click.option("--resume", is_flag=True, help="Resume from the checkpoint in the run's folder.")
@click.option(
    "--dry-run", is_flag=True, help="Print what would be trained, from what and in how many steps; then stop."
)
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@quiet_option
def command(
    recipe_name: str,
    output: Path | None,
    init: Path | None,
    data: tuple[str, ...],
    cache: Path | None,
    device: str,
    steps: tuple[str, ...],
    learning_rate: tuple[str, ...],
    batch_size_per_device: tuple[str, ...],
    workers: int | None,
    max_broken_clips: int,
    max_broken_share: float,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a model from a recipe, with the stages of the paper.

    \b
    Examples:
      blip3v train --recipe tiny-base
      blip3v train --recipe tiny-tokenlearner --init runs/tiny-base/model
      blip3v train --recipe xgen-mm-vid-captions --init FOLDER --data clips.json --dry-run
      blip3v train --recipe xgen-mm-vid-captions --init FOLDER --data llava-hound=/data/llava-hound
      blip3v train --recipe xgen-mm-vid-instructions --init FOLDER --data clips.json --learning-rate 2e-6 --steps 500
    """
    asked = {"steps": steps, "learning_rate": learning_rate, "batch_size_per_device": batch_size_per_device}
    recipe, changes = changed(read_recipe(recipe_name), asked)
    folder = output if output is not None else Path("runs") / Path(recipe_name).stem
    if data:  # before a download; that there is a list at all, only after what it starts from
        check_data(recipe, data)
    init = None if init is None else local_model(init, "checkpoint")
    options = TrainOptions(
        output=folder,
        init=init,
        data=data,
        cache=cache,
        device=device,
        resume=resume,
        workers=workers,
        max_broken_clips=max_broken_clips,
        max_broken_share=max_broken_share,
    )
    check_options(recipe, options)
    if not dry_run:
        check_output(options)
    is_main = os.environ.get("RANK", "0") == "0"  # torchrun and accelerate start one process per device
    read = functools.cache(read_part)  # what is told is read once, for the run too
    parts = check_data(recipe, data)
    if is_main:
        _tell_what_data_hold(parts, read)
    # These import PyTorch, which takes seconds: only after everything that can be checked without it.
    from blip3v.training.plan import make_plan
    from blip3v.training.run import train

    recipe.model_config()
    for line in changes if is_main else ():
        talk(line)
    if dry_run:
        plan = make_plan(recipe, options, read=read)
        click.echo(json.dumps(plan) if as_json else _plan_text(plan))
        return
    console = talk_console()
    interactive = console.is_terminal and is_main
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not interactive) as progress:
        path = train(recipe, options, _Screen(progress, is_main=is_main, interactive=interactive), read=read)
    if not is_main:
        return
    if as_json:
        click.echo(json.dumps({"model": str(path), "log": str(folder / "log.jsonl")}))
    else:
        click.echo(str(path))
        talk(f"next: {_next_command(parts, path)}")


def _tell_what_data_hold(parts: Sequence[Part], read: PartReader) -> None:
    """Reads the data sets: what they lack is told before anything is loaded."""
    for part in parts:
        if part.data_set is not None:
            talk(held_line(read(part)))


def _next_command(parts: Sequence[Part], model: Path) -> str:
    """To measure the model on what it was trained for, if that is known; else to use it."""
    if not parts:
        return command_line("eval", "-m", str(model))
    for part in parts:
        name = next(
            (one.name for one in BENCHMARKS.values() if part.data_set and one.data_set == part.data_set.name), None
        )
        if name is not None:
            return command_line("eval", "--benchmark", name, "--data", str(part.path), "-m", str(model))
    return command_line("export", "-m", str(model))


def _plan_text(plan: Mapping[str, Any]) -> str:
    """The plan as text."""
    model, run = plan["model"], plan["run"]
    recompute = "with" if run["gradient_checkpointing"] else "without"
    lines = [
        f"{model['preset']}, {model['encoder']}, {format_count(model['num_video_tokens'], 'token')} "
        f"for {format_count(model['num_frames'], 'frame')}; "
        f"{run['precision']}, {run['parallel']}, {recompute} gradient checkpointing",
        *(f"{part}: {where}" for part, where in plan["origin"].items()),
    ]
    for index, stage in enumerate(plan["stages"], start=1):
        lines.append(f"stage {index}: {stage['task']}, {format_count(stage['num_clips'], 'clip')}")
        lines += [f"  {name} parameters: {_listed(stage[name])}" for name in ("trained", "frozen") if stage[name]]
        for text, rows in groupby(stage["devices"], key=_device_text):
            *counts, last = (row["num_devices"] for row in rows)
            lines.append(f"  {''.join(f'{count}, ' for count in counts)}{format_count(last, 'device')}: {text}")
    return "\n".join(lines)


def _device_text(row: Mapping[str, Any]) -> str:
    state = ", ".join(f"{name.replace('_', ' ')} {format_bytes(size)}" for name, size in row["state_bytes"].items())
    return f"{_steps(row['num_steps'], row['batch_size'])}; estimate for each device, without activations: {state}"


def _summary_text(summary: StageSummary) -> str:
    """The time of a step, how much of it was waiting for data, and what was left out."""
    waited = 100 * summary.data_s / summary.step_s if summary.step_s else 0.0
    text = f"{format_count(summary.num_steps, 'step')} of {format_duration(summary.step_s)}, of which "
    text += f"{format_duration(summary.data_s)} ({waited:.1f} %) waiting for data"
    if summary.num_broken:
        text += f"; {format_count(summary.num_broken, 'clip')} could not be read"
    if summary.num_cut:
        text += f"; {format_count(summary.num_cut, 'conversation')} cut to max_tokens"
    return text


def _steps(count: int, batch_size: int) -> str:
    return f"{format_count(count, 'step')} of {format_count(batch_size, 'clip')}"


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{part} {size:,}" for part, size in sizes.items())


command.epilog = f"Shipped recipes: {', '.join(recipe_names())}"
