"""From predictions to scores with their intervals. Needs no model; the judge is asked by the caller (``judge.py``).

Shares are in [0, 1], the judge's score in [0, 5], CIDEr in [0, 10], BLEU-4 in [0, 100]. A question without a prediction
is in none of them; an answer that names no option of a choice is wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from blip3v.evaluation.benchmark.captions import caption_scores
from blip3v.evaluation.benchmark.intervals import bootstrap_interval, wilson_interval
from blip3v.evaluation.benchmark.judge import Judged, Judgement, Verdict
from blip3v.evaluation.benchmark.predictions import Prediction
from blip3v.evaluation.benchmark.results import Score
from blip3v.evaluation.benchmark.text_match import is_exact, is_normalized

__all__ = ["caption_score_list", "choice_scores", "judge_scores", "judged_of", "match_scores", "scored"]


def scored(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Those that have a prediction."""
    return [one for one in predictions if one.prediction is not None]


def judged_of(predictions: Sequence[Prediction]) -> list[Judged]:
    """What a judge is asked: each prediction against the first of its references."""
    return [Judged(one.question, one.references[0], one.prediction or "") for one in predictions]


def match_scores(predictions: Sequence[Prediction]) -> list[Score]:
    """Exact and normalised match with any reference, and the latter by kind."""
    exact = [is_exact(one.prediction or "", one.references) for one in predictions]
    near = [is_normalized(one.prediction or "", one.references) for one in predictions]
    return [
        _share("exact match", exact),
        _share("normalised match", near),
        *_by_kind("normalised match", near, [one.kind for one in predictions]),
    ]


def caption_score_list(predictions: Sequence[Prediction]) -> tuple[list[Score], dict[str, str]]:
    """CIDEr, BLEU-4 and ROUGE-L, and how they were computed."""
    if not predictions:
        return [_mean("CIDEr", []), Score(name="BLEU-4", value=None, num=0), _mean("ROUGE-L", [])], {}
    scores = caption_scores([one.prediction or "" for one in predictions], [one.references for one in predictions])
    # BLEU is of the whole set and no mean, so it has no interval.
    bleu = Score(name="BLEU-4", value=scores.bleu4, num=len(predictions))
    return [_mean("CIDEr", scores.cider), bleu, _mean("ROUGE-L", scores.rouge_l)], scores.settings


def choice_scores(predictions: Sequence[Prediction]) -> list[Score]:
    """Accuracy, and by the first letter of the kind: causal, temporal and descriptive questions of NExT-QA."""
    right = list(map(_is_right, predictions))
    named = [one.chosen is not None for one in predictions]
    return [
        _share("accuracy", right),
        *_by_kind("accuracy", right, [one.kind[:1] for one in predictions]),
        _share("answers that name an option", named),
    ]


def judge_scores(predictions: Sequence[Prediction], judgement: Judgement) -> list[Score]:
    """Accuracy and mean score of the verdicts that could be read, and accuracy by kind."""
    read: list[tuple[Prediction, Verdict]] = [
        (one, verdict) for one, verdict in zip(predictions, judgement.verdicts, strict=True) if verdict is not None
    ]
    right = [verdict.is_right for _, verdict in read]
    return [
        _share("judge accuracy", right),
        _mean("judge score", [verdict.score for _, verdict in read]),
        *_by_kind("judge accuracy", right, [one.kind for one, _ in read]),
    ]


def _is_right(one: Prediction) -> bool:
    """Whether the chosen option is the right one. If two options have the same text, both are."""
    return one.chosen is not None and one.options[one.chosen] == one.references[0]


def _share(name: str, flags: Sequence[bool], kind: str = "") -> Score:
    if not flags:
        return Score(name=name, kind=kind, value=None, num=0)
    low, high = wilson_interval(sum(flags), len(flags))
    return Score(name=name, kind=kind, value=sum(flags) / len(flags), low=low, high=high, num=len(flags))


def _mean(name: str, values: Sequence[float]) -> Score:
    if not values:
        return Score(name=name, value=None, num=0)
    low, high = bootstrap_interval(values)
    return Score(name=name, value=sum(values) / len(values), low=low, high=high, num=len(values))


def _by_kind(name: str, flags: Sequence[bool], kinds: Sequence[str]) -> list[Score]:
    """A share for each kind, if there are several."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for flag, kind in zip(flags, kinds, strict=True):
        by_kind[kind].append(flag)
    return [_share(name, by_kind[kind], kind or "other") for kind in sorted(by_kind)] if len(by_kind) > 1 else []
