"""The scores of answerers whose score is known, and of an untrained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from blip3v.config import preset
from blip3v.data.film import Film
from blip3v.data.questions import KINDS, TIME_KINDS, Question, test_questions
from blip3v.data.samples import film_texts
from blip3v.evaluation import evaluate
from blip3v.evaluation.reference import ReferenceAnswerer
from blip3v.model import Blip3Video
from blip3v.model.folder import save_model_folder
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, train_tokenizer
from blip3v.video.preprocess import PreprocessorConfig

held_out = test_questions
test_questions.__test__ = False  # type: ignore[attr-defined]


class Knows:
    """Answers the kinds it knows, surrounded by white space, and the others with a question mark."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self.kinds = kinds

    def answer(self, film: Film, questions: Sequence[Question]) -> list[str]:
        return [f" {question.answer}\n" if question.kind in self.kinds else "?" for question in questions]


def test_an_answerer_that_knows_everything_scores_one() -> None:
    report = evaluate(Knows(KINDS), num_questions=400, num_train_films=200)
    assert (report.exact_match, report.exact_match_time, report.exact_match_unseen) == (1.0, 1.0, 1.0)
    assert sum(kind.num_questions for kind in report.kinds) == report.num_questions == 400
    assert [kind.kind for kind in report.kinds] == list(KINDS)


def test_the_share_of_each_kind_is_its_own() -> None:
    report = evaluate(Knows(["colour", "turn"]), num_questions=400, num_train_films=200)
    questions = [question for _, question in held_out(400)]
    right = sum(question.kind in ("colour", "turn") for question in questions)
    assert report.exact_match == pytest.approx(right / 400)
    timed = [question for question in questions if question.kind in TIME_KINDS]
    assert report.exact_match_time == pytest.approx(sum(q.kind == "turn" for q in timed) / len(timed))
    assert {kind.kind for kind in report.kinds if kind.exact_match == 1.0} == {"colour", "turn"}


def test_seeing_only_the_question_does_not_beat_the_commonest_answer_by_ten_points() -> None:
    report = evaluate(Knows([]), num_questions=2000, num_train_films=20000)
    assert report.exact_match == 0.0
    assert report.blind < report.commonest + 0.10
    assert report.commonest < 0.30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = preset("tiny")
    tokenizer = train_tokenizer(film_texts(50), vocab_size_base=config.text.num_base_tokens)
    path = tmp_path_factory.mktemp("models") / "untrained"
    save_model_folder(
        path,
        Blip3Video(config),
        tokenizer.to_str(),
        PreprocessorConfig(image_size=64),
        GenerationConfig(system_prompt=None, max_new_tokens=4),
        RELEASED_TEMPLATE,
    )
    return path


def test_an_untrained_model_scores_next_to_nothing(folder: Path) -> None:
    report = evaluate(ReferenceAnswerer(folder), num_questions=24, num_train_films=100)
    assert report.exact_match < 0.2


def test_questions_of_different_lengths_are_answered_as_if_one_by_one(folder: Path) -> None:
    answerer = ReferenceAnswerer(folder)
    film, _ = held_out(4)[0]
    questions = [question for _, question in held_out(4)]
    assert answerer.answer(film, questions) == [answerer.answer(film, [question])[0] for question in questions]
