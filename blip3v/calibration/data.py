"""What a model is calibrated on: clips with prompts. Synthetic films by default, or a folder of videos with questions.

The folder has videos and a ``questions.json``: a list of records, or what ``blip3v data`` writes.

    [{"video": "cat.mp4", "question": "What does the cat do?", "answer": "It jumps onto the table."}]

Films of the split ``test`` belong to the evaluation and are refused, also as files under another name. Not here:
running the model. Needs no PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip3v.bundle.scan import hash_file
from blip3v.calibration.record import DataRecord
from blip3v.config import ModelConfig
from blip3v.data.film import Film, Split, make_film
from blip3v.data.film_files import QUESTIONS_FILE, read_film_set
from blip3v.data.questions import test_questions
from blip3v.data.render import render
from blip3v.data.samples import draw_pairs, film_pixels
from blip3v.errors import CalibrationError, RequestError, UsageError
from blip3v.strict_json import from_dict, read_json_value
from blip3v.text.generation import GenerationConfig
from blip3v.text.prompt import Prompt, build_prompt
from blip3v.text.special import ASSISTANT
from blip3v.text.template import Message
from blip3v.text.tokenizer import Tokenizer
from blip3v.units import format_count
from blip3v.video import Clip, PreprocessorConfig, load_clip, preprocess

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FIRST_FILM",
    "MIN_PROMPTS",
    "AskedClip",
    "AskedPrompt",
    "ClipSet",
    "ModelSource",
    "check_set",
    "default_counts",
    "film_clips",
    "folder_clips",
    "read_questions",
]

FIRST_FILM = 1_000_000  # far behind the films of the split train that models are trained on
MIN_PROMPTS = 8
_TEST: Split = "test"
_SMALL_HEIGHT, _SMALL_WIDTH = 48, 64  # at which frames are compared with films
_DIFFERENT, _MOST_DIFFERENT = 40.0, 0.01  # grey levels of a pixel, and the share of such pixels in the same frame


class ModelSource(Protocol):
    """A model and what makes its inputs: an ``ExportSource`` or a ``Checkpoint``, for example."""

    @property
    def config(self) -> ModelConfig: ...  # noqa: D102

    @property
    def weights(self) -> Mapping[str, Tensor]: ...  # noqa: D102

    @property
    def tokenizer_json(self) -> str: ...  # noqa: D102

    @property
    def chat_template(self) -> str: ...  # noqa: D102

    @property
    def generation(self) -> GenerationConfig: ...  # noqa: D102

    @property
    def preprocessor(self) -> PreprocessorConfig: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class AskedPrompt:
    """A question about a clip, as token ids."""

    question: str
    answer: str | None  # the true one, if it is known
    prompt: Prompt
    answer_ids: tuple[int, ...]  # that follow the prompt, without the end token; empty if no answer is known


@dataclass(frozen=True, kw_only=True)
class AskedClip:
    """A clip and the questions about it."""

    name: str
    prompts: tuple[AskedPrompt, ...]
    load: Callable[[], NDArray[np.float32]]  # the pixels, (num_frames, 3, side, side) in [-1, 1]; read at each call


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """Clips with prompts, and where they come from."""

    clips: tuple[AskedClip, ...]
    record: DataRecord


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A record of ``questions.json``."""

    video: str
    question: str
    answer: str | None = None


def default_counts(config: ModelConfig) -> tuple[int, int]:
    """Returns how many films a model is calibrated on, and how many prompts about each."""
    return (64, 3) if config.name == "tiny" else (8, 4)


def film_clips(
    model: ModelSource,
    *,
    num_clips: int,
    prompts_per_clip: int,
    first: int = FIRST_FILM,
    split: Split = "train",
    seed: int = 0,
) -> ClipSet:
    """Returns synthetic films with some of their questions.

    Args:
        model: makes the prompts.
        num_clips: films, at least 1.
        prompts_per_clip: questions about each, at least 1.
        first: seed of the first film; those that follow have the next ones.
        split: of the films. Those of ``test`` are for an evaluation.
        seed: of the choice of questions.
    """
    if split not in get_args(Split):
        raise UsageError(f"split is {split!r}; allowed: {', '.join(get_args(Split))}")
    texts = _Texts(model)
    seeds, clips = tuple(range(first, first + num_clips)), []
    for number in seeds:
        film = make_film(number, split)
        pairs = draw_pairs(film, prompts_per_clip, np.random.default_rng([seed, number]))
        name = f"film {number} of the split {split}"
        asked = tuple(texts.asked(pair.question, pair.answer, about=name) for pair in pairs)
        load = functools.partial(film_pixels, film, model.config.num_frames, model.preprocessor)
        clips.append(AskedClip(name=name, prompts=asked, load=load))
    record = DataRecord(num_clips=len(clips), num_prompts=_count(clips), split=split, seeds=seeds, question_seed=seed)
    return ClipSet(clips=tuple(clips), record=record)


def folder_clips(
    model: ModelSource,
    folder: Path,
    *,
    num_clips: int | None = None,
    prompts_per_clip: int | None = None,
    allow_test_films: bool = False,
) -> ClipSet:
    """Returns the videos of a folder that its ``questions.json`` asks about.

    Args:
        model: makes the prompts; its preprocessor the pixels.
        folder: with the videos.
        num_clips: the first so many videos; None: all.
        prompts_per_clip: at most the first so many questions about each; None: all.
        allow_test_films: whether films of the evaluation are accepted: not for a calibration.

    Raises:
        CalibrationError: no questions, fewer videos than asked for, a video that does not exist, a question that
            cannot be asked, or a film of the evaluation. Those in files under another name are found when a clip is
            loaded.
        ConfigError: ``questions.json`` is not valid.
    """
    by_video = read_questions(folder, allow_test_films=allow_test_films)
    if num_clips is not None and len(by_video) < num_clips:
        raise CalibrationError(
            f"{folder / QUESTIONS_FILE} asks about {format_count(len(by_video), 'video')}, and {num_clips} are to be "
            "used",
            remedy="add videos, or lower `num_clips`",
        )
    texts, clips = _Texts(model), []
    for name, pairs in list(by_video.items())[:num_clips]:
        load = functools.partial(
            _load, folder / name, name, model.config.num_frames, model.preprocessor, allow_test_films
        )
        asked = tuple(texts.asked(question, answer, about=name) for question, answer in pairs[:prompts_per_clip])
        clips.append(AskedClip(name=name, prompts=asked, load=load))
    hashes = {clip.name: hash_file(folder / clip.name) for clip in clips}
    return ClipSet(
        clips=tuple(clips),
        record=DataRecord(
            num_clips=len(clips),
            num_prompts=_count(clips),
            sha256=hashes | {QUESTIONS_FILE: hash_file(folder / QUESTIONS_FILE)},
        ),
    )


def read_questions(folder: Path, *, allow_test_films: bool = False) -> dict[str, list[tuple[str, str | None]]]:
    """Returns the questions of a folder, with the answers that are known, by the name of the video.

    Raises:
        CalibrationError: no folder, no ``questions.json``, no questions in it, a video that does not exist, or a film
            of the evaluation.
        ConfigError: ``questions.json`` is not valid.
    """
    path = folder / QUESTIONS_FILE
    if not path.is_file():
        what = "has no questions.json" if folder.is_dir() else "is not a folder"
        raise CalibrationError(
            f"{folder} {what}; a folder of videos with a questions.json is expected: a list of "
            '{"video": name, "question": text, "answer": text}, where the answer may be left out'
        )
    values = read_json_value(path)
    by_video: dict[str, list[tuple[str, str | None]]] = {}
    if isinstance(values, list):
        for at, value in enumerate(values):
            item = from_dict(_Question, value, f"{path}: record {at}")
            by_video.setdefault(item.video, []).append((item.question, item.answer))
    else:
        for clip in read_film_set(path).clips:
            if clip.split == _TEST and not allow_test_films:
                raise _of_evaluation(f"{folder / clip.file} is film {clip.seed} of the split test")
            by_video[clip.file] = [(asked.question, asked.answer) for asked in clip.questions]
    if not by_video:
        raise CalibrationError(f"{path} has no questions; at least {MIN_PROMPTS} are needed")
    for name in by_video:
        if not (folder / name).is_file():
            raise CalibrationError(
                f"{path} asks about {name!r}, and {folder / name} is not a file; names are relative to the folder"
            )
    return by_video


def check_set(samples: ClipSet, config: ModelConfig) -> None:
    """Checks that a model of ``config`` can be calibrated on ``samples``; reads no videos.

    Raises:
        CalibrationError: too few prompts, or a film of the evaluation.
    """
    if samples.record.split == _TEST:
        raise _of_evaluation(samples.clips[0].name if samples.clips else "the split test")
    count = _count(samples.clips)
    if count < MIN_PROMPTS:
        raise CalibrationError(
            f"there are {format_count(count, 'prompt')} to calibrate on; at least {MIN_PROMPTS} are needed",
            remedy="add questions or videos, or raise `num_clips` or `prompts_per_clip`",
        )


class _Texts:
    """Turns questions and answers into token ids."""

    def __init__(self, model: ModelSource) -> None:
        self._tokenizer = Tokenizer.parse(model.tokenizer_json)
        self._template, self._generation = model.chat_template, model.generation

    def asked(self, question: str, answer: str | None, about: str) -> AskedPrompt:
        try:
            prompt = build_prompt(self._tokenizer, self._template, self._generation, [Message("user", question)])
            ids = () if answer is None else tuple(self._tokenizer.encode_after(ASSISTANT, answer))
        except RequestError as error:
            raise CalibrationError(f"the question {question!r} about {about} cannot be asked: {error}") from error
        if not set(ids).isdisjoint(self._tokenizer.added_tokens.values()):
            raise CalibrationError(f"the answer {answer!r} about {about} contains a special token; use plain text")
        return AskedPrompt(question=question, answer=answer, prompt=prompt, answer_ids=ids)


def _count(clips: tuple[AskedClip, ...] | list[AskedClip]) -> int:
    return sum(len(clip.prompts) for clip in clips)


def _of_evaluation(what: str) -> CalibrationError:
    return CalibrationError(
        f"{what}, on which models are evaluated; calibrate on others, for example on films of `blip3v data`",
        remedy="with `split='train'`",
    )


def _load(
    path: Path, name: str, num_frames: int, preprocessor: PreprocessorConfig, allow_test_films: bool
) -> NDArray[np.float32]:
    clip = load_clip(path, num_frames=num_frames, rule=preprocessor.sampling)
    seed = None if allow_test_films else _test_film(clip)
    if seed is not None:
        raise _of_evaluation(f"{name} shows film {seed} of the split test")
    return preprocess(clip.frames, preprocessor)


def _test_film(clip: Clip) -> int | None:
    """The seed of the film of the evaluation that a clip shows, if it shows one."""
    small = [np.asarray(Image.fromarray(frame).resize((_SMALL_WIDTH, _SMALL_HEIGHT)), float) for frame in clip.frames]
    for film in _test_films():
        if film.num_frames == clip.num_source_frames:
            times = np.array([frame.index for frame in clip.sampled]) / film.num_frames
            shown = np.stack(list(render(film, times, _SMALL_HEIGHT, _SMALL_WIDTH)))
            if np.mean(np.abs(np.stack(small) - shown).max(axis=-1) > _DIFFERENT) < _MOST_DIFFERENT:
                return film.seed
    return None


@functools.cache
def _test_films() -> tuple[Film, ...]:
    """The films of the held-out questions."""
    seeds = dict.fromkeys(film.seed for film, _ in test_questions())
    return tuple(make_film(seed, _TEST) for seed in seeds)
