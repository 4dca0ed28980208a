"""ActivityNet-QA: 58,000 questions that people wrote about long videos (Yu et al., AAAI 2019).

Form as in the authors' repository (github.com/MILVLG/activitynet-qa, ``dataset/README.md``, and its files):
``{split}_q.json`` with ``question``, ``video_name`` and ``question_id``, ``{split}_a.json`` with ``answer``, ``type``
and ``question_id``. Questions have no question mark. Files of videos are named as ActivityNet names them,
``v_<video_name>``.
"""

from __future__ import annotations

from pathlib import Path

from blip3v.data.readers.annotations import annotation_file, check_split, json_records
from blip3v.data.readers.videos import Videos
from blip3v.data.records import About, ClipSample, Found, Turn
from blip3v.errors import ConfigError

__all__ = ["ActivityNetQa"]

# The authors' names of the types 0 to 8.
_TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")


class ActivityNetQa:
    """ActivityNet-QA."""

    name = "activitynet-qa"
    splits: tuple[str, ...] = ("train", "val", "test")
    about = About(
        title="ActivityNet-QA",
        authors="Yu et al., https://github.com/MILVLG/activitynet-qa (the videos: ActivityNet 200 v1.3, "
        "http://activity-net.org/download.html)",
        licence="MIT according to the authors' readme (the repository's LICENSE file is Apache 2.0), for "
        "non-commercial use only; the videos are YouTube clips and remain their owners'",
        layout=("dataset/{split}_q.json", "dataset/{split}_a.json", "videos/v_<video_name>.mp4"),
    )

    def read(self, root: Path, split: str) -> Found:
        """See ``DataSet``."""
        check_split(self, split)
        asked = annotation_file(self, root, split, f"dataset/{split}_q.json", f"{split}_q.json")
        answered = annotation_file(self, root, split, f"dataset/{split}_a.json", f"{split}_a.json")
        answers = {record.text("question_id"): record for record in json_records(answered)}
        videos, samples = Videos(root, "videos", "video", ""), []
        for record in json_records(asked):
            key, question = record.text("question_id"), record.text("question")
            if key not in answers:
                raise ConfigError(f"{record.where} has question_id {key!r}, which {answered.name} does not answer")
            answer = answers[key]
            turn, kind = Turn(question, answer.text("answer")), _TYPES[answer.index("type", len(_TYPES))]
            name = record.text("video_name")
            video = videos.find(f"v_{name}", record, also=name)
            if video is not None:
                samples.append(ClipSample(video, (turn,), key=key, kind=kind))
        return Found(samples=tuple(samples), missing=videos.missing)
