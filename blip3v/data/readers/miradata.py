"""MiraData: six captions by GPT-4V and Panda-70M about each clip of one to two minutes (Ju et al., 2024).

Two releases, as in the authors' repository (github.com/mira-space/MiraData; ``assets/`` holds 100 rows of each):

- v1: ``miradata_v1_{330k,93k,42k,9k}.csv``; a clip is ``clip_id``, and lies at its ``file_path``.
- v0: ``miradata_v0.csv``; a clip is ``index``, such as 000000008783_AJp_ANXoGoM-000114, and lies where the authors'
  ``download_data.py`` writes it: ``clip_video/000000008/<index>.mp4``, in a folder a thousand downloads.

The columns of v0 were read from its sample file, those of v1 from the authors' description; what a ``file_path`` looks
like could not be seen. Every caption is a record, of its own kind (short, dense, main object, ...). The paper holds
6,000 captions out, at random, and does not publish which: here they are those of one clip in 330, about 1,000 clips of
the largest release, chosen by a hash of the clip's name. It trains on clips under a minute; no clip is left out here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from blip3v.data.readers.annotations import Record, annotation_file, check_split, csv_records
from blip3v.data.readers.captions import DENSE_QUESTION, SHORT_QUESTION
from blip3v.data.readers.videos import Videos
from blip3v.data.records import About, ClipSample, Found, Turn
from blip3v.errors import ConfigError

__all__ = ["MiraData"]

_FILES = (*(f"miradata_v1_{size}.csv" for size in ("330k", "93k", "42k", "9k")), "miradata_v0.csv")
_CLIPS_PER_HELD_OUT = 330
_DOWNLOADS_PER_FOLDER = 1000
# kind -> column and question
_CAPTIONS = {
    "short": ("short_caption", SHORT_QUESTION),
    "dense": ("dense_caption", DENSE_QUESTION),
    "main object": ("main_object_caption", "Describe the main object of the video and what it does."),
    "background": ("background_caption", "Describe the background of the video."),
    "style": ("style_caption", "Describe the visual style of the video."),
    "camera": ("camera_caption", "Describe how the camera moves in the video."),
}


class MiraData:
    """MiraData."""

    name = "miradata"
    splits: tuple[str, ...] = ("train", "test")
    about = About(
        title="MiraData",
        authors="Ju et al., https://github.com/mira-space/MiraData and https://huggingface.co/datasets/TencentARC/"
        "MiraData",
        licence="GPL-3.0 for v1, for informational purposes only and not commercially; v0 grants no licence; the "
        "videos remain their owners'",
        layout=(f"{' or '.join(_FILES)}", "the clips as the authors' download_data.py writes them"),
    )

    def read(self, root: Path, split: str) -> Found:
        """See ``DataSet``."""
        check_split(self, split)
        path = annotation_file(self, root, split, *_FILES)
        videos = Videos(root, "", "miradata", "clip_video", "miradata/clip_video")
        samples: list[ClipSample] = []
        for record in csv_records(path):
            name, place = _clip(record)
            if _is_held_out(name) == (split == "test"):
                samples += _samples(record, name, place, videos)
        return Found(samples=tuple(samples), missing=videos.missing)


def _samples(record: Record, name: str, place: str, videos: Videos) -> Iterator[ClipSample]:
    captions = {kind: record.text(column, empty=True) for kind, (column, _) in _CAPTIONS.items()}
    given = {kind: caption for kind, caption in captions.items() if caption}  # some clips lack one of a kind
    video = videos.find(place, record, num_records=len(given))
    if video is not None:
        for kind, caption in given.items():
            turn = Turn(_CAPTIONS[kind][1], caption)
            yield ClipSample(video, (turn,), key=f"{name}-{kind.replace(' ', '-')}", kind=kind)


def _clip(record: Record) -> tuple[str, str]:
    """Name and place of a clip."""
    if "clip_id" in record.values:
        return record.text("clip_id"), record.text("file_path").removeprefix("./")
    name = record.text("index")
    number = name.partition("_")[0]
    if not number.isdecimal():
        raise ConfigError(
            f"{record.where}: index is {name!r}; a name such as 000000008783_AJp_ANXoGoM-000114 is expected"
        )
    return name, f"{int(number) // _DOWNLOADS_PER_FOLDER:09}/{name}"


def _is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % _CLIPS_PER_HELD_OUT == 0
