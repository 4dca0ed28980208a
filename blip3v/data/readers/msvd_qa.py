"""MSVD-QA, the form of which ``one_word_qa.py`` describes.

Its clips are numbered (``video/vid1.avi``). MSVD's own archive names them by YouTube id instead (``YouTubeClips/``);
they are found there too if ``youtube_mapping.txt`` is present.
"""

from __future__ import annotations

from blip3v.data.readers.one_word_qa import OneWordQa
from blip3v.data.records import About

__all__ = ["MSVD_QA"]

MSVD_QA = OneWordQa(
    "msvd-qa",
    About(
        title="MSVD-QA",
        authors="Xu et al., https://github.com/xudejing/video-question-answering (the videos: MSVD, "
        "https://www.cs.utexas.edu/users/ml/clamp/videoDescription)",
        licence="the repository states none for the annotations; the videos are YouTube clips and remain their owners'",
        layout=("{split}_qa.json", "video/vid<number>.avi (or youtube_mapping.txt and YouTubeClips/<name>.avi)"),
    ),
    prefix="vid",
    folders=("video", "videos", "YouTubeClips", ""),
)
