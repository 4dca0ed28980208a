"""MSRVTT-QA, the form of which ``one_word_qa.py`` describes."""

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
        layout=("{split}_qa.json", "video/video7010.mp4, ..."),
    ),
    prefix="video",
)
