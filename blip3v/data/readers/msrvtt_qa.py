"""MSRVTT-QA, the form of which ``one_word_qa.py`` describes.

MSR-VTT's own archives hold the videos in ``TrainValVideo/`` and ``TestVideo/``; they are found there too.
"""

from __future__ import annotations

from blip3v.data.readers.one_word_qa import OneWordQa
from blip3v.data.records import About

__all__ = ["MSRVTT_QA"]

MSRVTT_QA = OneWordQa(
    "msrvtt-qa",
    About(
        title="MSRVTT-QA",
        authors="Xu et al., https://github.com/xudejing/video-question-answering (the videos: MSR-VTT of Microsoft "
        "Research)",
        licence="the repository states none for the annotations; the videos are YouTube clips and remain their owners'",
        layout=("{split}_qa.json", "video/video<number>.mp4 (or TrainValVideo/ and TestVideo/)"),
    ),
    prefix="video",
    folders=("video", "videos", "TrainValVideo", "TestVideo", ""),
)
