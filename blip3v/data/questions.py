"""Questions about a film with their true answers: open, or with five lettered options.

A question never names what it asks for, and each kind's answers are evenly spread for every wording, so that a model
that does not look at the film cannot do well. Kinds in ``TIME_KINDS`` cannot be answered from one frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blip3v.data.film import COLOURS, MOMENTS, SHAPES, SIZES, Film, FilmObject, generator, make_film
from blip3v.data.motion import DIRECTIONS, TURNS

__all__ = [
    "ANSWERS",
    "KINDS",
    "TIME_KINDS",
    "MultipleChoice",
    "Question",
    "multiple_choice",
    "questions",
    "test_questions",
]

KINDS: tuple[str, ...] = (
    "colour", "shape", "size", "direction", "turn", "bounces", "order", "appear", "disappear", "when", "speed",
)  # fmt: skip
TIME_KINDS: tuple[str, ...] = KINDS[3:]

_COUNTS = ("never", "once", "twice", "three times")
_OBJECTS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
ANSWERS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": tuple(SHAPES),
    "size": tuple(SIZES),
    "direction": (*DIRECTIONS, "it does not move"),
    "turn": tuple(f"{first} then {second}" for first, second in TURNS),
    "bounces": _COUNTS,
    "order": _OBJECTS,
    "appear": _OBJECTS,
    "disappear": _OBJECTS,
    "when": tuple(MOMENTS),
    "speed": _OBJECTS,
}
# Options that are never correct, for kinds with fewer than five answers.
_FILLERS: dict[str, tuple[str, ...]] = {
    "size": ("it changes its size", "larger than the frame", "it cannot be seen"),
    "bounces": ("ten times",),
    "when": ("never", "more than once"),
}
_WORDINGS: dict[str, tuple[str, ...]] = {
    "colour": ("What colour is the {}?", "Which colour does the {} have?", "What is the colour of the {}?"),
    "shape": (
        "What shape is the {} object?",
        "Which shape does the {} object have?",
        "What is the shape of the {} object?",
    ),
    "size": ("How large is the {}?", "What size is the {}?", "Is the {} small or large?"),
    "direction": ("Which way does the {} move?", "In which direction does the {} move?", "Where does the {} go?"),
    "turn": ("Which way does the {} turn?", "How does the {} turn?", "Which two ways does the {} move, in order?"),
    "bounces": ("How many times does the {} bounce?", "How often does the {} bounce?"),
    "first": ("Which object moves first?", "Which object starts to move first?", "What moves first?"),
    "last": ("Which object moves last?", "Which object is the last to move?", "What moves last?"),
    "appear": ("Which object appears?", "Which object comes into view?", "What appears?"),
    "disappear": ("Which object disappears?", "Which object goes out of view?", "What disappears?"),
    "when appear": ("When does the {} appear?", "At what point does the {} appear?"),
    "when disappear": ("When does the {} disappear?", "At what point does the {} disappear?"),
    "faster": ("Which object is faster?", "Which object moves faster?"),
    "slower": ("Which object is slower?", "Which object moves slower?"),
}
_WORDING_PURPOSE = 1
_QUESTIONS_PER_FILM = 4


@dataclass(frozen=True)
class Question:
    """A question with its true answer.

    Attributes:
        kind: one of ``KINDS``.
        text: the question.
        answer: the true answer, one of ``ANSWERS[kind]``.
        needs_time: whether no single frame can answer it.
        rival: if the answer is an object, the film's other object: the most tempting wrong option.
    """

    kind: str
    text: str
    answer: str
    needs_time: bool
    rival: str | None = None


@dataclass(frozen=True)
class MultipleChoice:
    """A question with options: ``text`` is the question and five lettered lines, ``answer`` the letter."""

    text: str
    answer: str


def questions(film: Film) -> tuple[Question, ...]:
    """All questions that ``film`` allows; the film's seed determines their wordings."""
    collector = _Collector(film)
    for item in film.objects:
        collector.add("colour", item.colour, about=item.shape)
        collector.add("shape", item.shape, about=item.colour)
        collector.add("size", item.size, about=item.name)
        _motion_questions(collector, film, item)
    _event_questions(collector, film)
    return tuple(collector.questions)


def multiple_choice(question: Question, seed: int) -> MultipleChoice:
    """``question`` with five options of its kind, one of them correct, in an order determined by ``seed``.

    If the options are objects, the film's other object is one of them, and no two share a colour or a shape, so that
    the options alone do not reveal which two are in the film.
    """
    rng = np.random.default_rng(seed)
    if question.rival is not None:
        options = _object_options(rng, question.answer, question.rival)
    else:
        others = [answer for answer in ANSWERS[question.kind] if answer != question.answer]
        rng.shuffle(others)
        options = [question.answer, *others, *_FILLERS.get(question.kind, ())][:5]
    rng.shuffle(options)
    lines = [f"{letter}. {option}" for letter, option in zip("ABCDE", options, strict=True)]
    return MultipleChoice("\n".join([question.text, *lines]), "ABCDE"[options.index(question.answer)])


def test_questions(num: int = 2000) -> list[tuple[Film, Question]]:  # noqa: PT028, not a pytest test
    """The held-out set: four questions about each film of ``test`` with the seeds 0, 1, 2, ...

    Each film contributes the questions whose kinds are rarest so far, so that kinds are as even as the films allow.
    A quarter of the films contains an unseen pair of colour and shape.

    Args:
        num: number of questions; every longer list starts with the same ones.
    """
    chosen: list[tuple[Film, Question]] = []
    counts: Counter[str] = Counter()
    seed = 0
    while len(chosen) < num:
        film = make_film(seed, "test")
        candidates = list(questions(film))
        generator(seed, "test", _WORDING_PURPOSE + 1).shuffle(candidates)
        for _ in range(min(_QUESTIONS_PER_FILM, num - len(chosen))):
            pick = min(candidates, key=lambda question: counts[question.kind])
            candidates.remove(pick)
            counts[pick.kind] += 1
            chosen.append((film, pick))
        seed += 1
    return chosen


# Without this, pytest would collect the function as a test wherever it is imported.
test_questions.__test__ = False  # type: ignore[attr-defined]


class _Collector:
    """Collects questions and draws their wordings."""

    def __init__(self, film: Film) -> None:
        self._rng = generator(film.seed, film.split, _WORDING_PURPOSE)
        self.questions: list[Question] = []

    def add(self, kind: str, answer: str, *, about: str = "", wording: str = "", rival: str | None = None) -> None:
        wordings = _WORDINGS[wording or kind]
        text = wordings[self._rng.integers(len(wordings))].format(about)
        self.questions.append(Question(kind, text, answer, kind in TIME_KINDS, rival))


def _motion_questions(collector: _Collector, film: Film, item: FilmObject) -> None:
    path = item.path
    if film.family == "bounce":
        collector.add(
            "bounces", _COUNTS[max(0, len(path.legs) - 1)] if path.kind == "bounce" else "never", about=item.name
        )
    if path.kind == "turn":
        collector.add("turn", " then ".join(path.legs), about=item.name)
    # The only question about an object that comes or goes is about that: it may be in view in a single frame.
    elif path.kind != "bounce" and item.appears is None and item.disappears is None:
        collector.add("direction", path.legs[0] if path.legs else "it does not move", about=item.name)


def _event_questions(collector: _Collector, film: Film) -> None:
    if film.family in ("order", "speed"):
        lead, other = _leading(film)
        for kind, wordings in (("order", ("first", "last")), ("speed", ("faster", "slower"))):
            if film.family == kind:
                collector.add(kind, lead.name, wording=wordings[0], rival=other.name)
                collector.add(kind, other.name, wording=wordings[1], rival=lead.name)
    for item, other in zip(film.objects, reversed(film.objects), strict=True):
        for kind, time in (("appear", item.appears), ("disappear", item.disappears)):
            if time is not None:
                collector.add(kind, item.name, rival=other.name)
                collector.add("when", _moment(time), about=item.name, wording=f"when {kind}")


def _leading(film: Film) -> tuple[FilmObject, FilmObject]:
    """The object that moves first (family ``order``) or faster (family ``speed``), then the other one."""
    key: Callable[[FilmObject], float] = _start if film.family == "order" else _slowness
    first, second = sorted(film.objects, key=key)
    return first, second


def _start(item: FilmObject) -> float:
    return item.path.times[0]


def _slowness(item: FilmObject) -> float:
    from_xy, to_xy = np.array(item.path.points[0]), np.array(item.path.points[-1])
    return -float(np.linalg.norm(to_xy - from_xy))


def _moment(time: float) -> str:
    return next(name for name, (low, high) in MOMENTS.items() if low <= time <= high)


def _object_options(rng: np.random.Generator, answer: str, rival: str) -> list[str]:
    options = [answer, rival]
    used = {word for option in options for word in option.split()}
    colours = [colour for colour in COLOURS if colour not in used]
    shapes = [shape for shape in SHAPES if shape not in used]
    rng.shuffle(colours)
    rng.shuffle(shapes)
    return options + [f"{colour} {shape}" for colour, shape in zip(colours[:3], shapes[:3], strict=True)]
