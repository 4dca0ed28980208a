"""Exact match on held-out questions, next to what can be scored without seeing the film.

An answer is right if its text, stripped, is the true one. Two baselines are computed from the films of the split
``train``: the commonest answer to each kind of question, and the blind score, which gives each question the commonest
answer to the same wording and is therefore the best that any model without the film could learn from these films.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from blip3v.data.film import Film, make_film
from blip3v.data.questions import KINDS, TIME_KINDS, Question, questions, test_questions

__all__ = ["Answerer", "KindScore", "Report", "evaluate", "is_right"]


class Answerer(Protocol):
    """Something that answers questions about films."""

    def answer(self, film: Film, questions: Sequence[Question]) -> list[str]:
        """Returns one answer per question."""


@dataclass(frozen=True)
class KindScore:
    """Scores of one kind, as shares in [0, 1]."""

    kind: str
    num_questions: int
    exact_match: float
    commonest: float
    blind: float


@dataclass(frozen=True)
class Report:
    """The result of an evaluation. All scores are shares in [0, 1]."""

    num_questions: int
    exact_match: float
    exact_match_time: float  # on the kinds that need time
    exact_match_unseen: float  # on films with a pair of colour and shape that never occurs in training
    commonest: float
    blind: float
    kinds: tuple[KindScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON, with shares rounded to four digits."""

        def plain(value: object) -> object:
            if isinstance(value, float):
                return round(value, 4)
            if isinstance(value, tuple):
                return [plain(vars(item)) for item in value]
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            return value

        return {key: plain(value) for key, value in vars(self).items()}


@dataclass(frozen=True)
class _Outcome:
    question: Question
    unseen: bool
    right: bool
    commonest: bool
    blind: bool


def evaluate(
    answerer: Answerer,
    *,
    num_questions: int = 2000,
    num_train_films: int = 20000,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Scores an answerer on the held-out questions.

    Args:
        answerer: what is evaluated.
        num_questions: how many, from the start of the held-out set.
        num_train_films: films that the two baselines learn from.
        progress: called with (questions done, questions in total).
    """
    by_film: dict[int, tuple[Film, list[Question]]] = {}
    for film, question in test_questions(num_questions):
        by_film.setdefault(film.seed, (film, []))[1].append(question)
    blind = _Blind(num_train_films)
    outcomes: list[_Outcome] = []
    for film, film_questions in by_film.values():
        texts = answerer.answer(film, film_questions)
        for question, text in zip(film_questions, texts, strict=True):
            outcomes.append(
                _Outcome(
                    question,
                    film.unseen,
                    is_right(question, text),
                    blind.commonest(question) == question.answer,
                    blind.answer(question) == question.answer,
                )
            )
        if progress is not None:
            progress(len(outcomes), num_questions)
    return _report(outcomes)


def is_right(question: Question, text: str) -> bool:
    """Whether an answer, stripped, is the true one."""
    return text.strip() == question.answer


class _Blind:
    """Counts the answers of the training films by kind and by wording."""

    def __init__(self, num_films: int) -> None:
        self._by_kind: dict[str, Counter[str]] = defaultdict(Counter)
        self._by_text: dict[str, Counter[str]] = defaultdict(Counter)
        for seed in range(num_films):
            for question in questions(make_film(seed, "train")):
                self._by_kind[question.kind][question.answer] += 1
                self._by_text[question.text][question.answer] += 1

    def commonest(self, question: Question) -> str:
        return self._by_kind[question.kind].most_common(1)[0][0]

    def answer(self, question: Question) -> str:
        seen = self._by_text.get(question.text)
        return seen.most_common(1)[0][0] if seen else self.commonest(question)


def _report(outcomes: Sequence[_Outcome]) -> Report:
    kinds = []
    for kind in KINDS:
        of_kind = [outcome for outcome in outcomes if outcome.question.kind == kind]
        if of_kind:
            right, commonest = _share(o.right for o in of_kind), _share(o.commonest for o in of_kind)
            kinds.append(KindScore(kind, len(of_kind), right, commonest, _share(o.blind for o in of_kind)))
    return Report(
        num_questions=len(outcomes),
        exact_match=_share(outcome.right for outcome in outcomes),
        exact_match_time=_share(o.right for o in outcomes if o.question.kind in TIME_KINDS),
        exact_match_unseen=_share(o.right for o in outcomes if o.unseen),
        commonest=_share(outcome.commonest for outcome in outcomes),
        blind=_share(outcome.blind for outcome in outcomes),
        kinds=tuple(kinds),
    )


def _share(values: Iterable[bool]) -> float:
    flags = list(values)
    return sum(flags) / len(flags) if flags else 0.0
