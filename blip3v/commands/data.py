"""``blip3v data``: generate film files with questions and true answers; below it, what deals with data sets."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import click
from click.core import ParameterSource
from rich.progress import track

from blip3v.commands import data_check, data_list, data_rephrase
from blip3v.commands.next_command import ask_film
from blip3v.commands.output import quiet_option, talk, talk_console
from blip3v.data.film import Split, make_film
from blip3v.data.film_files import QUESTIONS_FILE, write_films
from blip3v.data.mp4 import FILE_SIZES
from blip3v.errors import UsageError
from blip3v.strict_json import dumps
from blip3v.units import format_bytes, format_count, format_duration

__all__ = ["command"]


@click.group("data", invoke_without_command=True, subcommand_metavar="[COMMAND]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to create.  [default: films-SPLIT-SEED]")
@click.option("--count", type=click.IntRange(min=1), default=8, show_default=True, help="Number of films.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the first film.")
@click.option(
    "--split", type=click.Choice(get_args(Split)), default="test", show_default=True, help="Split of the film set."
)
@click.option(
    "--height",
    type=click.Choice([str(height) for height in FILE_SIZES]),
    default="480",
    show_default=True,
    help="Height of a frame in pixels; its width is 4/3 of that.",
)
@click.option("--force", is_flag=True, help="Replace the folder if it contains film files.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@quiet_option
@click.pass_context
def command(
    context: click.Context,
    output: Path | None,
    count: int,
    seed: int,
    split: Split,
    height: str,
    force: bool,
    as_json: bool,
) -> None:
    """Generate synthetic films as mp4 files, with questions and true answers.

    The commands listed below deal with the data sets of others: what they are, and whether yours is complete.

    A film is determined by its seed: the same seed always gives the same film. Next to the clips, questions.json holds
    each clip's caption, questions, answers and five-way choices.

    \b
    Examples:
      blip3v data --count 4
      blip3v data --split train --seed 1000 --count 100 --height 240 -o films
      blip3v data check msrvtt-qa=/data/msrvtt
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    folder = output if output is not None else Path(f"films-{split}-{seed}")
    films = {f"{split}-{number:05d}.mp4": make_film(number, split) for number in range(seed, seed + count)}
    started = time.perf_counter()
    film_set = write_films(folder, films, height=int(height), force=force, each=_progress)
    seconds = time.perf_counter() - started
    num_bytes = sum(entry.stat().st_size for entry in folder.iterdir())
    listing = folder / QUESTIONS_FILE
    if as_json:
        summary = {"output": str(folder), "num_clips": count, "size_bytes": num_bytes, "seconds": round(seconds, 2)}
        click.echo(dumps({**summary, "questions": str(listing)}), nl=False)
        return
    clip = film_set.clips[0]
    question = next((item.question for item in clip.questions if item.needs_time), clip.questions[0].question)
    click.echo(f"{folder}: {format_count(count, 'clip')}, {format_bytes(num_bytes)}, {format_duration(seconds)}")
    click.echo(f"questions and answers: {listing}")
    talk(f"next: {ask_film(folder / clip.file, question)}")


def _refuse_options(context: click.Context) -> None:
    """Refuses options of the films before the name of another command, where they would have no effect."""
    for parameter in context.command.params:
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{parameter.opts[-1]} stands before {context.invoked_subcommand} and has no effect there; leave it "
                f"out, or put it after {context.invoked_subcommand}"
            )


def _progress(files: Iterable[str]) -> Iterator[str]:
    console = talk_console()
    yield from track(list(files), "films", console=console, disable=not console.is_terminal, transient=True)


for _below in (data_list.command, data_check.command, data_rephrase.command):
    command.add_command(_below)
