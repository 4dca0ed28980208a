"""Writes the answers of one checkout's runtime about the example clips; ``compare_commits.py`` runs it on each bundle.

    cd CHECKOUT && PYTHONPATH=$PWD python -P scripts/checkout_outputs.py BUNDLE EXAMPLES OUTPUT.npz

It uses only the runtime's public API, because every compared commit must have it. Arrays are named
``what|case``, for example ``questions: token ids|turn.mp4, question 1``.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

import blip3v
from blip3v.runtime import Answer, GenerationOptions, VideoLM, VideoTokens

GREEDY = GenerationOptions(logprobs=20)
SHORT = GenerationOptions(logprobs=20, max_new_tokens=3)
SAMPLED = GenerationOptions(logprobs=20, temperature=0.8, top_p=0.95, repetition_penalty=1.1, seed=5)
LONG = GenerationOptions(logprobs=20, max_new_tokens=48, ignore_stop_token=True)
LONG_PROMPT_TOKENS = 300  # more than the 256 that the decoder takes at once

Outputs = Iterator[tuple[str, NDArray[Any]]]


@dataclass(frozen=True)
class Clip:
    """An example clip, its video tokens, and its committed questions."""

    name: str
    path: Path
    tokens: VideoTokens
    questions: tuple[str, ...]
    choices: tuple[str, ...]  # the same questions as multiple choice, which is longer
    long_question: str


def all_outputs(model: VideoLM, clips: list[Clip]) -> Outputs:
    """Every scenario in turn, as (name, array)."""
    for clip in clips:
        yield from _video(model, clip)
        yield from _single_answers(model, clip)
        yield from _chat(model, clip)
    ragged = [(clip.tokens, (clip.questions, clip.choices)[i % 2][0]) for i, clip in enumerate(clips)]
    yield from _batch(model, "batch", ragged)
    # If a prompt is longer than one chunk, each row is prefilled separately.
    yield from _batch(model, "batch with a long prompt", [*ragged[:2], (clips[0].tokens, clips[0].long_question)])


def _video(model: VideoLM, clip: Clip) -> Outputs:
    part = model.encode(clip.path, start=0.5, end=2.5)
    for case, video in ((clip.name, clip.tokens), (f"{clip.name}, 0.5 s to 2.5 s", part)):
        yield f"video tokens|{case}", video.tokens
        yield f"frames|{case}", np.array(video.frames, np.float64)


def _single_answers(model: VideoLM, clip: Clip) -> Outputs:
    for number, question in enumerate(clip.questions, 1):
        answer = model.ask(clip.tokens, question, options=GREEDY)
        yield from _answer("questions", f"{clip.name}, question {number}", answer)
    first = clip.questions[0]
    yield from _answer("sampled", clip.name, model.ask(clip.tokens, first, options=SAMPLED))
    yield from _answer("48 tokens", clip.name, model.ask(clip.tokens, first, options=LONG))
    yield from _answer("long prompt", clip.name, model.ask(clip.tokens, clip.long_question, options=GREEDY))


def _chat(model: VideoLM, clip: Clip) -> Outputs:
    # The second answer is truncated, so its last token enters the cache only with the third question.
    with model.chat(clip.tokens) as chat:
        for turn, options in enumerate((GREEDY, SHORT, GREEDY)):
            answer = chat.ask(clip.questions[turn % len(clip.questions)], options=options)
            yield from _answer("chat", f"{clip.name}, turn {turn + 1}", answer)


def _batch(model: VideoLM, what: str, requests: list[tuple[VideoTokens, str]]) -> Outputs:
    for row, answer in enumerate(model.ask_batch(requests, options=GREEDY), 1):
        yield from _answer(what, f"row {row}", answer)


def _answer(what: str, case: str, answer: Answer) -> Outputs:
    assert answer.logprobs is not None
    yield f"{what}: token ids|{case}", np.array(answer.token_ids, np.int64)
    yield f"{what}: text|{case}", np.array([answer.text])
    yield f"{what}: finish reason|{case}", np.array([answer.finish_reason])
    chosen = [entry.logprob for entry in answer.logprobs]
    top = [list(zip(*entry.top, strict=True)) for entry in answer.logprobs]
    yield f"{what}: log-probabilities|{case}", np.array(chosen + [value for _, row in top for value in row], np.float64)
    yield f"{what}: top 20 ids|{case}", np.array([token_id for row, _ in top for token_id in row], np.int64)


def read_clips(model: VideoLM, bundle: Path, examples: Path, num_questions: int | None) -> list[Clip]:
    """Encodes the clips listed in ``questions.json``, with ``num_questions`` questions each (None: all)."""
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    clips = []
    for entry in json.loads((examples / "questions.json").read_text("utf-8"))["clips"]:
        path = examples / entry["file"]
        questions = tuple(row["question"] for row in entry["questions"])
        choices = tuple(row["multiple_choice"] for row in entry["questions"])
        long_question = _long_question(tokenizer, choices)
        tokens = model.encode(path)
        clips.append(
            Clip(entry["file"], path, tokens, questions[:num_questions], choices[:num_questions], long_question)
        )
    return clips


def _long_question(tokenizer: Tokenizer, choices: tuple[str, ...]) -> str:
    """``choices``, repeated until they fill more than one chunk of prefill."""
    text = ""
    while len(tokenizer.encode(text).ids) <= LONG_PROMPT_TOKENS:
        text += " ".join(choices) + " "
    return text.strip()


def open_model(bundle: Path) -> VideoLM:
    """Opens the bundle on ONNX Runtime, whichever engine the checkout would choose."""
    has_backends = "backend" in inspect.signature(VideoLM.open).parameters
    chosen: dict[str, Any] = {"backend": "onnxruntime"} if has_backends else {}
    return VideoLM.open(bundle, threads=1, **chosen)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("examples", type=Path, help="folder with questions.json and the clips")
    parser.add_argument("output", type=Path, help="the .npz")
    parser.add_argument("--questions", type=int, help="questions of each clip (default: all)")
    options = parser.parse_args()
    if Path(blip3v.__file__).resolve().parents[1] != Path.cwd():
        parser.error(f"blip3v comes from {blip3v.__file__}, not from the checkout in {Path.cwd()}; set PYTHONPATH")
    with open_model(options.bundle) as model:
        clips = read_clips(model, options.bundle, options.examples, options.questions)
        arrays: dict[str, Any] = dict(all_outputs(model, clips))
    np.savez(options.output, **arrays)


if __name__ == "__main__":
    main()
