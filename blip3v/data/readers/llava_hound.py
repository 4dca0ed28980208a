"""LLaVA-Hound's captions: 900k detailed captions by GPT-4V (Zhang et al., 2024).

``video_caption_pretrain.jsonl`` has one object a line, with ``video``, the name of a folder of jpeg frames, and
``conversations`` in the form of LLaVA, where ``<video>`` marks the video. The frames are published as archives
(``train_300k/``, ``train_600k/``), and the authors' programs unpack them into ``video_data/train/``
(github.com/RifleZhang/LLaVA-Hound-DPO, ``setup/``). The fields are as public programs read them; the file itself could
not be seen.
"""

from __future__ import annotations

from pathlib import Path

from blip3v.data.readers.annotations import annotation_file, check_split, json_lines
from blip3v.data.readers.conversation import turns_of
from blip3v.data.readers.videos import Videos
from blip3v.data.records import About, ClipSample, Found

__all__ = ["LlavaHound"]

_FILE = "video_caption_pretrain.jsonl"
_FOLDER = "video_instruction/train/pretrain"


class LlavaHound:
    """LLaVA-Hound captions."""

    name = "llava-hound"
    splits: tuple[str, ...] = ("train",)
    about = About(
        title="LLaVA-Hound captions (ShareGPTVideo)",
        authors="Zhang et al., https://huggingface.co/datasets/ShareGPTVideo/train_video_and_instruction",
        licence="Apache 2.0 (the annotations); the frames are of WebVid, VIDAL and ActivityNet, under their terms",
        layout=(
            f"{_FOLDER}/{_FILE}",
            "train_300k/<video>/*.jpeg",
            "train_600k/<video>/*.jpeg (both unpacked; or video_data/train/<video>/*.jpeg)",
        ),
    )

    def read(self, root: Path, split: str) -> Found:
        """See ``DataSet``."""
        check_split(self, split)
        path = annotation_file(self, root, split, f"{_FOLDER}/{_FILE}", _FILE)
        videos, samples = Videos(root, "train_300k", "train_600k", "video_data/train", ""), []
        for index, record in enumerate(json_lines(path)):
            turns = turns_of(record, "conversations")
            key = record.key("id", default=str(index))
            video = videos.find(record.text("video"), record)
            if video is not None:
                samples.append(ClipSample(video, turns, key=key))
        return Found(samples=tuple(samples), missing=videos.missing)
