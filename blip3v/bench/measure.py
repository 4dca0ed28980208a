"""What a sample is, how it is timed, and in which order several bundles are measured.

Not here: the process around a bundle (``worker.py``), and the figures computed from the seconds (``report.py``).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from blip3v.data.film import make_film
from blip3v.data.questions import questions
from blip3v.errors import RequestError
from blip3v.runtime import GenerationOptions, VideoLM
from blip3v.text import Tokenizer
from blip3v.video.source import VideoInput

__all__ = ["NEW_TOKENS", "QUESTION_TOKENS", "Sample", "measure_sample", "question_of_length", "take_turns"]

QUESTION_TOKENS = 32
NEW_TOKENS = 32
_QUESTIONS_SEED = 0  # of the film whose questions provide the words
_PAD = "?"
_OPTIONS = GenerationOptions(max_new_tokens=NEW_TOKENS, ignore_stop_token=True)  # greedy


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Seconds of one sample: a file decoded, a question answered with ``NEW_TOKENS`` tokens."""

    whole_chain_s: float  # wall-clock time of the call; exceeds the sum of the stages by other_s
    file_decode_s: float
    preprocess_s: float
    video_encoder_s: float
    prefill_s: float  # yields the first new token
    steps_s: float  # all decoding steps
    num_steps: int
    prompt_tokens: int  # positions before the answer: video tokens, question, chat template

    @property
    def per_token_s(self) -> float:
        """Mean of the sample's decoding steps."""
        return self.steps_s / self.num_steps

    @property
    def language_model_s(self) -> float:
        """The language model alone: prefill and decoding steps."""
        return self.prefill_s + self.steps_s

    @property
    def other_s(self) -> float:
        """Time outside the stages: tokenizer, cache, the choice of tokens, text."""
        stages_s = self.file_decode_s + self.preprocess_s + self.video_encoder_s + self.language_model_s
        return self.whole_chain_s - stages_s


def measure_sample(lm: VideoLM, clip: VideoInput, question: str, num_video_tokens: int | None = None) -> Sample:
    """Answers once, from the video to the last token, and returns how long that took.

    Args:
        lm: the opened bundle.
        clip: the video file, or its frames.
        question: the question about it.
        num_video_tokens: video tokens that the language model sees, with the encoder's own repeated or cut; None:
            exactly its own.

    Raises:
        VideoError: the clip cannot be used.
        RequestError: question and answer do not fit the context.
        BackendError: the inference engine failed.
    """
    start_s = time.perf_counter()
    video = lm.encode(clip)
    if num_video_tokens is not None:
        video = dataclasses.replace(video, tokens=video.tokens[np.arange(num_video_tokens) % len(video)])
    answer = lm.ask(video, question, options=_OPTIONS)
    whole_chain_s = time.perf_counter() - start_s
    assert answer.usage.num_new_tokens == NEW_TOKENS
    timings = answer.timings
    return Sample(
        whole_chain_s=whole_chain_s,
        file_decode_s=video.file_decode_s,
        preprocess_s=video.preprocess_s,
        video_encoder_s=video.encode_s,
        prefill_s=timings.prefill_s,
        steps_s=timings.steps_s,
        num_steps=timings.num_steps,
        prompt_tokens=answer.usage.num_prompt_tokens,
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
    subjects: Sequence[Callable[[], Sample]],
    *,
    warmup: int,
    repetitions: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[Sample, ...]]:
    """Measures A B C, A B C, ..., so that a machine that slows down or speeds up does so for all subjects.

    Args:
        subjects: each takes one sample when called.
        warmup: turns whose samples are discarded, at least 0.
        repetitions: turns that count, at least 1.
        progress: called after each sample with the number of samples taken so far and in total, warm-up included.

    Returns:
        The samples of each subject, one per turn: entries with the same index are from the same turn.
    """
    kept: list[list[Sample]] = [[] for _ in subjects]
    total = (warmup + repetitions) * len(subjects)
    for turn in range(warmup + repetitions):
        for index, subject in enumerate(subjects):
            sample = subject()
            if turn >= warmup:
                kept[index].append(sample)
            progress(turn * len(subjects) + index + 1, total)
    return [tuple(samples) for samples in kept]
