"""The data sets that blip3v reads, each in the layout that its authors publish, by name.

A new reader is one file in this folder with an object that keeps ``DataSet``, and its place in ``_DATA_SETS``.
"""

from __future__ import annotations

import difflib

from blip3v.data.readers.activitynet_qa import ActivityNetQa
from blip3v.data.readers.huggingface import HuggingFace
from blip3v.data.readers.llava_hound import LlavaHound
from blip3v.data.readers.miradata import MiraData
from blip3v.data.readers.msrvtt_caption import MsrvttCaption
from blip3v.data.readers.msrvtt_qa import MSRVTT_QA
from blip3v.data.readers.msvd_caption import MsvdCaption
from blip3v.data.readers.msvd_qa import MSVD_QA
from blip3v.data.readers.nextqa import NextQa, NextQaOpen
from blip3v.data.readers.tgif_qa import TgifQa
from blip3v.data.readers.video_instruct import VideoInstruct
from blip3v.data.records import DataSet
from blip3v.errors import UsageError

__all__ = ["data_set", "data_sets"]

_DATA_SETS: tuple[DataSet, ...] = (
    LlavaHound(),
    MiraData(),
    VideoInstruct(),
    MSVD_QA,
    MSRVTT_QA,
    ActivityNetQa(),
    TgifQa(),
    NextQaOpen(),
    NextQa(),
    MsvdCaption(),
    MsrvttCaption(),
    HuggingFace(),
)


def data_sets() -> dict[str, DataSet]:
    """Every data set by its name, in the order of the paper: captions, instructions, questions, captions to test on."""
    return {known.name: known for known in _DATA_SETS}


def data_set(name: str) -> DataSet:
    """The data set of a name.

    Raises:
        UsageError: there is none of this name; the message says the nearest one, or all.
    """
    known = data_sets()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
    raise UsageError(f"data set {name!r} is unknown; {hint}")
