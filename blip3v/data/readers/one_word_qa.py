"""What MSVD-QA and MSRVTT-QA share: questions made from captions, answers of one word (Xu et al., ACM Multimedia 2017).

The file names, the fields ``question``, ``answer``, ``video_id`` and ``id``, and the folder of videos are those that
the authors' programs read: github.com/xudejing/video-question-answering, ``preprocess_msvdqa.py``,
``preprocess_msrvttqa.py`` and ``util/dataset.py``. The annotation files themselves could not be seen.
"""

from __future__ import annotations

from pathlib import Path

from blip3v.data.readers.annotations import annotation_file, check_split, json_records
from blip3v.data.readers.msvd_names import NAMES_FILE, read_names
from blip3v.data.readers.videos import Videos
from blip3v.data.records import About, ClipSample, Found, Turn

__all__ = ["OneWordQa"]


class OneWordQa:
    """A data set in this form.

    Args:
        name: of the data set.
        about: how to get it.
        prefix: of a video's name, before its number.
        folders: where the videos may lie under the root.
    """

    def __init__(self, name: str, about: About, *, prefix: str, folders: tuple[str, ...]) -> None:
        self.name = name
        self.splits: tuple[str, ...] = ("train", "val", "test")
        self.about = about
        self._prefix, self._folders = prefix, folders

    def read(self, root: Path, split: str) -> Found:
        """See ``DataSet``."""
        check_split(self, split)
        path = annotation_file(self, root, split, f"{split}_qa.json")
        names = read_names(root / NAMES_FILE) if (root / NAMES_FILE).is_file() else {}
        videos, samples = Videos(root, *self._folders), []
        for index, record in enumerate(json_records(path)):
            turn = Turn(record.text("question"), record.text("answer"))
            key = record.key("id", default=str(index))
            name = f"{self._prefix}{record.text('video_id')}"
            video = videos.find(name, record, also=names.get(name))
            if video is not None:
                samples.append(ClipSample(video, (turn,), key=key))
        return Found(samples=tuple(samples), missing=videos.missing)
