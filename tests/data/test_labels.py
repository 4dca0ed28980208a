"""Labels of patches, objects and motions agree with what is drawn and how the objects move."""

from __future__ import annotations

import numpy as np

from blip3v.data.film import COLOURS, SHAPES, Film, make_film
from blip3v.data.labels import (
    IGNORE_INDEX,
    NUM_WORDS,
    OBJECTS_PER_FRAME,
    motion_labels,
    num_motion_words,
    object_labels,
    patch_labels,
)
from blip3v.data.motion import DIRECTIONS
from blip3v.data.render import render

HEIGHT, WIDTH = 360, 480
TIMES = np.arange(8) / 8
FILMS = [make_film(seed, "train") for seed in range(60)]


def drawn_colour(film: Film, time: float, x: float, y: float) -> int:
    """Index of the colour nearest to the pixel at (x, y), in halves of the frame."""
    (frame,) = render(film, np.array([time]), HEIGHT, WIDTH)
    pixel = frame[int((y + 1) / 2 * HEIGHT), int((x + 1) / 2 * WIDTH)].astype(int)
    return int(np.abs(np.array(list(COLOURS.values())) - pixel).sum(axis=1).argmin())


def test_a_patch_shows_what_is_drawn_in_its_middle() -> None:
    """The drawn colour of each covered patch is the colour of its label; the others show the dim background."""
    for film in FILMS:
        labels = patch_labels(film, 0.5, 8)
        assert (labels.words_NA < (*NUM_WORDS, 8, 8)).all()
        np.testing.assert_array_equal(labels.words_NA[:, 3] * 8 + labels.words_NA[:, 4], np.arange(64))
        (frame,) = render(film, np.array([0.5]), HEIGHT, WIDTH)
        middles = frame[22::45, 30::60].reshape(64, 3)
        for row, place, colour in zip(labels.words_NA, labels.place_N2, middles, strict=True):
            assert np.isnan(place).all() == (row[0] == 0)
            item = next((i for i in film.objects if row[0] == 1 + list(COLOURS).index(i.colour)), None)
            # The other shapes do not fill their circle.
            if item is not None and item.shape == "circle":
                assert np.abs(list(COLOURS.values())[row[0] - 1] - colour.astype(int)).max() < 30


def test_an_object_is_drawn_where_its_label_says() -> None:
    for film in FILMS[:20]:
        labels = object_labels(film, TIMES)
        assert labels.words_NA.shape == (8 * OBJECTS_PER_FRAME, 3)
        for n, (words, place) in enumerate(zip(labels.words_NA, labels.place_N2, strict=True)):
            assert drawn_colour(film, TIMES[n // OBJECTS_PER_FRAME], *place) == words[0] - 1
            item = next(i for i in film.objects if i.colour == list(COLOURS)[words[0] - 1])
            assert list(SHAPES)[words[1] - 1] == item.shape


def test_the_object_of_the_earlier_colour_comes_first_and_one_alone_appears_twice() -> None:
    alone = 0
    for film in FILMS:
        words = object_labels(film, TIMES).words_NA.reshape(8, OBJECTS_PER_FRAME, 3)
        for time, (first, second) in zip(TIMES, words, strict=True):
            in_view = sum(item.visible(time) for item in film.objects)
            assert (first[0] < second[0]) == (in_view == 2)
            alone += in_view == 1
    assert alone > 20


def test_a_motion_is_the_displacement_since_the_object_came_into_view() -> None:
    """Directions agree with the drawn displacements between two frames on one leg."""
    units = np.array([(0.0, 0.0), (0.0, 0.0), *DIRECTIONS.values()])
    checked = 0
    for film in FILMS:
        objects, motions = object_labels(film, TIMES), motion_labels(film, TIMES)
        assert (motions.words_NA < num_motion_words(8)).all()
        entered: dict[int, int] = {}
        for n in range(8 * OBJECTS_PER_FRAME):
            frame, colour = n // OBJECTS_PER_FRAME, int(objects.words_NA[n, 0])
            first = entered.setdefault(colour, frame)
            now, at_first, _, came = motions.words_NA[n]
            assert came == first
            assert (now == 0) == (at_first == 0) == (frame == first)
            start = next(m for m in range(n + 1) if objects.words_NA[m, 0] == colour)
            np.testing.assert_allclose(motions.place_N2[n], objects.place_N2[n] - objects.place_N2[start], atol=1e-5)
            item = next(i for i in film.objects if i.colour == list(COLOURS)[colour - 1])
            inside = item.path.times[0] <= TIMES[frame - 1] and TIMES[frame] <= item.path.times[-1]
            if now > 1 and item.path.kind == "straight" and inside and objects.words_NA[n - 2, 0] == colour:
                way = (objects.place_N2[n] - objects.place_N2[n - OBJECTS_PER_FRAME]) * (4 / 3, 1)
                np.testing.assert_allclose(way / np.linalg.norm(way), units[now], atol=1e-4)
                checked += 1
    assert checked > 100


def test_the_last_frame_knows_how_often_an_object_has_turned() -> None:
    seen = set()
    for film in FILMS:
        objects, motions = object_labels(film, TIMES), motion_labels(film, TIMES)
        for item in film.objects:
            (places,) = np.nonzero(objects.words_NA[:, 0] == 1 + list(COLOURS).index(item.colour))
            if places[-1] // OBJECTS_PER_FRAME == 7 and item.path.kind in ("turn", "bounce"):
                assert motions.words_NA[places[-1], 2] == len(item.path.legs) - 1
                seen.add(len(item.path.legs) - 1)
    assert seen == {1, 2, 3}


def test_a_frame_without_objects_has_no_labels() -> None:
    film = next(f for f in FILMS if f.family == "appear" and not any(i.visible(0.0) for i in f.objects[:1]))
    hidden = next(i for i in film.objects if not i.visible(0.0))
    alone = Film(**{**vars(film), "objects": (hidden, hidden)})
    labels, motions = object_labels(alone, TIMES[:1]), motion_labels(alone, TIMES[:1])
    assert not labels.words_NA.any()
    assert np.isnan(labels.place_N2).all()
    assert (motions.words_NA == IGNORE_INDEX).all()
