"""MSR-VTT as captions: 20 English sentences about each of 10,000 clips (Xu et al., CVPR 2016).

``train_val_videodatainfo.json`` and ``test_videodatainfo.json`` are JSON objects with ``videos`` (``video_id``, and
``split``: train, validate or test) and ``sentences`` (``video_id``, ``caption``), as the release's own readme
describes.
"""

from __future__ import annotations

from pathlib import Path

from blip3v.data.readers.annotations import annotation_file, check_split, json_records
from blip3v.data.readers.captions import caption_samples, num_samples
from blip3v.data.readers.videos import Videos
from blip3v.data.records import About, ClipSample, Found
from blip3v.errors import ConfigError

__all__ = ["MsrvttCaption"]

_WORDS = {"train": "train", "val": "validate", "test": "test"}  # theirs for each split of ours


class MsrvttCaption:
    """MSRVTT-Caption."""

    name = "msrvtt-caption"
    splits: tuple[str, ...] = ("train", "val", "test")
    about = About(
        title="MSRVTT-Caption (MSR-VTT)",
        authors="Xu et al., Microsoft Research, https://www.microsoft.com/en-us/research/publication/"
        "msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language",
        licence="not confirmed: read the terms of the release; the videos are YouTube clips and remain their owners'",
        layout=(
            "train_val_videodatainfo.json (train, val)",
            "test_videodatainfo.json (test)",
            "TrainValVideo/video<number>.mp4",
            "TestVideo/video<number>.mp4",
        ),
    )

    def read(self, root: Path, split: str) -> Found:
        """See ``DataSet``."""
        check_split(self, split)
        file = "test_videodatainfo.json" if split == "test" else "train_val_videodatainfo.json"
        path = annotation_file(self, root, split, file)
        captions: dict[str, list[str]] = {}
        for record in json_records(path, "sentences"):
            captions.setdefault(record.text("video_id"), []).append(record.text("caption"))
        videos = Videos(root, "TestVideo" if split == "test" else "TrainValVideo", "video", "videos", "")
        samples: list[ClipSample] = []
        for record in json_records(path, "videos"):
            if record.text("split") != _WORDS[split]:
                continue
            name = record.text("video_id")
            if name not in captions:
                raise ConfigError(f"{record.where} is {name!r}, which has no sentence; at least 1 is expected")
            num_records = num_samples(captions[name], split)
            video = videos.find(name, record, num_records=num_records)
            if video is not None:
                samples += caption_samples(video, captions[name], key=name, split=split)
        return Found(samples=tuple(samples), missing=videos.missing)
