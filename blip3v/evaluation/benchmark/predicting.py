"""Asks a benchmark's questions and keeps the predictions as they come.

Questions are asked by clip, several at a time, so that a clip is read and encoded once. A clip that cannot be read, or
a question that cannot be asked, is a line with its error: it is counted and named, and never scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from blip3v.data.records import ClipSample
from blip3v.errors import RequestError, UsageError, VideoError
from blip3v.evaluation.benchmark.answerers import ClipAnswerer, EncodedClip
from blip3v.evaluation.benchmark.choices import chosen_option, most_likely_option
from blip3v.evaluation.benchmark.predictions import Prediction, PredictionFile
from blip3v.evaluation.benchmark.tasks import asked_question, right_answers

__all__ = ["ChooseBy", "predict"]

ChooseBy = Literal["answer", "likelihood"]

_Clip = tuple[Path, float | None, float | None]
_Numbered = tuple[int, ClipSample]


def predict(
    answerer: ClipAnswerer,
    samples: Sequence[ClipSample],
    file: PredictionFile,
    *,
    batch_size: int = 8,
    choose_by: ChooseBy = "answer",
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Asks what the file does not have yet.

    Args:
        answerer: the model.
        samples: the questions.
        file: where predictions go; it may have some of them.
        batch_size: questions that are asked together.
        choose_by: of a choice, whether the answer is read for a letter, or the likeliest letter is taken.
        force: whether predictions of something else are replaced.
        progress: called with how many questions are done, those of the file included.

    Returns:
        One prediction for each sample, in their order.

    Raises:
        UsageError, ConfigError, ArtifactError: of the file, as ``PredictionFile.start``.
        BackendError: the model failed. What is done by then is in the file.
    """
    done = file.start(force=force)
    asker = _Asker(answerer, choose_by)
    with file.appending() as appender:
        for batch in _batches([(at, one) for at, one in enumerate(samples) if at not in done], batch_size):
            if progress is not None:
                progress(len(done))
            predictions = asker.ask(batch)
            appender.add(predictions)
            done.update((one.index, one) for one in predictions)
    if progress is not None:
        progress(len(done))
    return [done[at] for at in range(len(samples))]


def _batches(samples: Sequence[_Numbered], size: int) -> Iterator[list[_Numbered]]:
    """The samples in groups of one clip each, cut into batches."""
    by_clip: dict[_Clip, list[_Numbered]] = {}
    for at, sample in samples:
        by_clip.setdefault(_clip(sample), []).append((at, sample))
    ordered = [numbered for of_clip in by_clip.values() for numbered in of_clip]
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _clip(sample: ClipSample) -> _Clip:
    return sample.video, sample.start_s, sample.end_s


class _Asker:
    """Asks batches; the clips of the last one stay encoded, since the next may begin with one of them."""

    def __init__(self, answerer: ClipAnswerer, choose_by: ChooseBy) -> None:
        self._answerer, self._choose_by = answerer, choose_by
        self._encoded: dict[_Clip, EncodedClip | str] = {}  # a text: why the clip cannot be read

    def ask(self, batch: Sequence[_Numbered]) -> list[Prediction]:
        self._encode(batch)
        readable = [(at, one) for at, one in batch if isinstance(self._encoded[_clip(one)], EncodedClip)]
        predictions = [
            _failed(at, one, error) for at, one in batch if isinstance(error := self._encoded[_clip(one)], str)
        ]
        return sorted([*predictions, *self._answered(readable)], key=lambda one: one.index)

    def _encode(self, batch: Sequence[_Numbered]) -> None:
        clips = {_clip(sample): self._encoded.get(_clip(sample)) for _, sample in batch}
        self._encoded = {}
        for clip, known in clips.items():
            try:
                self._encoded[clip] = known if known is not None else self._answerer.encode(*clip)
            except (VideoError, UsageError) as error:
                self._encoded[clip] = str(error)

    def _answered(self, samples: Sequence[_Numbered]) -> list[Prediction]:
        """Asks together; one by one if a question among them cannot be asked, to find it."""
        if not samples:
            return []
        try:
            return self._asked(samples)
        except RequestError as error:
            if len(samples) == 1:
                return [_failed(*samples[0], str(error))]
            return [prediction for one in samples for prediction in self._answered([one])]

    def _asked(self, samples: Sequence[_Numbered]) -> list[Prediction]:
        clips = [clip for _, one in samples if isinstance(clip := self._encoded[_clip(one)], EncodedClip)]
        questions = [asked_question(one) for _, one in samples]
        if self._choose_by == "likelihood":
            tokens = self._answerer.first_tokens(clips, questions)
            chosen = [
                most_likely_option(of_one, len(one.options)) for of_one, (_, one) in zip(tokens, samples, strict=True)
            ]
            texts = [max(of_one, key=of_one.__getitem__, default="") for of_one in tokens]
        else:
            texts = self._answerer.answer(clips, questions)
            chosen = [
                chosen_option(text, one.options) if one.options else None
                for text, (_, one) in zip(texts, samples, strict=True)
            ]
        return [
            _prediction(at, one, text, option, clip.frames)
            for (at, one), text, option, clip in zip(samples, texts, chosen, clips, strict=True)
        ]


def _failed(at: int, sample: ClipSample, error: str) -> Prediction:
    return _prediction(at, sample, None, None, (), error)


def _prediction(
    at: int, sample: ClipSample, text: str | None, chosen: int | None, frames: tuple[int, ...], error: str | None = None
) -> Prediction:
    return Prediction(
        index=at,
        key=sample.key,
        video=sample.video.name,
        question=sample.turns[-1].question,
        references=right_answers(sample),
        options=sample.options,
        kind=sample.kind,
        prediction=text,
        chosen=chosen,
        frames=frames,
        error=error,
    )
