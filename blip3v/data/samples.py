"""Training samples: clips as frames, with questions and answers. The source of synthetic films is here.

A source returns the same frames and pairs for the same (index, visit), in any order and in any process, so that a run
can be resumed from a step number alone.
"""

# Shapes: T frames, H height, W width.

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from blip3v.data.captions import film_caption, frame_caption
from blip3v.data.film import Film, make_film
from blip3v.data.questions import Question, questions
from blip3v.data.render import render
from blip3v.video.pixel_reader import ClipRequest
from blip3v.video.preprocess import PreprocessorConfig, preprocess
from blip3v.video.sampling import SamplingRule, sample_indices

__all__ = [
    "Conversation",
    "FilmSource",
    "FilmTask",
    "Frames",
    "Pair",
    "Source",
    "draw_pairs",
    "film_frames",
    "film_pixels",
    "film_texts",
]

FilmTask = Literal["image-captions", "video-captions", "instructions"]
Frames = npt.NDArray[np.uint8]

# Rendered larger than the model's 64 pixels and then squashed, as a decoded file is.
_RENDER_HEIGHT, _RENDER_WIDTH = 96, 128
_STATIC_KINDS = ("colour", "shape", "size")
# Every film has questions about colour, shape and size, and most have some about direction; the other kinds are rarer.
# With these weights and three questions a visit, all kinds come up about equally often.
_KIND_WEIGHTS: dict[str, float] = {"colour": 1, "shape": 1, "size": 0.7, "direction": 4}
_RARE_WEIGHT = 20
_FRAME_PROMPT = "Describe the picture."
_FILM_PROMPT = "Describe the film."


@dataclass(frozen=True)
class Pair:
    """A question and the answer to learn."""

    question: str
    answer: str


Conversation = tuple[Pair, ...]
"""Turns in their order, each with those before it as its history; at least one."""


class Source(Protocol):
    """Clips with conversations about them."""

    @property
    def key(self) -> str:
        """Identifies everything that determines ``frames``: cached features are stored under it.

        Files are read for it, since a file that was edited has another key and one that was moved has not.
        """

    @property
    def content(self) -> str:
        """Identifies the list of clips and conversations; files are not read. A run is resumed with the same one."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a message calls the clip."""

    def request(self, index: int, visit: int) -> ClipRequest | None:
        """Which frames of which file the clip is; None: it comes from no file."""

    def frames(self, index: int, visit: int) -> list[Frames]:
        """T pictures, uint8 (H, W, 3)."""

    def conversations(self, index: int, visit: int) -> tuple[Conversation, ...]:
        """Conversations about those pictures, none of which knows of the others."""


@dataclass(frozen=True)
class FilmSource:
    """Synthetic films of the split ``train``.

    Attributes:
        task: ``image-captions`` has one frame at a random time, another one at each visit; the others whole clips.
        num_films: number of films.
        num_frames: frames of a clip.
        pairs_per_clip: pairs at each visit.
        seed: of the choice of frames and questions; the films themselves are those of seeds 0, 1, ...
    """

    task: FilmTask
    num_films: int
    num_frames: int
    pairs_per_clip: int
    seed: int

    @property
    def key(self) -> str:
        """Identifies films, frames and the seed of their sampling."""
        return f"film-train-{self.num_films}x{self.num_frames}-seed{self.seed}"

    def __len__(self) -> int:
        return self.num_films

    @property
    def content(self) -> str:
        """The films follow from their numbers alone."""
        return self.key

    def name(self, index: int) -> str:
        """The film's seed."""
        return f"film {index}"

    def request(self, index: int, visit: int) -> None:
        """Films come from no file."""

    def frames(self, index: int, visit: int) -> list[Frames]:
        """Frames of film ``index``; the index also picks the sampling rule of a whole clip, the same at every visit."""
        film = _film(index)
        times = np.array([self.moment(index, visit)]) if self.task == "image-captions" else self.times(index)
        return list(render(film, times, _RENDER_HEIGHT, _RENDER_WIDTH))

    def film(self, index: int) -> Film:
        """Film ``index``."""
        return _film(index)

    def times(self, index: int) -> npt.NDArray[np.float64]:
        """Times of the frames of a whole clip, fractions of the film."""
        film = _film(index)
        rule = get_args(SamplingRule)[index % 3]
        rng = self._rng(index, 0) if rule == "train" else None
        return sample_indices(film.num_frames, self.num_frames, rule=rule, rng=rng) / film.num_frames

    def conversations(self, index: int, visit: int) -> tuple[Conversation, ...]:
        """The pairs, each of them alone."""
        return tuple((pair,) for pair in self.pairs(index, visit))

    def pairs(self, index: int, visit: int) -> tuple[Pair, ...]:
        """Captions or questions, depending on the task."""
        film = _film(index)
        rng = self._rng(index, visit + 1)
        if self.task == "image-captions":
            return self._about_frame(film, self.moment(index, visit), rng)
        if self.task == "video-captions":
            return (Pair(_FILM_PROMPT, film_caption(film)),)
        return draw_pairs(film, self.pairs_per_clip, rng)

    def _about_frame(self, film: Film, time: float, rng: np.random.Generator) -> tuple[Pair, ...]:
        visible = {item.name for item in film.objects if item.visible(time)}
        static = [q for q in questions(film) if q.kind in _STATIC_KINDS] if len(visible) == len(film.objects) else []
        rng.shuffle(static)
        chosen = [Pair(q.text, q.answer) for q in static[: self.pairs_per_clip - 1]]
        return (Pair(_FRAME_PROMPT, frame_caption(film, time)), *chosen)

    def moment(self, index: int, visit: int) -> float:
        """Time of the frame that ``image-captions`` shows at this visit, a fraction of the film."""
        return float(self._rng(index, visit + 1).uniform())

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence((self.seed, index, purpose)))


def film_frames(film: Film, indices: npt.NDArray[np.int64]) -> list[Frames]:
    """Frames ``indices`` of a film, uint8 (H, W, 3), as in a file of it."""
    times = np.asarray(indices) / film.num_frames
    return list(render(film, times, _RENDER_HEIGHT, _RENDER_WIDTH))


def film_pixels(film: Film, num_frames: int, preprocessor: PreprocessorConfig) -> npt.NDArray[np.float32]:
    """Samples ``num_frames`` frames of a film by the preprocessor's rule: float32 (T, 3, side, side) in [-1, 1]."""
    indices = sample_indices(film.num_frames, num_frames, rule=preprocessor.sampling)
    return preprocess(film_frames(film, indices), preprocessor)


def draw_pairs(film: Film, count: int, rng: np.random.Generator) -> tuple[Pair, ...]:
    """Draws ``count`` questions about a film (all, if it has fewer), so that all kinds come up about equally often."""
    candidates: tuple[Question, ...] = questions(film)
    weights = np.array([_KIND_WEIGHTS.get(q.kind, _RARE_WEIGHT) for q in candidates])
    chosen = rng.choice(len(candidates), size=min(count, len(candidates)), replace=False, p=weights / weights.sum())
    return tuple(Pair(candidates[at].text, candidates[at].answer) for at in chosen)


@functools.lru_cache(maxsize=2**15)
def _film(seed: int) -> Film:
    """Cached, since films recur at every visit and placing their objects costs more than drawing them."""
    return make_film(seed, "train")


def film_texts(num_films: int = 2000) -> list[str]:
    """All texts about the first ``num_films`` films: what a tokenizer is trained on."""
    texts = [_FRAME_PROMPT, _FILM_PROMPT]
    for seed in range(num_films):
        film = make_film(seed, "train")
        texts += [film_caption(film), frame_caption(film, 0.5)]
        texts += [text for question in questions(film) for text in (question.text, question.answer)]
    return texts
