"""What the caption data sets share: the questions that their captions answer, and one clip with several annotators.

The data sets publish captions without questions. The short one is asked in the words of the paper's figures; the words
of its other caption questions are not published, so those are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from blip3v.data.records import ClipSample, Turn

__all__ = ["DENSE_QUESTION", "SHORT_QUESTION", "caption_samples", "num_samples"]

SHORT_QUESTION = "What's in the video?"
DENSE_QUESTION = "Describe the video in detail."


def caption_samples(video: Path, captions: Sequence[str], *, key: str, split: str) -> Iterator[ClipSample]:
    """The samples of a clip that several annotators have described.

    Args:
        video: the clip.
        captions: at least one.
        key: the clip's name.
        split: in ``train`` every caption is a sample, named KEY-0, KEY-1, ...; elsewhere the clip is one, whose
            references are all captions.
    """
    if split != "train":
        yield ClipSample(video, (Turn(SHORT_QUESTION, captions[0]),), key=key, references=tuple(captions))
        return
    for index, caption in enumerate(captions):
        yield ClipSample(video, (Turn(SHORT_QUESTION, caption),), key=f"{key}-{index}")


def num_samples(captions: Sequence[str], split: str) -> int:
    """How many samples ``caption_samples`` yields for a clip."""
    return len(captions) if split == "train" else 1
