"""``blip3v data list``: the data sets that blip3v reads."""

from __future__ import annotations

import dataclasses

import click

from blip3v.commands.completed_values import completes
from blip3v.commands.output import quiet_option, talk
from blip3v.data.readers import data_set, data_sets
from blip3v.data.records import DataSet
from blip3v.strict_json import dumps

__all__ = ["command"]


@click.command("list")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=completes(data_sets()))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@quiet_option
def command(names: tuple[str, ...], as_json: bool) -> None:
    """Show the data sets that blip3v reads: who publishes them, their licence, and the files under their folder.

    Without a NAME it shows all of them.

    \b
    Examples:
      blip3v data list
      blip3v data list msrvtt-qa nextqa
    """
    chosen = [data_set(name) for name in names] if names else list(data_sets().values())
    if as_json:
        rows = [{"name": each.name, "splits": each.splits, **dataclasses.asdict(each.about)} for each in chosen]
        click.echo(dumps({"data_sets": rows}), nl=False)
        return
    click.echo("\n\n".join(map(_text, chosen)))
    talk("\nnext: blip3v data check NAME=FOLDER")


def _text(each: DataSet) -> str:
    about = each.about
    return f"{each.name}: {about.title}\n  splits:  {', '.join(each.splits)}\n{about.lines()}"
