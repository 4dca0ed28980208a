"""What the graphs are run on while they are tuned: a few synthetic films, and questions about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blip3v.bench.measure import question_of_length
from blip3v.bundle.reader import Bundle
from blip3v.data.questions import test_questions
from blip3v.data.samples import film_pixels
from blip3v.text.prompt import build_prompt
from blip3v.text.template import Message

__all__ = ["MAX_QUESTIONS", "Inputs", "make_inputs", "prompt_tokens"]

MAX_QUESTIONS = 64  # about 16 films


@dataclass(frozen=True)
class AskedPrompt:
    """A question in the model's own prompt."""

    clip: int  # which of the clips it is about
    ids: list[int]
    image_position: int  # of the id that the video tokens replace


@dataclass(frozen=True)
class Inputs:
    """Clips, and prompts about them."""

    pixels_NF3SS: NDArray[np.float32]
    prompts: list[AskedPrompt]


def make_inputs(bundle: Bundle, num_questions: int) -> Inputs:
    """The first of the held-out questions about films, and the films: what accuracy reports are measured on."""
    asked = test_questions(num_questions)
    films = {film.seed: film for film, _ in asked}
    order = list(films)
    prompts = []
    for film, question in asked:
        prompt = build_prompt(
            bundle.tokenizer, bundle.chat_template, bundle.generation, [Message("user", question.text)]
        )
        prompts.append(AskedPrompt(order.index(film.seed), prompt.ids, prompt.image_position))
    pixels = [film_pixels(film, bundle.config.num_frames, bundle.preprocessor) for film in films.values()]
    return Inputs(np.stack(pixels), prompts)


def prompt_tokens(bundle: Bundle, question_tokens: int) -> int:
    """Positions of a prompt with a question of that length: video tokens, chat template and question.

    Raises:
        RequestError: no text has that many tokens.
    """
    text = question_of_length(bundle.tokenizer, question_tokens)
    prompt = build_prompt(bundle.tokenizer, bundle.chat_template, bundle.generation, [Message("user", text)])
    return prompt.length(bundle.config.num_video_tokens)
