"""A model beside its reference: the same questions or none, question by question, with the interval of the pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from judge_record import JUDGE

from blip3v.errors import UsageError
from blip3v.evaluation.benchmark.comparing import Lost, Outcome, compare
from blip3v.evaluation.benchmark.judge import Judgement, Verdict
from blip3v.evaluation.benchmark.predictions import Header, Prediction
from blip3v.evaluation.benchmark.run import score
from blip3v.export.accuracy_measures import paired_difference


def header(model: str, form: str = "open", **values) -> Header:
    return Header(
        **{
            "benchmark": "msvd-qa",
            "data_set": "msvd-qa",
            "split": "test",
            "form": form,
            "num_samples": 4,
            "num_available": 4,
            "data_digest": "d",
            "missing": {},
            "model": model,
            "model_kind": "bundle",
            "model_digest": model,
            "num_video_tokens": 32,
            "precision": "fp32",
            "computed": "",
            "question_prompt": "{question}",
            "decoding": {"choose_by": "answer"},
            "versions": {},
            **values,
        }
    )


def prediction(index: int, text: str | None, **values) -> Prediction:
    return Prediction(
        **{
            "index": index,
            "key": "",
            "video": "v.mp4",
            "question": "q",
            "references": ("yes",),
            "options": (),
            "kind": "what" if index % 2 else "who",
            "prediction": text,
            "chosen": None,
            "frames": (0,),
            **values,
        }
    )


def outcome(of: Header, texts: Sequence[str | None], verdicts: Sequence[Verdict | None] | None = None) -> Outcome:
    predictions = [prediction(at, text) for at, text in enumerate(texts)]
    result = score(of, predictions, Path("p.jsonl"))
    if verdicts is None:
        return Outcome(result=result, predictions=predictions, judgement=None)
    record = dataclasses.replace(JUDGE, num_judged=len(verdicts))
    judgement = Judgement(tuple(verdicts), record.answered_by)
    return Outcome(result=dataclasses.replace(result, judge=record), predictions=predictions, judgement=judgement)


def named(scores: Sequence[Lost], name: str, kind: str = "") -> Lost:
    (one,) = [one for one in scores if (one.name, one.kind) == (name, kind)]
    return one


def test_only_what_both_have_answered_counts() -> None:
    """Of five, one is lost, none gained; a broken clip of either is left out of both."""
    texts = ["Yes.", "yes", "no", None, "yes"]
    others = ["yes", "no", "never", "yes", None]
    compared = compare(outcome(header("reference"), texts), outcome(header("model"), others))
    assert (compared.num_compared, compared.num_not_compared, compared.num_changed) == (3, 2, 3)
    near = named(compared.scores, "normalised match")
    assert (near.num, near.num_lost, near.num_gained) == (3, 1, 0)
    assert (near.reference, near.model, near.lost) == pytest.approx((2 / 3, 1 / 3, 1 / 3))
    paired = paired_difference(1, 0, 3)
    assert (near.low, near.high) == pytest.approx((paired.low / 100, paired.high / 100))
    exact = named(compared.scores, "exact match")
    assert (exact.num_lost, exact.num_gained, exact.lost) == (1, 1, 0.0)
    assert named(compared.scores, "normalised match", "what").num == 1
    assert named(compared.scores, "normalised match", "who").num == 2
    assert (compared.reference.model, compared.model.model, compared.judge) == ("reference", "model", None)


def test_white_space_around_an_answer_changes_nothing() -> None:
    compared = compare(outcome(header("one"), ["yes ", "no"]), outcome(header("other"), [" yes", "no"]))
    assert compared.num_changed == 0


def test_the_same_option_in_other_words_is_the_same_answer() -> None:
    def chosen(of: Header, answers: Sequence[tuple[str, int | None]]) -> Outcome:
        options = {"options": ("no", "yes")}
        predictions = [prediction(at, text, chosen=one, **options) for at, (text, one) in enumerate(answers)]
        return Outcome(result=score(of, predictions, Path("p")), predictions=predictions, judgement=None)

    reference = chosen(header("one", "choice"), [("B", 1), ("B. yes", 1), ("no idea", None)])
    model = chosen(header("other", "choice"), [("yes", 1), ("A", 0), ("B", 1)])
    compared = compare(reference, model)
    accuracy = named(compared.scores, "accuracy")
    assert (compared.num_changed, accuracy.num_lost, accuracy.num_gained) == (2, 1, 1)


def test_verdicts_are_paired_too() -> None:
    """The second verdict of the model could not be read, and the third answer of the reference is none."""
    good, bad = Verdict(True, 5), Verdict(False, 1)
    reference = outcome(header("one"), ["a", "b", None, "d", "e"], [good, good, good, bad])
    model = outcome(header("other"), ["a", "b", "c", "d", "e"], [good, None, good, bad, bad])
    compared = compare(reference, model)
    right, mean = named(compared.scores, "judge accuracy"), named(compared.scores, "judge score")
    assert (right.num, right.num_lost, right.num_gained) == (3, 1, 0)
    assert (mean.num, mean.num_lost) == (3, None)
    assert (mean.reference, mean.model, mean.lost) == pytest.approx((11 / 3, 7 / 3, 4 / 3))
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low <= mean.lost <= mean.high
    assert compared.judge == model.result.judge


def test_captions_of_the_set_have_no_interval() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    words = np.array(["a", "dog", "runs", "cat", "sleeps", "red", "ball"])
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(words, 6)) for _ in range(6)]
    predictions = [prediction(at, text, references=(text,)) for at, text in enumerate(texts)]
    worse = [dataclasses.replace(one, prediction=f"{one.prediction} once") for one in predictions]
    found = [
        Outcome(result=score(header(name, "caption"), given, Path("p")), predictions=given, judgement=None)
        for name, given in (("one", predictions), ("other", worse))
    ]
    compared = compare(*found)
    bleu, cider = named(compared.scores, "BLEU-4"), named(compared.scores, "CIDEr")
    assert bleu.lost == pytest.approx(bleu.reference - bleu.model)
    assert bleu.lost > 0
    assert (bleu.low, bleu.high, bleu.num_lost) == (None, None, None)
    assert cider.low is not None
    assert 0 < cider.low < cider.lost


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data_digest": "e"}, 'data_digest is "d" for one and "e" for other'),
        ({"split": "val"}, 'split is "test" for one and "val" for other'),
        ({"decoding": {"choose_by": "likelihood"}}, "decoding is"),
    ],
)
def test_other_questions_are_refused(values: dict, words: str) -> None:
    with pytest.raises(UsageError, match="only answers to the same questions can be compared") as caught:
        compare(outcome(header("one"), ["a"]), outcome(header("other", **values), ["a"]))
    assert words in str(caught.value)


def test_another_judge_is_refused() -> None:
    reference = outcome(header("one"), ["a"], [Verdict(True, 5)])
    record = reference.result.judge
    assert record is not None
    for values in ({"answered_by": ("judge-1106",)}, {"prompt_digest": "cd" * 32}):
        judge = dataclasses.replace(record, **values)
        other = dataclasses.replace(reference, result=dataclasses.replace(reference.result, judge=judge))
        with pytest.raises(UsageError, match="verdicts of different judges cannot be compared"):
            compare(reference, other)
    with pytest.raises(
        UsageError, match="judged by judge-0613 with the prompt blip3v abababababab, those of other by "
    ):
        compare(reference, outcome(header("other"), ["a"]))


def test_models_without_a_common_question_have_no_scores() -> None:
    compared = compare(outcome(header("one"), ["a", None]), outcome(header("other"), [None, "a"]))
    assert (compared.num_compared, compared.num_not_compared, compared.scores) == (0, 2, ())
