"""Clips that cannot be read: what is noted about them, and how many of them a run accepts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip3v.errors import ConfigError, RequestError, UsageError, VideoError
from blip3v.publishing import complete_lines
from blip3v.units import format_count

__all__ = ["NOTHING", "UNREADABLE", "BrokenClip", "BrokenClips", "Notes"]

UNREADABLE = (VideoError, RequestError, UsageError)
"""What a clip raises that is broken or that its conversation cannot be asked about. Everything else ends the run."""

_NUM_NAMED = 3


@dataclass(frozen=True, order=True)
class BrokenClip:
    """A visit to a clip that another clip took the place of."""

    step: int  # from 1, as in the log
    clip: int  # its number in the data
    name: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        """As a line of the log names it."""
        return {"clip": self.clip, "name": self.name, "error": self.error}


@dataclass(frozen=True)
class Notes:
    """What there is to say about the clips of a batch, beside their tensors."""

    broken: tuple[BrokenClip, ...] = ()
    num_cut: int = 0  # conversations that were longer than the stage's max_tokens

    @staticmethod
    def joined(notes: Iterable[Notes]) -> Notes:
        """The notes about several batches, in the order of the steps."""
        every = list(notes)
        broken = sorted(clip for each in every for clip in each.broken)
        return Notes(tuple(broken), sum(each.num_cut for each in every))


NOTHING = Notes()


@dataclass
class BrokenClips:
    """The broken clips of a stage so far.

    Attributes:
        max_clips: more visits than this have to fail before the run ends.
        max_share: and this share of all visits, from 0 to 1.
        names: of all visits that failed, each with its reason.
    """

    max_clips: int
    max_share: float
    names: list[str] = field(default_factory=list)

    def restore(self, log: Path, stage: int, step: int) -> None:
        """Counts what the log of an interrupted run names up to ``step`` of ``stage``."""
        for record in map(json.loads, complete_lines(log) if log.is_file() else ()):
            if record["stage"] == stage and record["step"] <= step:
                self.names += [_text(clip["name"], clip["error"]) for clip in record.get("broken", ())]

    def add(self, broken: Sequence[BrokenClip], num_visits: int) -> None:
        """Counts those of the last steps.

        Args:
            broken: the visits that failed.
            num_visits: all visits of the stage so far.

        Raises:
            ConfigError: there are too many.
        """
        self.names += [_text(clip.name, clip.error) for clip in broken]
        count = len(self.names)
        if count > self.max_clips and count > self.max_share * num_visits:
            more = f"; and {count - _NUM_NAMED} more" if count > _NUM_NAMED else ""
            raise ConfigError(
                f"{count} of {format_count(num_visits, 'clip')} could not be read: "
                f"{'; '.join(self.names[:_NUM_NAMED])}{more}",
                remedy=f"repair them or leave them out, or allow more than {self.max_clips} clips that are "
                f"{self.max_share:g} of all with a higher `max_broken_clips` or `max_broken_share`",
            )


def _text(name: str, error: str) -> str:
    return f"{name} ({error})"
