"""The one form of a sample, which every data set is read into, and what a reader of a data set is.

A sample serves both sides: training takes its turns, evaluation asks its last question and compares with its
references.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = ["About", "ClipSample", "DataSet", "Found", "Turn"]


@dataclass(frozen=True)
class Turn:
    """A question, without ``<image>``, and the answer to learn."""

    question: str
    answer: str


@dataclass(frozen=True)
class ClipSample:
    """One record: a clip and a conversation about it.

    Attributes:
        video: a video file or a folder of jpeg frames, which existed when the record was read.
        turns: at least one; the video belongs before the first question.
        start_s: where the clip starts in the file, or None for its start.
        end_s: where the clip ends in the file, or None for its end.
        key: names the record within its data set and split; empty where the data set has no names.
        options: the options of a multiple-choice question in the order of their letters, else empty. The last turn's
            answer is one of them, word for word.
        references: all right answers to the last question, for a caption the texts of all annotators; empty: the last
            turn's answer alone.
        kind: the data set's own word for the kind of the question, such as ``TN`` or ``motion``; empty: it has none.
    """

    video: Path
    turns: tuple[Turn, ...]
    start_s: float | None = None
    end_s: float | None = None
    key: str = ""
    options: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a person needs to know to get a data set.

    Attributes:
        title: its name as its authors write it.
        authors: who publishes it, with the public page or repository.
        licence: of the annotations and of the videos, as its authors state it, or that they state none.
        layout: the files under the root folder, one to a line, with ``{split}`` where the split's name belongs.
    """

    title: str
    authors: str
    licence: str
    layout: tuple[str, ...]

    def how_to_get(self, split: str) -> str:
        """What to get, then ``lines``."""
        return f"get {self.title} into one folder\n{self.lines(split)}"

    def lines(self, split: str = "{split}") -> str:
        """Indented lines: from whom, under which licence, and the files of a split in the folder."""
        first, *others = (line.replace("{split}", split) for line in self.layout)
        return "\n".join(
            (
                f"  from:    {self.authors}",
                f"  licence: {self.licence}",
                f"  files:   {first}",
                *(f"           {line}" for line in others),
            )
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a reader found under a root folder.

    Attributes:
        samples: the records whose video is there, in the order of the annotations.
        missing: the videos that annotations name and the folder lacks, each with its number of records.
    """

    samples: tuple[ClipSample, ...]
    missing: Mapping[str, int] = field(default_factory=dict)


class DataSet(Protocol):
    """A data set in the layout that its authors publish. One file in ``blip3v/data/readers/`` is one of these."""

    name: str  # on the command line and in result files, such as msrvtt-qa
    splits: tuple[str, ...]  # such as train, val, test
    about: About

    def read(self, root: Path, split: str) -> Found:
        """All records of a split.

        Raises:
            UsageError: there is no such split, or the annotations are not under ``root``; the message says what is
                missing, who publishes it and where it must lie.
            ConfigError: an annotation file is not in the published form; the message names the record and the field.
        """
