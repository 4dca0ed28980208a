"""VideoInstruct-100K: long answers about videos of ActivityNet (Maaz et al., Video-ChatGPT, ACL 2024).

``VideoInstruct100K.json`` is a JSON list of ``q``, ``a`` and ``video_id``, as the authors' own converter reads it
(github.com/mbzuai-oryx/Video-ChatGPT, ``scripts/convert_instruction_json_to_training_format.py``); the file itself
could not be seen. ``video_id`` is the name of ActivityNet's file, ``v_...``.
"""

from __future__ import annotations

from pathlib import Path

from blip3v.data.readers.annotations import annotation_file, check_split, json_records
from blip3v.data.readers.videos import Videos
from blip3v.data.records import About, ClipSample, Found, Turn

__all__ = ["VideoInstruct"]


class VideoInstruct:
    """VideoInstruct-100K."""

    name = "video-instruct"
    splits: tuple[str, ...] = ("train",)
    about = About(
        title="VideoInstruct-100K",
        authors="Maaz et al., https://huggingface.co/datasets/MBZUAI/VideoInstruct-100K (the videos: ActivityNet, "
        "http://activity-net.org/download.html)",
        licence="CC BY-SA 4.0; the videos are YouTube clips and remain their owners'",
        layout=("VideoInstruct100K.json", "videos/<video_id>.mp4"),
    )

    def read(self, root: Path, split: str) -> Found:
        """See ``DataSet``."""
        check_split(self, split)
        path = annotation_file(self, root, split, "VideoInstruct100K.json")
        videos, samples = Videos(root, "videos", "video", ""), []
        for index, record in enumerate(json_records(path)):
            turn = Turn(record.text("q"), record.text("a"))
            video = videos.find(record.text("video_id"), record)
            if video is not None:
                samples.append(ClipSample(video, (turn,), key=str(index)))
        return Found(samples=tuple(samples), missing=videos.missing)
