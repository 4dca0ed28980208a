"""What data hold, in lines: before a training run, and for ``blip3v data check``."""

from __future__ import annotations

from blip3v.data.mixture import Held, Part
from blip3v.units import format_count

__all__ = ["held_line", "part_name"]

_MAX_NAMES = 5


def part_name(part: Part) -> str:
    """A list or a data set in words: its path, or its name with the split."""
    return str(part.path) if part.data_set is None else f"{part.data_set.name} ({part.split}) in {part.path}"


def held_line(held: Held) -> str:
    """What a part holds and lacks, in one line."""
    records = format_count(held.num_records, "record")
    taken = "" if len(held.samples) == held.num_records else f", {len(held.samples)} of them taken"
    line = f"{part_name(held.part)}: {records}{taken}, {format_count(held.num_videos, 'video')}"
    if not held.missing:
        return line
    names = list(held.missing)
    shown = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    lacks = f"{format_count(len(names), 'video')} with {format_count(held.num_missing_records, 'record')}"
    return f"{line}; missing: {lacks} ({shown})"
