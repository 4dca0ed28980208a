"""NExT-QA, five-way and open-ended: questions about causes and times (Xiao et al., CVPR 2021).

Form as in the authors' repositories, github.com/doc-doc/NExT-QA (five-way) and github.com/doc-doc/NExT-OE (open-ended),
folder ``dataset/nextqa``: ``{split}.csv``. Five-way: ``answer`` is the number of the right one of ``a0`` to ``a4``.
Open-ended: ``answer`` is text, and ``add_reference_answer_{split}.json``, published for test alone, holds a second
right answer by video and qid. ``map_vid_vidorID.json`` gives a video's path in VidOR, such as 1164/3238737531; videos
without subfolders are found too. The five-way train.csv could not be seen; it is taken to have the columns of val.csv.
``type`` is kept as it is: CW, CH, TN, TP, TC, DC, DL, DO, and DB in the open-ended one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blip3v.data.readers.annotations import Record, annotation_file, check_split, csv_records
from blip3v.data.readers.videos import Videos
from blip3v.data.records import About, ClipSample, Found, Turn
from blip3v.errors import ConfigError
from blip3v.strict_json import read_json

__all__ = ["NextQa", "NextQaOpen"]

_FOLDER = "dataset/nextqa"  # in the authors' repositories
_PATHS_FILE = "map_vid_vidorID.json"
_OPTIONS = ("a0", "a1", "a2", "a3", "a4")
_LICENCE = "MIT (the repository); the videos are of VidOR, from Flickr, and remain their owners'"
_VIDEOS = f"{_PATHS_FILE} and NExTVideo/<path>.mp4 (or NExTVideo/<video>.mp4 without the map)"


class NextQa:
    """The five-way data set."""

    name = "nextqa"
    splits: tuple[str, ...] = ("train", "val", "test")
    about = About(
        title="NExT-QA (five-way)",
        authors="Xiao et al., https://github.com/doc-doc/NExT-QA, with a link to the videos",
        licence=_LICENCE,
        layout=("{split}.csv", _VIDEOS),
    )

    def read(self, root: Path, split: str) -> Found:
        """See ``DataSet``."""
        check_split(self, split)
        path = annotation_file(self, root, split, f"{split}.csv", f"{_FOLDER}/{split}.csv")
        videos, samples = _Clips(root), []
        for record in csv_records(path):
            options = tuple(record.text(field) for field in _OPTIONS)
            turn = Turn(record.text("question"), options[record.index("answer", len(options))])
            kind, video = record.text("type"), videos.find(record)
            if video is not None:
                samples.append(ClipSample(video, (turn,), key=_key(record), options=options, kind=kind))
        return Found(samples=tuple(samples), missing=videos.missing)


class NextQaOpen:
    """The open-ended data set."""

    name = "nextqa-open"
    splits: tuple[str, ...] = ("train", "val", "test")
    about = About(
        title="NExT-QA (open-ended)",
        authors="Xiao et al., https://github.com/doc-doc/NExT-OE (videos and their map: https://github.com/doc-doc/"
        "NExT-QA)",
        licence=_LICENCE,
        layout=("{split}.csv", "add_reference_answer_test.json (test)", _VIDEOS),
    )

    def read(self, root: Path, split: str) -> Found:
        """See ``DataSet``."""
        check_split(self, split)
        path = annotation_file(self, root, split, f"{split}.csv", f"{_FOLDER}/{split}.csv")
        more = _more_answers(path.with_name(f"add_reference_answer_{split}.json"))
        videos, samples = _Clips(root), []
        for record in csv_records(path):
            answer, key, kind = record.text("answer"), _key(record), record.text("type")
            references = tuple(dict.fromkeys((answer, more[key]))) if key in more else ()
            video = videos.find(record)
            if video is not None:
                turn = Turn(record.text("question"), answer)
                samples.append(ClipSample(video, (turn,), key=key, references=references, kind=kind))
        return Found(samples=tuple(samples), missing=videos.missing)


class _Clips:
    """The videos, by the path that the map gives, or by their name."""

    def __init__(self, root: Path) -> None:
        self._videos = Videos(root, "NExTVideo", "videos", "video", "")
        files = [path for path in (root / _PATHS_FILE, root / _FOLDER / _PATHS_FILE) if path.is_file()]
        self._paths: dict[str, Any] = read_json(files[0]) if files else {}

    @property
    def missing(self) -> dict[str, int]:
        return dict(self._videos.missing)

    def find(self, record: Record) -> Path | None:
        name = record.text("video")
        path = self._paths.get(name)
        if not (path is None or isinstance(path, str)):
            raise ConfigError(f"{_PATHS_FILE}: {name} is {path!r}; a path such as 1164/3238737531 is expected")
        return self._videos.find(name, record, also=path)


def _key(record: Record) -> str:
    """As the authors' evaluation names a question."""
    return f"{record.text('video')}_{record.text('qid')}"


def _more_answers(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    return dict(_answers(path))


def _answers(path: Path) -> Iterator[tuple[str, str]]:
    for video, answers in read_json(path).items():
        if not isinstance(answers, dict):
            raise ConfigError(f"{path}: {video} is not an object; answers by qid are expected")
        for qid in answers:
            yield f"{video}_{qid}", Record(answers, f"{path}: {video}").text(qid)
