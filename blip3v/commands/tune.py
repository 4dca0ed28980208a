"""``blip3v tune``: find the fastest way to run a bundle on this machine, and keep it in the bundle."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blip3v.bench.measure import NEW_TOKENS, QUESTION_TOKENS
from blip3v.bundle import layout
from blip3v.bundle.manifest import Manifest
from blip3v.bundle.tuning import Measured, TunedGraph, Tuning
from blip3v.commands.failure import print_json
from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.next_command import after_build
from blip3v.commands.output import quiet_option, talk, talk_console
from blip3v.commands.program import command_line
from blip3v.commands.stages import show_stages
from blip3v.commands.tables import print_table
from blip3v.strict_json import dumps
from blip3v.tuning import SECONDS, run_tune
from blip3v.tuning.inputs import MAX_QUESTIONS
from blip3v.units import format_count, format_duration, format_ratio

__all__ = ["command"]


@click.command(short_help="Find the fastest engines and threads for a bundle here.")
@click.argument("bundle", type=MODEL_PATH)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=SECONDS,
    show_default=True,
    help="How long this should take; the engines get three turns however long they are, numbers of threads only in "
    "time.",
)
@click.option(
    "--question-tokens",
    type=click.IntRange(min=1),
    default=QUESTION_TOKENS,
    show_default=True,
    help="Tokens of the questions to be fast for; those of the chat template and the video come on top.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=2),
    default=NEW_TOKENS,
    show_default=True,
    help="Tokens of the answers to be fast for.",
)
@click.option(
    "--questions",
    "num_questions",
    type=click.IntRange(min=1),
    default=MAX_QUESTIONS,
    show_default=True,
    help="Questions on which results are compared; fewer if they take a tenth of the time.",
)
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
@quiet_option
def command(
    bundle: Path, seconds: float, question_tokens: int, new_tokens: int, num_questions: int, as_json: bool
) -> None:
    """Find the fastest engine, settings and number of threads for each graph of BUNDLE on this machine.

    Every installed engine that runs the graph takes turns with the one that is taken by default. What is faster, and
    computes otherwise than the bundle's reports cover, is compared with the default's results: it is chosen only
    within the tolerance of the bundle's parity, or the budget of its accuracy report. The choice is written to the
    folder tuning/ of BUNDLE, which `ask`, `chat` and `bench` read unless --backend, --device or --threads is given;
    delete it to go back. It holds for this machine and the engines' versions, and is passed over anywhere else.

    \b
    Examples:
      blip3v tune blip3v-tiny-tokenlearner-32tok-fp16
      blip3v tune my-bundle --seconds 120 --question-tokens 64 --new-tokens 128
    """
    bundle = local_model(bundle)
    console = talk_console()
    with ExitStack() as stack:
        result = run_tune(
            bundle,
            seconds=seconds,
            question_tokens=question_tokens,
            new_tokens=new_tokens,
            num_questions=num_questions,
            command=command_line(*sys.argv[1:]),
            progress=show_stages(console, stack),
        )
    next_command = after_build(Manifest.load(bundle / layout.MANIFEST), bundle)
    if as_json:
        values = {"output": str(result.path), "seconds": round(result.seconds, 2), **result.tuning.to_dict()}
        print_json(dumps({**values, "next": next_command}))
        return
    _print(result.tuning, Console(highlight=False))
    click.echo(f"{result.path}: {format_duration(result.seconds)}")
    talk(f"next: {next_command}")


def _print(tuning: Tuning, console: Console) -> None:
    for graph, tuned in tuning.graphs.items():
        print_table(console, _table(graph, tuned, tuning))
    console.print(f"what results may differ by: {tuning.budget}", soft_wrap=True)


def _table(graph: str, tuned: TunedGraph, tuning: Tuning) -> Table:
    what = "a clip" if graph == "video_encoder" else f"a prompt and {format_count(tuning.new_tokens, 'token')}"
    same = tuned.chosen == tuned.default
    found = "nothing beats the default" if same else f"{tuned.chosen} is {format_ratio(tuned.speedup)} as fast"
    title = f"{graph.replace('_', ' ')}, {what}: {found}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE)
    for name in ("candidate", "median", "speed", "turns", "accuracy", ""):
        table.add_column(name, justify="right" if name in ("median", "speed", "turns") else "left")
    for each in sorted(tuned.measured, key=lambda one: -(one.speedup or 0)):
        table.add_row(
            Text(str(each.candidate)),
            "" if each.median_s is None else format_duration(each.median_s),
            "" if each.speedup is None else format_ratio(each.speedup),
            str(each.num_turns or ""),
            Text(each.accuracy),
            _mark(each, tuned),
        )
    return table


def _mark(each: Measured, tuned: TunedGraph) -> str:
    marks = [
        *(["chosen"] if each.candidate == tuned.chosen else []),
        *(["default"] if each.candidate == tuned.default else []),
        *(["not allowed"] if each.allowed is False else []),
    ]
    return ", ".join(marks)
