"""From predictions to scores with their intervals. Needs no model; the judge is asked by the caller (``judge.py``).

Shares are in [0, 1], the judge's score in [0, 5], CIDEr in [0, 10], BLEU-4 in [0, 100]. A question without a prediction
is in none of them; an answer that names no option of a choice is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blip3v.evaluation.benchmark.captions import caption_scores
from blip3v.evaluation.benchmark.intervals import bootstrap_interval, wilson_interval
from blip3v.evaluation.benchmark.judge import Judged, Judgement
from blip3v.evaluation.benchmark.predictions import Prediction
from blip3v.evaluation.benchmark.results import Score
from blip3v.evaluation.benchmark.text_match import is_exact, is_normalized

__all__ = ["Measured", "judge_scores", "judged_of", "measure", "scored"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A score and what it is made of.

    Attributes:
        score: over all predictions that it counts.
        values: one for each prediction, None where the score does not count it; empty: the score is of the set alone.
        is_share: whether the values are 0 and 1.
    """

    score: Score
    values: tuple[float | None, ...]
    is_share: bool


def scored(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Those that have a prediction."""
    return [one for one in predictions if one.prediction is not None]


def judged_of(predictions: Sequence[Prediction]) -> list[Judged]:
    """What a judge is asked: each prediction against the first of its references."""
    return [Judged(one.question, one.references[0], one.prediction or "") for one in predictions]


def measure(form: str, predictions: Sequence[Prediction]) -> tuple[list[Measured], dict[str, str]]:
    """All scores that need no judge, and how they were computed where that can differ.

    Args:
        form: of the benchmark (``tasks.Form``).
        predictions: all of them with a text.
    """
    if form == "choice":
        return _choice_scores(predictions), {}
    return _caption_scores(predictions) if form == "caption" else (_match_scores(predictions), {})


def judge_scores(predictions: Sequence[Prediction], judgement: Judgement) -> list[Measured]:
    """Accuracy and mean score of the verdicts that could be read, and accuracy by kind.

    Args:
        predictions: all of them with a text.
        judgement: a verdict for each.
    """
    right = [None if verdict is None else verdict.is_right for verdict in judgement.verdicts]
    return [
        _share("judge accuracy", right),
        _mean("judge score", [None if verdict is None else verdict.score for verdict in judgement.verdicts]),
        *_by_kind("judge accuracy", right, [one.kind for one in predictions]),
    ]


def _match_scores(predictions: Sequence[Prediction]) -> list[Measured]:
    """Exact and normalised match with any reference, and the latter by kind."""
    exact = [is_exact(one.prediction or "", one.references) for one in predictions]
    near = [is_normalized(one.prediction or "", one.references) for one in predictions]
    return [
        _share("exact match", exact),
        _share("normalised match", near),
        *_by_kind("normalised match", near, [one.kind for one in predictions]),
    ]


def _caption_scores(predictions: Sequence[Prediction]) -> tuple[list[Measured], dict[str, str]]:
    """CIDEr, BLEU-4 and ROUGE-L."""
    if not predictions:
        return [_mean("CIDEr", []), _of_set("BLEU-4", None, 0), _mean("ROUGE-L", [])], {}
    scores = caption_scores([one.prediction or "" for one in predictions], [one.references for one in predictions])
    bleu = _of_set("BLEU-4", scores.bleu4, len(predictions))
    return [_mean("CIDEr", scores.cider), bleu, _mean("ROUGE-L", scores.rouge_l)], scores.settings


def _choice_scores(predictions: Sequence[Prediction]) -> list[Measured]:
    """Accuracy, and by the first letter of the kind: causal, temporal and descriptive questions of NExT-QA."""
    right = list(map(_is_right, predictions))
    named = [one.chosen is not None for one in predictions]
    return [
        _share("accuracy", right),
        *_by_kind("accuracy", right, [one.kind[:1] for one in predictions]),
        _share("answers that name an option", named),
    ]


def _is_right(one: Prediction) -> bool:
    """Whether the chosen option is the right one. If two options have the same text, both are."""
    return one.chosen is not None and one.options[one.chosen] == one.references[0]


def _share(name: str, flags: Sequence[bool | None], kind: str = "") -> Measured:
    known = [flag for flag in flags if flag is not None]
    score = Score(name=name, kind=kind, value=None, num=0)
    if known:
        low, high = wilson_interval(sum(known), len(known))
        score = Score(name=name, kind=kind, value=sum(known) / len(known), low=low, high=high, num=len(known))
    return Measured(score=score, values=tuple(flags), is_share=True)


def _mean(name: str, values: Sequence[float | None]) -> Measured:
    known = [value for value in values if value is not None]
    score = Score(name=name, value=None, num=0)
    if known:
        low, high = bootstrap_interval(known)
        score = Score(name=name, value=sum(known) / len(known), low=low, high=high, num=len(known))
    return Measured(score=score, values=tuple(values), is_share=False)


def _of_set(name: str, value: float | None, num: int) -> Measured:
    """A score that is no mean, and so has no interval."""
    return Measured(score=Score(name=name, value=value, num=num), values=(), is_share=False)


def _by_kind(name: str, flags: Sequence[bool | None], kinds: Sequence[str]) -> list[Measured]:
    """A share for each kind, if there are several."""
    known = sorted({kind for flag, kind in zip(flags, kinds, strict=True) if flag is not None})
    if len(known) < 2:
        return []
    return [
        _share(name, [flag if each == kind else None for flag, each in zip(flags, kinds, strict=True)], kind or "other")
        for kind in known
    ]
