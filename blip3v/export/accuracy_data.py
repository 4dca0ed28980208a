"""What the accuracy of a quantised model is measured on.

A model of the film set gets its held-out questions, whose answers are known. A model of anything else gets a few of
the same films with their questions, or the user's own videos, and is only compared with itself in fp32.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from blip3v.calibration.data import AskedClip, AskedPrompt, ClipSet, ModelSource, folder_clips
from blip3v.calibration.record import DataRecord
from blip3v.data.film import Film
from blip3v.data.questions import Question, test_questions
from blip3v.data.samples import film_pixels
from blip3v.strict_json import read_json
from blip3v.text.prompt import build_prompt
from blip3v.text.template import Message
from blip3v.text.tokenizer import Tokenizer

__all__ = ["FEW_QUESTIONS", "FILM_QUESTIONS", "answers_films", "held_out_films", "own_videos"]

FILM_QUESTIONS = 2000  # held-out questions to a model of the film set
FEW_QUESTIONS = 32  # to any other model, about 8 films
_OWN_PROMPTS = 128  # about the user's videos, at most: the logits of all their answers are in memory at once


def answers_films(model: Path) -> bool:
    """Whether a model folder was trained to answer questions about the synthetic films.

    Its ``training.json`` says so: the last stage of the recipe learns answers (``instructions``), from synthetic films
    and not from a list of clips. A folder without that file, a released checkpoint for example, was not trained by us.

    Raises:
        ConfigError: ``training.json`` is not a JSON object.
    """
    path = model / "training.json"
    if not path.is_file():
        return False
    recipe = read_json(path).get("recipe")
    stages = recipe.get("stages") if isinstance(recipe, dict) else None
    last = stages[-1] if isinstance(stages, list) and stages else None
    return isinstance(last, dict) and last.get("task") == "instructions" and bool(last.get("num_films"))


def held_out_films(model: ModelSource, *, num_questions: int) -> ClipSet:
    """Returns the first held-out questions about the films of the split ``test``, with their answers."""
    by_film: dict[int, tuple[Film, list[Question]]] = {}
    for film, question in test_questions(num_questions):
        by_film.setdefault(film.seed, (film, []))[1].append(question)
    tokenizer = Tokenizer.parse(model.tokenizer_json)

    def asked(question: Question) -> AskedPrompt:
        prompt = build_prompt(tokenizer, model.chat_template, model.generation, [Message("user", question.text)])
        return AskedPrompt(question=question.text, answer=question.answer, prompt=prompt, answer_ids=())

    clips = tuple(
        AskedClip(
            name=f"film {film.seed} of the split test",
            prompts=tuple(map(asked, questions)),
            load=functools.partial(film_pixels, film, model.config.num_frames, model.preprocessor),
        )
        for film, questions in by_film.values()
    )
    record = DataRecord(num_clips=len(clips), num_prompts=num_questions, split="test", seeds=tuple(by_film))
    return ClipSet(clips=clips, record=record)


def own_videos(model: ModelSource, folder: Path) -> ClipSet:
    """Returns the user's videos with the first 128 of their questions; ``folder`` is as ``folder_clips`` takes it.

    Raises:
        CalibrationError, ConfigError: as ``folder_clips``.
    """
    found = folder_clips(model, folder, allow_test_films=True)
    clips: list[AskedClip] = []
    left = _OWN_PROMPTS
    for clip in found.clips[:_OWN_PROMPTS]:
        prompts = clip.prompts[:left]
        if prompts:
            clips.append(dataclasses.replace(clip, prompts=prompts))
        left -= len(prompts)
    record = dataclasses.replace(found.record, num_clips=len(clips), num_prompts=_OWN_PROMPTS - left)
    return ClipSet(clips=tuple(clips), record=record)
