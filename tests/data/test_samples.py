"""What training sees: the same for the same numbers, true of the film, and never a held-out film."""

from __future__ import annotations

import numpy as np
import pytest

from blip3v.data.captions import track_caption
from blip3v.data.film import COLOURS, make_film
from blip3v.data.patches import num_classes, patch_labels
from blip3v.data.questions import questions
from blip3v.data.render import render
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


def test_every_question_of_the_set_that_is_asked_has_its_true_answer() -> None:
    for index in range(50):
        known = {(q.text, q.answer) for q in questions(make_film(index, "train"))}
        track, *asked = source("instructions").pairs(index, 0)
        assert track.question.startswith("Track the ")
        assert asked
        assert {(pair.question, pair.answer) for pair in asked} <= known


def test_a_track_says_where_an_object_is_and_when_it_is_out_of_view() -> None:
    times = np.linspace(0, 0.99, 8)
    seen_hidden = False
    for seed in range(60):
        for item in make_film(seed, "train").objects:
            for word, time in zip(track_caption(item, times).split(), times, strict=True):
                if word == "--":
                    seen_hidden = True
                    assert not item.visible(float(time))
                    continue
                x, y = item.path.positions([float(time)])[0]
                assert (int(word[0]), int(word[1])) == (int(x * 8 / (4 / 3)), int(y * 8))
    assert seen_hidden


def test_a_patch_shows_what_is_drawn_in_its_middle() -> None:
    """The drawn colour of each covered patch is the colour of its label; the others show the dim ground."""
    for seed in range(60):
        film = make_film(seed, "train")
        labels = patch_labels(film, 0.5, 8)
        assert (labels < num_classes(8)).all()
        np.testing.assert_array_equal(labels[:, 3] * 8 + labels[:, 4], np.arange(64))
        (frame,) = render(film, np.array([0.5]), 360, 480)
        middles = frame[22::45, 30::60].reshape(64, 3)
        colours = np.array(list(COLOURS.values()))
        for row, colour in zip(labels, middles, strict=True):
            item = next((i for i in film.objects if row[0] == 1 + list(COLOURS).index(i.colour)), None)
            # The other shapes leave parts of their circle bare.
            if item is not None and item.shape == "circle":
                assert np.abs(colours[row[0] - 1] - colour.astype(int)).max() < 30
