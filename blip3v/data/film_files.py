"""A folder of film files: one mp4 per film, and ``questions.json`` with the facts about each.

The folder is written under another name next to its place and then renamed, so that an incomplete one is never seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from blip3v.data.captions import film_caption
from blip3v.data.film import Film
from blip3v.data.mp4 import FILE_SIZES, write_mp4
from blip3v.data.questions import Question, multiple_choice, questions
from blip3v.errors import ConfigError, UsageError
from blip3v.publishing import new_folder
from blip3v.strict_json import dumps, from_dict, read_json

__all__ = [
    "QUESTIONS_FILE",
    "AskedQuestion",
    "ClipRecord",
    "FilmSet",
    "check_target",
    "describe",
    "read_film_set",
    "write_films",
]

QUESTIONS_FILE = "questions.json"
_SCHEMA_VERSION = 1
_CHOICE_SEEDS_PER_FILM = 100  # more than a film has questions


@dataclass(frozen=True)
class AskedQuestion:
    """A question about a clip, open and with five lettered options, and its true answers."""

    kind: str
    needs_time: bool
    question: str
    answer: str
    multiple_choice: str
    multiple_choice_answer: str


@dataclass(frozen=True)
class ClipRecord:
    """One film file: its origin (``split`` and ``seed``), its format, and the facts about it."""

    file: str
    split: str
    seed: int
    family: str
    unseen_pair: bool
    duration_s: float
    fps: int
    num_frames: int
    width: int
    height: int
    caption: str
    questions: tuple[AskedQuestion, ...]


@dataclass(frozen=True)
class FilmSet:
    """The contents of ``questions.json``."""

    schema_version: int
    clips: tuple[ClipRecord, ...]


def describe(films: Mapping[str, Film], *, height: int) -> FilmSet:
    """The contents of ``questions.json`` for ``films`` (by file name) at ``height``.

    Raises:
        UsageError: the height is not a key of ``FILE_SIZES``.
    """
    if height not in FILE_SIZES:
        raise UsageError(f"height is {height}; allowed: {', '.join(map(str, FILE_SIZES))}")
    return FilmSet(_SCHEMA_VERSION, tuple(_clip(file, film, height) for file, film in films.items()))


def read_film_set(path: Path) -> FilmSet:
    """Reads a ``questions.json``, strictly.

    Raises:
        ConfigError: it cannot be read, has another schema version, or contains anything unexpected.
    """
    film_set = from_dict(FilmSet, read_json(path), str(path))
    if film_set.schema_version != _SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema_version {film_set.schema_version}; only {_SCHEMA_VERSION} is supported: "
            "make the folder again with blip3v data"
        )
    return film_set


def check_target(folder: Path, *, force: bool) -> None:
    """Refuses a folder that must not be overwritten.

    Raises:
        UsageError: it exists and ``force`` is false, or it contains something other than film files.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not force:
        raise UsageError(f"{folder} already exists", remedy="choose another `folder`, or replace it with `force=True`")
    if not folder.is_dir() or folder.is_symlink():
        raise UsageError(
            f"{folder} is not a folder; only folders of film files are replaced", remedy="choose another `folder`"
        )
    for entry in folder.iterdir():
        if entry.name != QUESTIONS_FILE and entry.suffix != ".mp4":
            raise UsageError(
                f"{folder} contains {entry.name}, which is not a film file; only film files and {QUESTIONS_FILE} are "
                "replaced",
                remedy="choose another `folder`",
            )


def write_films(
    folder: Path,
    films: Mapping[str, Film],
    *,
    height: int,
    force: bool = False,
    each: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> FilmSet:
    """Writes ``films`` and their questions to ``folder``, atomically.

    Args:
        folder: the new folder.
        films: the films by file name.
        height: a key of ``FILE_SIZES``.
        force: whether to replace an existing folder of film files.
        each: wraps the iteration over the file names, for a progress bar.

    Returns:
        The contents of ``questions.json``.

    Raises:
        UsageError: ``folder`` must not be overwritten, or the height is not allowed.
        VideoError: a film cannot be encoded.
    """
    check_target(folder, force=force)
    if not folder.parent.is_dir():
        raise UsageError(f"{folder.parent} is not a folder; create it first: mkdir -p {folder.parent}")
    record = describe(films, height=height)
    with new_folder(folder) as staging:
        for file in each(films):
            write_mp4(films[file], staging / file, height=height)
        (staging / QUESTIONS_FILE).write_text(dumps(dataclasses.asdict(record)), "utf-8")
    return record


def _clip(file: str, film: Film, height: int) -> ClipRecord:
    return ClipRecord(
        file=file,
        split=film.split,
        seed=film.seed,
        family=film.family,
        unseen_pair=film.unseen,
        duration_s=film.duration_s,
        fps=film.fps,
        num_frames=film.num_frames,
        width=FILE_SIZES[height],
        height=height,
        caption=film_caption(film),
        questions=tuple(_asked_question(question, film, number) for number, question in enumerate(questions(film))),
    )


def _asked_question(question: Question, film: Film, number: int) -> AskedQuestion:
    choice = multiple_choice(question, film.seed * _CHOICE_SEEDS_PER_FILM + number)
    return AskedQuestion(question.kind, question.needs_time, question.text, question.answer, choice.text, choice.answer)
