"""What the accuracy of a quantised model is measured on: clips with questions, and their true answers if known.

A model of the film set gets its held-out questions, whose answers are known. A model of anything else gets a few of
the same films with their questions, or the user's own clips, and is only compared with itself in fp32.
"""

# Shapes: F frames, S side.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.config import ModelConfig
from blip3v.data.authors import ClipSample, read_samples
from blip3v.data.film import Film
from blip3v.data.questions import Question, test_questions
from blip3v.data.samples import Frames, film_frames
from blip3v.errors import ConfigError
from blip3v.strict_json import read_json
from blip3v.video import PreprocessorConfig, load_clip
from blip3v.video.preprocess import preprocess
from blip3v.video.sampling import sample_indices

__all__ = ["AccuracyClip", "AccuracyData", "answers_films", "film_data", "own_data"]

FILM_QUESTIONS = 2000  # held-out questions to a model of the film set
FEW_QUESTIONS = 32  # to any other model, about 8 films
_OWN_QUESTIONS = 128  # of the user's own, at most: the logits of all their answers are in memory at once


@dataclass(frozen=True)
class AccuracyClip:
    """A clip with questions.

    Attributes:
        name: of the clip, for the hash of the data.
        questions: at least one.
        answers: the true ones, or () if they are not known.
        frames: reads the frames, uint8 (H, W, 3).
    """

    name: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    frames: Callable[[], Sequence[Frames]]

    def pixels(self, preprocessor: PreprocessorConfig) -> NDArray[np.float32]:
        """Returns what the video encoder takes, (F, 3, S, S) in [-1, 1]."""
        return preprocess(self.frames(), preprocessor)


@dataclass(frozen=True, kw_only=True)
class AccuracyData:
    """Clips with questions, and how the report describes them."""

    clips: tuple[AccuracyClip, ...]
    facts: dict[str, Any]  # what was chosen, with its seeds

    @property
    def has_answers(self) -> bool:
        """Whether exact match can be measured."""
        return all(clip.answers for clip in self.clips)

    @property
    def num_questions(self) -> int:
        """Questions about all clips."""
        return sum(len(clip.questions) for clip in self.clips)

    def without_answers(self) -> AccuracyData:
        """Returns the same questions, to be compared with the reference's answers alone."""
        clips = tuple(dataclasses.replace(clip, answers=()) for clip in self.clips)
        return dataclasses.replace(self, clips=clips)


def answers_films(model: Path) -> bool:
    """Whether a model folder was trained to answer questions about the synthetic films.

    Its ``training.json`` says so: the last stage of the recipe learns answers (``instructions``), from synthetic films
    and not from a list of clips. A folder without that file, a released checkpoint for example, was not trained by us.

    Raises:
        ConfigError: ``training.json`` is not JSON.
    """
    path = model / "training.json"
    if not path.is_file():
        return False
    recipe = read_json(path).get("recipe")
    stages = recipe.get("stages") if isinstance(recipe, dict) else None
    last = stages[-1] if isinstance(stages, list) and stages else None
    if not isinstance(last, dict):
        return False
    return last.get("task") == "instructions" and bool(last.get("num_films"))


def film_data(config: ModelConfig, preprocessor: PreprocessorConfig, *, num_questions: int) -> AccuracyData:
    """Returns the first held-out questions about the films of the test set, with their answers."""
    by_film: dict[int, tuple[Film, list[Question]]] = {}
    for film, question in test_questions(num_questions):
        by_film.setdefault(film.seed, (film, []))[1].append(question)
    clips = tuple(
        AccuracyClip(
            f"film {film.seed}",
            tuple(question.text for question in questions),
            tuple(question.answer for question in questions),
            partial(_frames_of_film, film, config.num_frames, preprocessor),
        )
        for film, questions in by_film.values()
    )
    facts = {"source": "synthetic films, split test", "seeds": [min(by_film), max(by_film)]}
    return AccuracyData(clips=clips, facts=facts)


def own_data(path: Path, config: ModelConfig, preprocessor: PreprocessorConfig) -> AccuracyData:
    """Returns the user's own clips with their questions, from the authors' JSON list; at most 128 questions.

    Raises:
        ConfigError: the file is not such a list, or is empty.
    """
    samples = read_samples(path)
    if not samples:
        raise ConfigError(f"{path} has no samples; at least 1 is needed")
    clips: list[AccuracyClip] = []
    left = _OWN_QUESTIONS
    for index, sample in enumerate(samples):
        questions = tuple(turn.question for turn in sample.turns)[:left]
        if questions:
            frames = partial(_frames_of_clip, sample, config.num_frames, preprocessor)
            clips.append(AccuracyClip(f"record {index}", questions, (), frames))
        left -= len(questions)
    total = sum(len(sample.turns) for sample in samples)
    facts = {"source": path.name, "seeds": [], "questions_in_file": total}
    return AccuracyData(clips=tuple(clips), facts=facts)


def _frames_of_film(film: Film, num_frames: int, preprocessor: PreprocessorConfig) -> list[Frames]:
    return film_frames(film, sample_indices(film.num_frames, num_frames, rule=preprocessor.sampling))


def _frames_of_clip(sample: ClipSample, num_frames: int, preprocessor: PreprocessorConfig) -> list[Frames]:
    clip = load_clip(
        sample.video, num_frames=num_frames, rule=preprocessor.sampling, start_s=sample.start_s, end_s=sample.end_s
    )
    return list(clip.frames)
