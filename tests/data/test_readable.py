"""Eight frames are enough under every sampling rule: a plain reader of positions finds every true answer.

The reader sees only what a frame shows, where each object is and whether it is visible, never the film's script.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from blip3v.data.film import Film, FilmObject, make_film
from blip3v.data.motion import DIRECTIONS
from blip3v.data.questions import TIME_KINDS, Question, questions

Floats = npt.NDArray[np.float64]
NUM_FRAMES = 8
SMALL = 0.02  # a step below this (1.3 rows of 64) counts as rest
COUNTS = {0: "never", 1: "once", 2: "twice", 3: "three times"}


def samplings(length: int) -> Iterator[Floats]:
    """Frame times under each rule, with every start that the training rule can draw."""
    yield np.linspace(NUM_FRAMES // 2, length - NUM_FRAMES // 2, NUM_FRAMES).astype(int) / length
    yield np.linspace(0, length - 1, NUM_FRAMES).astype(int) / length
    stride = length // NUM_FRAMES
    for start in range(length - (NUM_FRAMES - 1) * stride):
        yield (start + stride * np.arange(NUM_FRAMES)) / length


def seen(item: FilmObject, times: Floats) -> list[bool]:
    return [item.visible(float(time)) for time in times]


def main_axis(step: Floats) -> str:
    axis = int(np.abs(step).argmax())
    return (("left", "right"), ("up", "down"))[axis][int(step[axis] > 0)]


def read_direction(at: Floats) -> str:
    travel = at[-1] - at[0]
    if np.hypot(*travel) < SMALL:
        return "it does not move"
    return max(DIRECTIONS, key=lambda word: float(np.dot(travel, DIRECTIONS[word])))


def read_turn(at: Floats) -> str:
    steps = np.diff(at, axis=0)
    return f"{main_axis(steps[0])} then {main_axis(steps[-1])}"


def read_bounces(at: Floats) -> str:
    steps = np.diff(at, axis=0)
    along = steps[:, np.abs(steps).sum(axis=0).argmax()]
    signs = np.sign(along[np.abs(along) > SMALL])
    return COUNTS[int((signs[1:] != signs[:-1]).sum())]


def read_when(there: list[bool]) -> str:
    """Uses only the index of the first changed frame: no clock is needed."""
    changed = next(number for number, now in enumerate(there) if now != there[0])
    return {1: "early", 2: "early", 3: "halfway", 4: "halfway", 5: "halfway", 6: "late", 7: "late"}[changed]


def first_step(at: Floats) -> int:
    return int(np.flatnonzero(np.hypot(*np.diff(at, axis=0).T) > SMALL)[0])


def read_object(film: Film, question: Question, times: Floats) -> str:
    at = {item.name: item.path.positions(times) for item in film.objects}
    if question.kind in ("appear", "disappear"):
        before, after = (False, True) if question.kind == "appear" else (True, False)
        return next(i.name for i in film.objects if seen(i, times)[0] is before and seen(i, times)[-1] is after)
    if question.kind == "order":
        starts = {name: first_step(path) for name, path in at.items()}
        assert len(set(starts.values())) == 2
        return (max if "last" in question.text else min)(starts, key=lambda name: starts[name])
    travels = {name: np.hypot(*(path[-1] - path[0])) for name, path in at.items()}
    assert min(travels.values()) > 0.1
    assert max(travels.values()) > 1.9 * min(travels.values())
    return (min if "slower" in question.text else max)(travels, key=lambda name: travels[name])


def read(film: Film, question: Question, times: Floats) -> str:
    if question.kind in ("order", "appear", "disappear", "speed"):
        return read_object(film, question, times)
    item = next(item for item in film.objects if item.name in question.text)
    if question.kind == "when":
        return read_when(seen(item, times))
    readers = {"direction": read_direction, "turn": read_turn, "bounces": read_bounces}
    return readers[question.kind](item.path.positions(times))


@pytest.mark.parametrize("kind", TIME_KINDS)
def test_every_answer_can_be_read_from_eight_frames(kind: str, train_films: list[Film]) -> None:
    cases = [(film, q) for film in train_films[:1500] for q in questions(film) if q.kind == kind][:250]
    assert len(cases) >= 200
    for film, question in cases:
        for times in samplings(film.num_frames):
            assert read(film, question, times) == question.answer, (film.seed, question.text, times)


def test_objects_that_come_and_go_are_there_and_not_there() -> None:
    for film in (make_film(seed, "test") for seed in range(300)):
        for item in film.objects:
            for times in samplings(film.num_frames):
                there = seen(item, times)
                assert any(there)
                assert all(there) == (item.appears is None and item.disappears is None)
