"""A folder in the form VideoFolder of Hugging Face's ``datasets``: video files and a table of metadata.

As its documentation describes (huggingface.co/docs/datasets/video_dataset): every split is a folder, ``train``,
``validation`` or ``test``, with ``metadata.jsonl`` or ``metadata.csv``, whose column ``file_name`` is a path relative
to that file. A folder without splits is the split ``train``. The other columns are ours to name: ``question`` and
``answer``, or ``caption`` or ``text``, or ``conversations`` in the form of LLaVA (in metadata.jsonl).

Not read: parquet and arrow files, which hold the videos inside, while a sample here is a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from blip3v.data.readers.annotations import Record, annotation_file, check_split, csv_records, json_lines
from blip3v.data.readers.captions import SHORT_QUESTION
from blip3v.data.readers.conversation import turns_of
from blip3v.data.readers.videos import Videos
from blip3v.data.records import About, ClipSample, Found, Turn
from blip3v.errors import ConfigError

__all__ = ["HuggingFace"]

_TABLES = ("metadata.jsonl", "metadata.csv")
_CAPTION_COLUMNS = ("caption", "text")


class HuggingFace:
    """Any data set in this form."""

    name = "huggingface"
    splits: tuple[str, ...] = ("train", "validation", "test")
    about = About(
        title="A folder of video files in the form VideoFolder of Hugging Face datasets",
        authors="whoever made it; the form: https://huggingface.co/docs/datasets/video_dataset",
        licence="of that data set",
        layout=(
            "{split}/metadata.jsonl or {split}/metadata.csv, with file_name and either question and answer, or "
            "caption, or conversations",
            "{split}/<file_name>",
        ),
    )

    def read(self, root: Path, split: str) -> Found:
        """See ``DataSet``."""
        check_split(self, split)
        names = tuple(f"{split}/{table}" for table in _TABLES) + (_TABLES if split == "train" else ())
        path = annotation_file(self, root, split, *names)
        records: Iterable[Record] = csv_records(path) if path.suffix == ".csv" else json_lines(path)
        videos, samples = Videos(path.parent, ""), []
        for index, record in enumerate(records):
            turns, key = _turns(record), record.key("id", default=str(index))
            video = videos.find(record.text("file_name"), record)
            if video is not None:
                samples.append(ClipSample(video, turns, key=key))
        return Found(samples=tuple(samples), missing=videos.missing)


def _turns(record: Record) -> tuple[Turn, ...]:
    if "conversations" in record.values:
        return turns_of(record, "conversations")
    if "question" in record.values:
        return (Turn(record.text("question"), record.text("answer")),)
    for column in _CAPTION_COLUMNS:
        if column in record.values:
            return (Turn(SHORT_QUESTION, record.text(column)),)
    raise ConfigError(
        f"{record.where} has the columns {', '.join(map(str, record.values))}; question and answer, caption, text or "
        "conversations are expected"
    )
