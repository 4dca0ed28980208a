"""TGIF-QA: questions about animated GIFs in four tasks (Jang et al., CVPR 2017 and IJCV 2019).

Form as in the authors' repository (github.com/YunseokJANG/tgif-qa, ``dataset/README.md``, and the files there of every
task but the training files of transition and frameqa, which have the same columns in their test files):
``{Train,Test}_{task}_question.csv``, separated by tabs and never quoted; the repository has one file a task and split.

The split ``train`` is what the paper trains on: action and transition, with the right option as an open answer. It
counts 71k of these 73,179 questions, by a filter that is not published. ``test`` is what papers on open-ended answers
call TGIF-QA: frameqa. Every task is a split of its own too, such as ``test-action``, with the five options where it has
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from blip3v.data.readers.annotations import Record, annotation_file, check_split, csv_records
from blip3v.data.readers.videos import Videos
from blip3v.data.records import About, ClipSample, Found, Turn

__all__ = ["TgifQa"]

_TASKS = ("action", "transition", "count", "frameqa")
_FIVE_WAY = ("action", "transition")
_FRAME_KINDS = ("object", "number", "color", "location")  # the authors' names of frameqa's types 0 to 3
_OPTIONS = ("a1", "a2", "a3", "a4", "a5")
# The tasks of the two splits that are not one task alone.
_OPEN_ENDED = {"train": _FIVE_WAY, "test": ("frameqa",)}


class TgifQa:
    """TGIF-QA."""

    name = "tgif-qa"
    splits: tuple[str, ...] = (*_OPEN_ENDED, *(f"{split}-{task}" for split in _OPEN_ENDED for task in _TASKS))
    about = About(
        title="TGIF-QA",
        authors="Jang et al., https://github.com/YunseokJANG/tgif-qa (the GIFs: also https://github.com/raingo/"
        "TGIF-Release)",
        licence="free to use for academic purposes only; the GIFs remain their owners'",
        layout=(
            "dataset/Train_<task>_question.csv and dataset/Test_<task>_question.csv, with the tasks action, "
            "transition, count, frameqa",
            "gifs/<gif_name>.gif",
        ),
    )

    def read(self, root: Path, split: str) -> Found:
        """See ``DataSet``."""
        check_split(self, split)
        part, _, task = split.partition("-")
        videos = Videos(root, "gifs", "videos", "")
        samples: list[ClipSample] = []
        for each in (task,) if task else _OPEN_ENDED[split]:
            file = f"{part.capitalize()}_{each}_question.csv"
            path = annotation_file(self, root, split, f"dataset/{file}", file)
            samples += _samples(path, each, videos, with_options=bool(task))
        return Found(samples=tuple(samples), missing=videos.missing)


def _samples(path: Path, task: str, videos: Videos, *, with_options: bool) -> Iterator[ClipSample]:
    for record in csv_records(path, delimiter="\t", is_quoted=False):
        options = tuple(record.text(field) for field in _OPTIONS) if task in _FIVE_WAY else ()
        answer = options[record.index("answer", len(options))] if options else record.text("answer")
        turn, key = Turn(record.text("question"), answer), record.text("vid_id")
        video = videos.find(record.text("gif_name"), record)
        if video is not None:
            kind = _kind(record, task)
            yield ClipSample(video, (turn,), key=key, options=options if with_options else (), kind=kind)


def _kind(record: Record, task: str) -> str:
    return _FRAME_KINDS[record.index("type", len(_FRAME_KINDS))] if task == "frameqa" else task
