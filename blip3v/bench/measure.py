"""How a turn is timed, and in which order several bundles are measured.

Not here: what a turn gives (``sample.py``), the process around a bundle (``worker.py``), and the figures computed from
the seconds (``report.py``).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

import numpy as np

from blip3v.bench.sample import RequestTimes, Sample, Shape
from blip3v.data.film import make_film
from blip3v.data.questions import questions
from blip3v.errors import RequestError
from blip3v.runtime import Answer, GenerationOptions, VideoLM, VideoTokens
from blip3v.text import Tokenizer
from blip3v.video.source import VideoInput

__all__ = ["NEW_TOKENS", "QUESTION_TOKENS", "Question", "measure_sample", "question_of_length", "take_turns"]

T = TypeVar("T")

QUESTION_TOKENS = 32
NEW_TOKENS = 32
_QUESTIONS_SEED = 0  # of the film whose questions provide the words
_PAD = "?"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What every request of a measurement asks."""

    clip: VideoInput  # the video file, which each request decodes, or frames
    text: str
    num_new_tokens: int = NEW_TOKENS  # of the answer, at least 2; the stop token does not end it

    @property
    def options(self) -> GenerationOptions:
        """Greedy, exactly that many tokens."""
        return GenerationOptions(max_new_tokens=self.num_new_tokens, ignore_stop_token=True)


def measure_sample(lm: VideoLM, question: Question, shape: Shape) -> Sample:
    """Takes one turn: answers once, a batch, or several requests at once, each from its file to its last token.

    Args:
        lm: the opened bundle.
        question: what is asked.
        shape: how many requests, and how many video tokens the language model sees.

    Raises:
        VideoError: the clip cannot be used.
        RequestError: question and answer do not fit the context, or a batch does not fit into the cache's memory.
        BackendError: the inference engine failed.
    """
    if shape.batch_size > 1:
        return _batch(lm, question, shape)
    start_s = time.perf_counter()
    if shape.requests_at_once == 1:
        answered = [_answer(lm, question, shape)]
    else:
        with ThreadPoolExecutor(shape.requests_at_once, thread_name_prefix="blip3v-bench") as pool:
            asked = [pool.submit(_answer, lm, question, shape) for _ in range(shape.requests_at_once)]
            answered = [one.result() for one in asked]
    return _mean(time.perf_counter() - start_s, answered)


@dataclass(frozen=True, kw_only=True)
class _Answered:
    """A request after its answer. The answer's own timings are without the video, which was encoded before."""

    video: VideoTokens
    answer: Answer
    times: RequestTimes


def _encode(lm: VideoLM, question: Question, shape: Shape) -> VideoTokens:
    video = lm.encode(question.clip)
    if shape.num_video_tokens is None:
        return video
    return dataclasses.replace(video, tokens=video.tokens[np.arange(shape.num_video_tokens) % len(video)])


def _answer(lm: VideoLM, question: Question, shape: Shape) -> _Answered:
    start_s = time.perf_counter()
    video = _encode(lm, question, shape)
    with lm.stream(video, question.text, options=question.options) as stream:
        token_s = [time.perf_counter() for delta in stream if delta.token_id is not None]
        end_s = time.perf_counter()
        answer = stream.answer
    assert len(token_s) == question.num_new_tokens
    times = RequestTimes(
        time_to_first_token_s=token_s[0] - start_s,
        end_to_end_s=end_s - start_s,
        num_new_tokens=len(token_s),
        inter_token_s=tuple(np.diff(token_s).tolist()),
    )
    return _Answered(video=video, answer=answer, times=times)


def _mean(whole_chain_s: float, answered: Sequence[_Answered]) -> Sample:
    """The sample of requests that each had stages of their own."""
    videos, timings = [one.video for one in answered], [one.answer.timings for one in answered]
    return Sample(
        whole_chain_s=whole_chain_s,
        file_decode_s=fmean(video.file_decode_s for video in videos),
        preprocess_s=fmean(video.preprocess_s for video in videos),
        video_encoder_s=fmean(video.encode_s for video in videos),
        prefill_s=fmean(one.prefill_s for one in timings),
        steps_s=fmean(one.steps_s for one in timings),
        num_steps=timings[0].num_steps,
        prompt_tokens=answered[0].answer.usage.num_prompt_tokens,
        requests=tuple(one.times for one in answered),
    )


def _batch(lm: VideoLM, question: Question, shape: Shape) -> Sample:
    """A batch of videos: each is decoded and encoded, one after another, then all are answered together."""
    start_s = time.perf_counter()
    videos = [_encode(lm, question, shape) for _ in range(shape.batch_size)]
    encoded_s = time.perf_counter() - start_s
    answers = lm.ask_batch([(video, question.text) for video in videos], options=question.options)
    whole_chain_s = time.perf_counter() - start_s
    num_parts = len({answer.timings.steps_s for answer in answers})  # what ran together took the same time
    if num_parts > 1:
        raise RequestError(
            f"a batch of {shape.batch_size} was answered in {num_parts} parts, since the memory for caches or the "
            "engine takes no more rows at once; measure smaller batches"
        )
    timings = answers[0].timings  # of the whole batch
    times = RequestTimes(
        time_to_first_token_s=encoded_s + timings.prefill_s,
        end_to_end_s=whole_chain_s,
        num_new_tokens=question.num_new_tokens,
    )
    return Sample(
        whole_chain_s=whole_chain_s,
        file_decode_s=sum(video.file_decode_s for video in videos),
        preprocess_s=sum(video.preprocess_s for video in videos),
        video_encoder_s=sum(video.encode_s for video in videos),
        prefill_s=timings.prefill_s,
        steps_s=timings.steps_s,
        num_steps=timings.num_steps,
        prompt_tokens=answers[0].usage.num_prompt_tokens,
        requests=(times,) * shape.batch_size,
    )


def question_of_length(tokenizer: Tokenizer, num_tokens: int) -> str:
    """Returns a text that the tokenizer encodes as exactly ``num_tokens`` tokens.

    It strings together the words of the questions about a film, starting over when they run out. A word with more
    tokens than are left is skipped; once no word fits, question marks fill the rest.

    Args:
        tokenizer: the bundle's.
        num_tokens: at least 1. The tokens of the chat template come on top.

    Raises:
        RequestError: no such text has this length.
    """
    words = " ".join(question.text for question in questions(make_film(_QUESTIONS_SEED, "test"))).split()

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    text, length = "", 0
    for word in words * num_tokens:  # more rounds than an ordinary tokenizer needs, but finite
        if length == num_tokens:
            return text
        longer = f"{text} {word}".lstrip()
        if count(longer) <= num_tokens:
            text, length = longer, count(longer)
    for _ in range(num_tokens):
        text = text + _PAD if count(text + _PAD) <= num_tokens else text
    if count(text) != num_tokens:
        raise RequestError(
            f"no text made of film questions has exactly {num_tokens} tokens with this tokenizer; the nearest has "
            f"{count(text)}; measure a bundle with an ordinary tokenizer"
        )
    return text


def take_turns(
    subjects: Sequence[Callable[[], T]],
    *,
    warmup: int,
    repetitions: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[T, ...]]:
    """Measures A B C, A B C, ..., so that a machine that slows down or speeds up does so for all subjects.

    Args:
        subjects: each takes one sample when called.
        warmup: turns whose samples are discarded, at least 0.
        repetitions: turns that count, at least 1.
        progress: called after each sample with the number of samples taken so far and in total, warm-up included.

    Returns:
        The samples of each subject, one per turn: entries with the same index are from the same turn.
    """
    kept: list[list[T]] = [[] for _ in subjects]
    total = (warmup + repetitions) * len(subjects)
    for turn in range(warmup + repetitions):
        for index, subject in enumerate(subjects):
            sample = subject()
            if turn >= warmup:
                kept[index].append(sample)
            progress(turn * len(subjects) + index + 1, total)
    return [tuple(samples) for samples in kept]
