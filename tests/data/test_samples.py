"""Training samples: repeatable, true of the film, and never from a held-out film."""

from __future__ import annotations

import numpy as np
import pytest

from blip3v.data.film import make_film
from blip3v.data.questions import questions
from blip3v.data.samples import FilmSource, FilmTask

TASKS: tuple[FilmTask, ...] = ("image-captions", "video-captions", "instructions")


def source(task: FilmTask) -> FilmSource:
    return FilmSource(task, 50, 1 if task == "image-captions" else 8, 4, seed=3)


@pytest.mark.parametrize("task", TASKS)
def test_frames_and_pairs_follow_from_index_and_visit(task: FilmTask) -> None:
    one, other = source(task), source(task)
    for index in (7, 0, 31):
        assert one.pairs(index, 2) == other.pairs(index, 2)
        for a, b in zip(one.frames(index, 2), other.frames(index, 2), strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(one.pairs(index, 0) != one.pairs(index, 1) for index in range(10)) == (task != "video-captions")


def test_every_sampled_question_has_its_true_answer() -> None:
    for index in range(50):
        known = {(q.text, q.answer) for q in questions(make_film(index, "train"))}
        pairs = source("instructions").pairs(index, 0)
        assert pairs
        assert {(pair.question, pair.answer) for pair in pairs} <= known
