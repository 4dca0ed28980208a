"""MSVD as captions: English sentences of many annotators about each clip (Chen and Dolan, ACL 2011).

``AllVideoDescriptions.txt``, published beside the clips, has a caption a line after the clip's name, and lines of
comment that start with ``#``. The authors define no split; the one that papers on captions use, and MSVD-QA with them,
takes the clips in the order of ``youtube_mapping.txt``: 1200, 100 and 670. Neither file could be seen; their form is as
several public programs read it.
"""

from __future__ import annotations

from pathlib import Path

from blip3v.data.readers.annotations import Record, annotation_file, check_split, text_lines
from blip3v.data.readers.captions import caption_samples, num_samples
from blip3v.data.readers.msvd_names import NAMES_FILE, read_names
from blip3v.data.readers.videos import Videos
from blip3v.data.records import About, ClipSample, Found
from blip3v.errors import ConfigError

__all__ = ["MsvdCaption"]

_FIRST_VAL, _FIRST_TEST = 1201, 1301  # numbers of clips
_CAPTIONS_FILE = "AllVideoDescriptions.txt"


class MsvdCaption:
    """MSVD-Caption."""

    name = "msvd-caption"
    splits: tuple[str, ...] = ("train", "val", "test")
    about = About(
        title="MSVD-Caption (Microsoft Research Video Description Corpus)",
        authors="Chen and Dolan, https://www.cs.utexas.edu/users/ml/clamp/videoDescription (youtube_mapping.txt: with "
        "MSVD-QA, https://github.com/xudejing/video-question-answering)",
        licence="not confirmed: read the terms on the authors' page; the videos are YouTube clips and remain their "
        "owners'",
        layout=(_CAPTIONS_FILE, NAMES_FILE, "YouTubeClips/<name>.avi (or video/vid<number>.avi)"),
    )

    def read(self, root: Path, split: str) -> Found:
        """See ``DataSet``."""
        check_split(self, split)
        captions = _captions(annotation_file(self, root, split, _CAPTIONS_FILE))
        path = annotation_file(self, root, split, NAMES_FILE)
        videos = Videos(root, "YouTubeClips", "video", "videos", "")
        samples: list[ClipSample] = []
        for number, name in read_names(path).items():
            if _split_of(number) != split:
                continue
            if name not in captions:
                raise ConfigError(f"{path} names the clip {name}, about which {_CAPTIONS_FILE} says nothing")
            num_records = num_samples(captions[name], split)
            video = videos.find(name, Record({}, str(path)), also=number, num_records=num_records)
            if video is not None:
                samples += caption_samples(video, captions[name], key=name, split=split)
        return Found(samples=tuple(samples), missing=videos.missing)


def _captions(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for line, where in text_lines(path):
        if line.startswith("#"):
            continue
        name, _, caption = line.partition(" ")
        if not caption.strip():
            raise ConfigError(f"{where} is {line!r}; a clip's name and a caption are expected")
        captions.setdefault(name, []).append(caption.strip())
    return captions


def _split_of(number: str) -> str:
    at = int(number.removeprefix("vid"))
    return "train" if at < _FIRST_VAL else "val" if at < _FIRST_TEST else "test"
