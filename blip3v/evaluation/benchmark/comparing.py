"""Two models on the same questions: what one of them loses against the other, question by question.

A bundle and the model that it was made from answer nearly alike, so that the intervals of their two scores overlap
whatever the bundle loses. The difference of each question is what is counted here, and its interval is far narrower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import blip3v
from blip3v.errors import UsageError
from blip3v.evaluation.benchmark.intervals import bootstrap_interval
from blip3v.evaluation.benchmark.judge import Judgement
from blip3v.evaluation.benchmark.predictions import Header, Prediction, difference
from blip3v.evaluation.benchmark.results import JudgeRecord, Result
from blip3v.evaluation.benchmark.scoring import Measured, judge_scores, measure
from blip3v.export.accuracy_measures import paired_difference

__all__ = ["Comparison", "Lost", "Outcome", "compare"]

_SCHEMA = 1
_QUESTIONS = ("benchmark", "data_set", "split", "num_samples", "data_digest", "question_prompt", "decoding")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A result, and what its scores are made of."""

    result: Result
    predictions: Sequence[Prediction]  # one for each question, in their order
    judgement: Judgement | None  # of those that have a text; None: nobody was asked


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A score of both models over the same questions, in its own unit, and how much less the model's is."""

    name: str
    kind: str  # of question; empty: all
    num: int  # of questions
    reference: float
    model: float
    lost: float  # reference - model; negative: the model is better
    low: float | None  # 95 % interval of ``lost``; None: it has none
    high: float | None
    num_lost: int | None = None  # questions that the reference alone answers right; None: the score is no share
    num_gained: int | None = None  # that the model alone answers right


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model beside its reference on one benchmark."""

    reference: Header
    model: Header
    num_compared: int  # questions that both have answered
    num_not_compared: int  # that one of them has no answer to
    num_changed: int  # of those compared: another text, or in a choice another option
    scores: tuple[Lost, ...]
    judge: JudgeRecord | None  # of the model's answers; None: without the judge's scores
    blip3v: str
    schema: int = _SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(reference: Outcome, model: Outcome) -> Comparison:
    """Scores both on the questions that both have answered.

    Raises:
        UsageError: they were not asked the same questions of the same data in the same way, or not judged alike.
    """
    _check_questions(reference.result.header, model.result.header)
    _check_judges(reference, model)
    pairs = list(zip(reference.predictions, model.predictions, strict=True))
    common = [at for at, pair in enumerate(pairs) if all(one.prediction is not None for one in pair)]
    theirs = {(one.score.name, one.score.kind): one for one in _measured(reference, common)}
    ours = {(one.score.name, one.score.kind): one for one in _measured(model, common)}
    lost = [_lost(theirs[name], ours[name]) for name in theirs if name in ours]
    return Comparison(
        reference=reference.result.header,
        model=model.result.header,
        num_compared=len(common),
        num_not_compared=len(pairs) - len(common),
        num_changed=sum(_said(pairs[at][0]) != _said(pairs[at][1]) for at in common),
        scores=tuple(one for one in lost if one is not None),
        judge=model.result.judge if model.judgement is not None else None,
        blip3v=blip3v.__version__,
    )


def _check_questions(reference: Header, model: Header) -> None:
    where = (f"for {reference.model}", f"for {model.model}")
    differs = difference(reference, model, _QUESTIONS, where=where)
    if differs:
        raise UsageError(f"only answers to the same questions can be compared, and {differs}")


def _check_judges(reference: Outcome, model: Outcome) -> None:
    """Who answered counts, not who was asked for: a name may stand for another snapshot from one day to the next."""
    judges = [_judge(one) for one in (reference, model)]
    if judges[0] != judges[1]:
        raise UsageError(
            f"the answers of {reference.result.header.model} were judged by {judges[0]}, those of "
            f"{model.result.header.model} by {judges[1]}; verdicts of different judges cannot be compared: have all "
            "judged by one, or compare without a judge"
        )


def _judge(outcome: Outcome) -> str:
    judge = outcome.result.judge
    if outcome.judgement is None or judge is None:
        return "nobody"
    return f"{', '.join(judge.answered_by) or judge.model} with the prompt {judge.prompt} {judge.prompt_digest[:12]}"


def _measured(outcome: Outcome, questions: Sequence[int]) -> list[Measured]:
    """All scores over these questions alone."""
    predictions = [outcome.predictions[at] for at in questions]
    measured, _ = measure(outcome.result.header.form, predictions)
    if outcome.judgement is None:
        return measured
    answered = [at for at, one in enumerate(outcome.predictions) if one.prediction is not None]
    verdicts = dict(zip(answered, outcome.judgement.verdicts, strict=True))
    judgement = Judgement(tuple(verdicts[at] for at in questions), outcome.judgement.models)
    return [*judge_scores(predictions, judgement), *measured]


def _lost(reference: Measured, model: Measured) -> Lost | None:
    """None: no question counts in both."""
    name, kind = reference.score.name, reference.score.kind
    both = [(x, y) for x, y in zip(reference.values, model.values, strict=True) if x is not None and y is not None]
    if not both:
        theirs, ours = reference.score.value, model.score.value
        if theirs is None or ours is None:
            return None
        return Lost(
            name=name,
            kind=kind,
            num=model.score.num,
            reference=theirs,
            model=ours,
            lost=theirs - ours,
            low=None,
            high=None,
        )
    theirs, ours = (sum(values) / len(both) for values in zip(*both, strict=True))
    differences = [x - y for x, y in both]
    num_lost = num_gained = None
    if reference.is_share:
        num_lost, num_gained = sum(x > y for x, y in both), sum(x < y for x, y in both)
        paired = paired_difference(num_lost, num_gained, len(both))
        low, high = paired.low / 100, paired.high / 100
    else:
        low, high = bootstrap_interval(differences)
    return Lost(
        name=name,
        kind=kind,
        num=len(both),
        reference=theirs,
        model=ours,
        lost=sum(differences) / len(both),
        low=low,
        high=high,
        num_lost=num_lost,
        num_gained=num_gained,
    )


def _said(one: Prediction) -> str | int:
    """What counts of an answer: the option of a choice, if it names one, else its text."""
    return one.chosen if one.chosen is not None else (one.prediction or "").strip()
