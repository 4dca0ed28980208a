"""Predictions: kept as they come, resumed after a kill, and never made up for a clip that cannot be read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from blip3v.data.digests import digest_of_samples
from blip3v.data.records import ClipSample, Turn
from blip3v.errors import BackendError, ConfigError, CorruptVideoError, RequestError, UsageError
from blip3v.evaluation.benchmark.answerers import EncodedClip
from blip3v.evaluation.benchmark.predicting import predict
from blip3v.evaluation.benchmark.predictions import (
    Header,
    Prediction,
    PredictionFile,
    finished,
    predictions_digest,
    read_predictions,
)
from blip3v.video import VideoInput


class StandIn:
    """A model that answers with the clip's name and the question in capitals."""

    computed, versions = "fp32 on nothing", {"stand-in": "1"}

    def __init__(self, *, broken: Sequence[str] = (), unasked: Sequence[str] = (), dies_after: int = 10**6) -> None:
        self.broken, self.unasked, self.left = broken, unasked, dies_after
        self.encoded: list[str] = []
        self.batches: list[int] = []

    def encode(self, video: VideoInput, start_s: float | None = None, end_s: float | None = None) -> EncodedClip:
        assert isinstance(video, Path)
        self.encoded.append(video.name)
        if video.name in self.broken:
            raise CorruptVideoError(f"{video.name} is broken")
        return EncodedClip(video.name, (0, 3))

    def answer(
        self,
        clips: Sequence[EncodedClip],
        questions: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[str]:
        if set(questions) & set(self.unasked):
            raise RequestError("too long")
        self.left -= len(questions)
        if self.left < 0:
            raise BackendError("killed")
        self.batches.append(len(questions))
        return [f"{clip.video}: {question.upper()}" for clip, question in zip(clips, questions, strict=True)]

    def first_tokens(self, clips: Sequence[EncodedClip], questions: Sequence[str]) -> list[dict[str, float]]:
        return [{"The": -0.1, "C": -2.0, "A": -3.0} for _ in questions]


def sample(clip: int, question: str, **values) -> ClipSample:
    return ClipSample(Path(f"/data/{clip}.mp4"), (Turn(question, "yes"),), key=question, **values)


# Two clips, whose questions alternate.
SAMPLES = [sample(at % 2, f"q{at}") for at in range(12)]


def header(samples: Sequence[ClipSample] = SAMPLES, **values) -> Header:
    return Header(
        **{
            "benchmark": "msvd-qa",
            "data_set": "msvd-qa",
            "split": "test",
            "form": "open",
            "num_samples": len(samples),
            "num_available": len(samples),
            "data_digest": digest_of_samples(samples),
            "missing": {},
            "model": "stand-in",
            "model_kind": "bundle",
            "model_digest": "00",
            "num_video_tokens": 32,
            "precision": "fp32",
            "computed": StandIn.computed,
            "question_prompt": "{question}",
            "decoding": {"temperature": 0},
            "versions": {"blip3v": "1"},
            **values,
        }
    )


def test_predictions_are_in_order_and_a_clip_is_encoded_once(tmp_path: Path):
    model = StandIn()
    done: list[int] = []
    path = tmp_path / "new" / "p.jsonl"
    predictions = predict(model, SAMPLES, PredictionFile(path, header()), batch_size=4, progress=done.append)
    assert [one.prediction for one in predictions] == [f"{at % 2}.mp4: Q{at}" for at in range(12)]
    assert (model.encoded, model.batches, done) == (["0.mp4", "1.mp4"], [4, 4, 4], [0, 4, 8, 12])
    assert [one.frames for one in predictions] == [(0, 3)] * 12
    written, lines = read_predictions(path)
    assert written == header()
    assert sorted(lines, key=lambda one: one.index) == predictions
    assert predictions_digest(lines) == predictions_digest(predictions)


@pytest.mark.parametrize("cut", ["", "{", '{"index": 7, "key"'], ids=["at a line", "at a character", "in a line"])
def test_a_killed_run_goes_on_where_it_ended(tmp_path: Path, cut: str):
    path = tmp_path / "p.jsonl"
    whole = predict(StandIn(), SAMPLES, PredictionFile(tmp_path / "whole.jsonl", header()), batch_size=2)
    with pytest.raises(BackendError, match="killed"):
        predict(StandIn(dies_after=5), SAMPLES, PredictionFile(path, header()), batch_size=2)
    path.write_text(path.read_text() + cut)
    assert finished(path, header()) is None
    resumed = StandIn()
    versions = {"blip3v": "2"}
    assert predict(resumed, SAMPLES, PredictionFile(path, header(versions=versions)), batch_size=2) == whole
    assert sum(resumed.batches) == 8
    written, lines = read_predictions(path)
    assert (written.versions, sorted(one.index for one in lines)) == ({"blip3v": "1"}, list(range(12)))
    assert finished(path, header(computed="", versions={})) == whole
    nothing_left = StandIn(dies_after=0)
    assert predict(nothing_left, SAMPLES, PredictionFile(path, header())) == whole
    assert nothing_left.encoded == []


def test_a_broken_clip_is_named_and_tried_again(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    predictions = predict(StandIn(broken=["1.mp4"]), SAMPLES, PredictionFile(path, header()))
    failed = [one for one in predictions if one.error is not None]
    assert [(one.index, one.prediction, one.error) for one in failed] == [
        (at, None, "1.mp4 is broken") for at in range(1, 12, 2)
    ]
    assert finished(path, header()) is None
    repaired = StandIn()
    again = predict(repaired, SAMPLES, PredictionFile(path, header()))
    assert (repaired.encoded, [one.error for one in again]) == (["1.mp4"], [None] * 12)


def test_a_question_that_cannot_be_asked_fails_alone(tmp_path: Path):
    predictions = predict(StandIn(unasked=["q4"]), SAMPLES, PredictionFile(tmp_path / "p.jsonl", header()))
    assert [one.index for one in predictions if one.prediction is None] == [4]
    assert predictions[4].error == "too long"


def test_a_choice_is_read_from_the_answer_or_from_the_likeliest_letter(tmp_path: Path):
    samples = [sample(0, "the answer is B", options=("no", "yes", "maybe"))]
    (read,) = predict(StandIn(), samples, PredictionFile(tmp_path / "read.jsonl", header(samples)))
    assert "A. NO\nB. YES" in str(read.prediction)
    assert (read.chosen, read.references) == (None, ("yes",))
    likely = PredictionFile(tmp_path / "likely.jsonl", header(samples))
    (chosen,) = predict(StandIn(), samples, likely, choose_by="likelihood")
    assert (chosen.chosen, chosen.prediction) == (2, "The")


@pytest.mark.parametrize(
    ("values", "difference"),
    [
        ({"model_digest": "01"}, 'model_digest is "00" there and "01" here'),
        ({"precision": "int8"}, 'precision is "fp32" there and "int8" here'),
        (
            {"num_samples": 3, "split": "val"},
            'split is "test" there and "val" here; num_samples is 12 there and 3 here',
        ),
    ],
)
def test_predictions_of_something_else_are_kept(tmp_path: Path, values: dict, difference: str):
    path = tmp_path / "p.jsonl"
    predict(StandIn(), SAMPLES, PredictionFile(path, header()))
    before = path.read_text()
    assert finished(path, header(**values)) is None
    with pytest.raises(UsageError, match="has predictions of something else") as caught:
        PredictionFile(path, header(**values)).start()
    assert difference in str(caught.value)
    assert path.read_text() == before
    assert PredictionFile(path, header(**values)).start(force=True) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no header"),
        ("{}\n", "line 1 lacks the key"),
        ("nonsense\n", "line 1 is not JSON"),
        ("HEADER\n[]\n", "line 2 is not a JSON object"),
        ('HEADER\n{"index": 1}\n', "line 2 lacks the key 'key'"),
        ("HEADER\n{\nPREDICTION\n", "line 2 is not JSON"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "p.jsonl"
    prediction = Prediction(
        index=0,
        key="",
        video="",
        question="",
        references=(),
        options=(),
        kind="",
        prediction="",
        chosen=None,
        frames=(),
    )
    text = text.replace("HEADER", json.dumps(dataclasses.asdict(header())))
    text = text.replace("PREDICTION", json.dumps(dataclasses.asdict(prediction)))
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_predictions(path)
    assert finished(path, header()) is None
