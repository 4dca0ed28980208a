"""Captions agree with the film, and a frame's caption describes only what is in view."""

import dataclasses
import re

from blip3v.data.captions import film_caption, frame_caption
from blip3v.data.film import Film, make_film
from blip3v.data.motion import ASPECT, Path
from blip3v.data.questions import questions

THING = re.compile(r"a (small|large) (\w+) (\w+)")


def test_film_caption_names_both_objects_and_holds_the_answers(train_films: list[Film]) -> None:
    for film in train_films[:800]:
        caption = film_caption(film)
        assert caption.endswith(".")
        named = set(THING.findall(caption))
        assert named == {(item.size, item.colour, item.shape) for item in film.objects}
        for question in questions(film):
            if question.kind == "bounces":
                assert ("bounces " + question.answer in caption) == (question.answer != "never")
            elif question.kind == "turn":
                assert f"moves {question.answer}" in caption or f"bounces once, moving {question.answer}" in caption
            elif question.kind == "direction":
                assert (question.answer if question.answer != "it does not move" else "stays still") in caption
            elif question.kind == "when":
                assert f"appears {question.answer}" in caption
        if film.family == "order":
            first = next(q.answer for q in questions(film) if q.kind == "order" and "last" not in q.text)
            assert first in caption.split(" first, then ")[0]


def test_film_caption_reads_like_this() -> None:
    captions = {film_caption(make_film(seed, "test")) for seed in (5, 234, 98, 5471)}
    assert captions == {
        "a small yellow cross disappears late while a large blue circle moves left.",
        "a small yellow diamond moves up first, then a large white square moves up and left.",
        "a small orange star moves down and right while a large white circle bounces three times, moving down then up.",
        "a small red circle moves up then right while a large blue diamond moves left.",
    }


def test_frame_caption_holds_what_is_in_view_and_where(train_films: list[Film]) -> None:
    for film in train_films[:400]:
        for time in (0.0, 0.33, 0.5, 0.9):
            parts = frame_caption(film, time).removesuffix(".").split(" and ")
            seen = [item for item in film.objects if item.visible(time)]
            assert len(parts) == len(seen)
            for item in seen:
                part = next(part for part in parts if item.name in part)
                x, y = item.path.positions([time])[0]
                assert ("left" in part) == (x < ASPECT / 3)
                assert ("right" in part) == (x >= ASPECT * 2 / 3)
                assert ("top" in part) == (y < 1 / 3)
                assert ("bottom" in part) == (y >= 2 / 3)
                assert ("centre" in part) == (ASPECT / 3 <= x < ASPECT * 2 / 3 and 1 / 3 <= y < 2 / 3)


def test_frame_caption_of_an_empty_frame() -> None:
    film = make_film(0, "train")
    gone = tuple(
        dataclasses.replace(item, appears=0.5, path=Path("still", (), (0.0,), ((0.3, 0.3),))) for item in film.objects
    )
    assert frame_caption(dataclasses.replace(film, objects=gone), 0.2) == "nothing is in view."
