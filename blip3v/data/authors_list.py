"""Writes the JSON list of the authors' code, which ``authors.py`` reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip3v.data.records import ClipSample
from blip3v.publishing import write_file
from blip3v.strict_json import dumps

__all__ = ["write_samples"]

_IMAGE = "<image>\n"


def write_samples(samples: Sequence[ClipSample], path: Path) -> None:
    """Writes samples atomically; videos in the folder of ``path`` are named relative to it, others by absolute paths.

    Raises:
        OSError: the file cannot be written.
    """
    write_file(path, dumps([_record(sample, path.parent) for sample in samples]))


def _record(sample: ClipSample, folder: Path) -> dict[str, Any]:
    messages = [text for turn in sample.turns for text in (turn.question, turn.answer)]
    messages[0] = _IMAGE + messages[0]
    record: dict[str, Any] = {
        "path": _name(sample.video, folder),
        "conversations": [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(messages)],
    }
    if sample.key:
        record["id"] = sample.key
    for name, value in (("start_time", sample.start_s), ("end_time", sample.end_s)):
        if value is not None:
            record[name] = value
    return record


def _name(video: Path, folder: Path) -> str:
    absolute, inside = Path(os.path.abspath(video)), Path(os.path.abspath(folder))
    return str(absolute.relative_to(inside)) if absolute.is_relative_to(inside) else str(absolute)
