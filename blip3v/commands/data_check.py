"""``blip3v data check``: count what data hold, and name what they lack, before a run begins."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from blip3v.commands.failure import print_json, with_error
from blip3v.commands.held_lines import held_line, part_name
from blip3v.commands.output import quiet_option, talk
from blip3v.data.mixture import Held, Part, check_parts, parts_of, read_part
from blip3v.errors import ConfigError, UsageError
from blip3v.strict_json import dumps
from blip3v.units import format_count

__all__ = ["command"]


@click.command("check")
@click.argument("words", nargs=-1, required=True, metavar="DATA...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with the names of all missing videos.")
@quiet_option
def command(words: tuple[str, ...], as_json: bool) -> None:
    """Count the records and videos of DATA, and name what is missing.

    DATA is what --data of train takes: NAME=FOLDER or NAME:SPLIT=FOLDER for a data set, a JSON list of your own clips,
    or a mixture file. Without a SPLIT every split is counted whose annotations are there. No video is opened.

    Exits with code 2 if a video is missing, or annotations are.

    \b
    Examples:
      blip3v data check msrvtt-qa=/data/msrvtt
      blip3v data check tgif-qa:train=/data/tgif clips.json --json
    """
    rows: list[Held] = []
    absent: list[Part] = []
    for word in words:
        for part in parts_of([word]):
            check_parts([part])
            held, lacking = _held(part, names_split=part.word != word or ":" in word.partition("=")[0])
            rows += held
            absent += lacking
            if not as_json:
                click.echo("\n".join(map(held_line, held)))
                for each in lacking:
                    talk(f"{part_name(each)}: no annotations")
    error = _error(rows)
    if as_json:
        values: dict[str, Any] = {
            "ok": error is None,
            "parts": [_values(held) for held in rows],
            "absent": [part_name(part) for part in absent],
        }
        print_json(dumps(values if error is None else with_error(values, error)))
    if error is not None:
        raise error


def _held(part: Part, *, names_split: bool) -> tuple[list[Held], list[Part]]:
    """What a part holds, split by split if its word names none; then the splits whose annotations are not there.

    Raises:
        UsageError: no split has annotations; the message says what to get.
    """
    if part.data_set is None or names_split:
        return [read_part(part)], []
    held: list[Held] = []
    problems: dict[Part, UsageError] = {}
    for each in (dataclasses.replace(part, split=split) for split in part.data_set.splits):
        try:
            held.append(read_part(each))
        except UsageError as error:
            problems[each] = error
    if not held:
        raise next(iter(problems.values()))
    return held, list(problems)


def _error(rows: list[Held]) -> ConfigError | None:
    missing = sum(len(held.missing) for held in rows)
    if missing:
        records = format_count(sum(held.num_missing_records for held in rows), "record")
        videos = format_count(missing, "video")
        return ConfigError(f"{videos} with {records} {'is' if missing == 1 else 'are'} missing; a run leaves them out")
    empty = [part_name(held.part) for held in rows if not held.samples]
    return ConfigError(f"{', '.join(empty)} has no records; at least 1 is needed") if empty else None


def _values(held: Held) -> dict[str, Any]:
    part = held.part
    return {
        "data": part.word,
        "data_set": part.data_set.name if part.data_set is not None else None,
        "split": part.split if part.data_set is not None else None,
        "path": str(part.path),
        "num_records": held.num_records,
        "num_taken": len(held.samples),
        "num_videos": held.num_videos,
        "num_missing_videos": len(held.missing),
        "num_missing_records": held.num_missing_records,
        "missing": dict(held.missing),
    }
