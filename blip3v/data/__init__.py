"""The synthetic film set, its files, and the reader for users' own clips. Nothing here needs PyTorch."""

from __future__ import annotations

from blip3v.data.authors import read_samples
from blip3v.data.film import Film, make_film
from blip3v.data.mp4 import write_mp4
from blip3v.data.questions import MultipleChoice, Question, multiple_choice, test_questions
from blip3v.data.records import ClipSample

__all__ = [
    "ClipSample",
    "Film",
    "MultipleChoice",
    "Question",
    "make_film",
    "multiple_choice",
    "read_samples",
    "test_questions",
    "write_mp4",
]
