"""Synthetic films: two objects on a dim background, and what they do. A seed determines everything.

This module has the vocabulary, the random choice of a film and its dataclasses. Rendering is in ``render``, language in
``questions`` and ``captions``, files in ``mp4``.

Six of the 48 pairs of colour and shape never occur in the split ``train``. A fixed quarter of the films of the split
``test`` contains one, so that the score on them shows whether a model combines attributes it has not seen together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from blip3v.data import motion
from blip3v.data.motion import ASPECT, Path, Program
from blip3v.data.placement import place

__all__ = [
    "COLOURS", "FAMILIES", "MOMENTS", "SHAPES", "SIZES", "UNSEEN_PAIRS",
    "Family", "Film", "FilmObject", "Split", "generator", "make_film",
]  # fmt: skip

Split = Literal["train", "test"]
Family = Literal["motion", "bounce", "order", "appear", "disappear", "speed"]
FAMILIES: tuple[Family, ...] = get_args(Family)
# Weighted so that the rarer kinds of question (turn, appear, disappear) come up about as often as the others.
_FAMILY_WEIGHTS = (4, 2, 2, 3, 3, 2)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (35, 175, 60),
    "blue": (50, 90, 240),
    "yellow": (245, 225, 50),
    "orange": (250, 135, 20),
    "purple": (165, 60, 215),
    "white": (245, 245, 245),
    "cyan": (50, 215, 230),
}
# Radius of the smallest circle around the shape, in units of its radius: chosen so that areas look alike.
SHAPES: dict[str, float] = {
    "circle": 1.0,
    "square": 1.19,
    "triangle": 1.22,
    "diamond": 1.15,
    "star": 1.22,
    "cross": 1.1,
}
SIZES: dict[str, tuple[float, float]] = {"small": (0.11, 0.13), "large": (0.18, 0.2)}
UNSEEN_PAIRS = (
    ("red", "star"),
    ("green", "square"),
    ("blue", "triangle"),
    ("yellow", "circle"),
    ("purple", "cross"),
    ("cyan", "diamond"),
)
_SEEN_PAIRS = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in UNSEEN_PAIRS)
_UNSEEN_EVERY = 4

# The index of the first changed frame of 8 tells the bands apart, whichever sampling rule chose the frames.
MOMENTS: dict[str, tuple[float, float]] = {"early": (0.15, 0.25), "halfway": (0.4, 0.6), "late": (0.76, 0.85)}

# The stride of the training rule leaves out up to L % 8 more frames at one end: only lengths L with L % 8 == 0 are
# made, so that no rule skips more than an eighth of a film.
_LENGTHS = tuple((tenths / 10, fps) for tenths in range(30, 101) for fps in (24, 25, 30) if tenths * fps % 80 == 0)
_MAX_REDRAWS = 64


@dataclass(frozen=True)
class FilmObject:
    """One object.

    Attributes:
        colour: a key of ``COLOURS``.
        shape: a key of ``SHAPES``.
        size: a key of ``SIZES``.
        radius: in units of the frame height.
        path: its position over time, in world units and fractions of the film.
        appears: when it comes into view, or None if it is in view from the start.
        disappears: when it goes out of view, or None if it stays to the end.
    """

    colour: str
    shape: str
    size: str
    radius: float
    path: Path
    appears: float | None = None
    disappears: float | None = None

    @property
    def name(self) -> str:
        """Colour and shape: no two objects of a film share either."""
        return f"{self.colour} {self.shape}"

    @property
    def extent(self) -> float:
        """Radius of the smallest circle around the centre that contains the object, in world units."""
        return self.radius * SHAPES[self.shape]

    def visible(self, time: float) -> bool:
        """Whether the object is in view at ``time``, a fraction of the film."""
        return (self.appears is None or time >= self.appears) and (self.disappears is None or time < self.disappears)


@dataclass(frozen=True)
class Background:
    """A dim background: its tone at the centre and the change towards the right and bottom edges (RGB, 0..255)."""

    tone: tuple[float, float, float]
    slope: tuple[float, float]


@dataclass(frozen=True)
class Film:
    """A film; see the module docstring.

    Attributes:
        seed: with ``split``, determines the film.
        split: ``train`` or ``test``.
        family: the kind of events in it.
        unseen: whether it contains a pair of ``UNSEEN_PAIRS``.
        duration_s: 3.0 to 10.0, one decimal.
        fps: 24, 25 or 30.
        background: behind the objects.
        objects: two objects that differ in colour and in shape.
    """

    seed: int
    split: Split
    family: Family
    unseen: bool
    duration_s: float
    fps: int
    background: Background
    objects: tuple[FilmObject, ...]

    @property
    def num_frames(self) -> int:
        """Frames of the whole film at ``fps``."""
        return round(self.duration_s * self.fps)

    @property
    def aspect(self) -> float:
        """Width over height."""
        return ASPECT


def generator(seed: int, split: Split, purpose: int = 0) -> np.random.Generator:
    """The random generator of a film; ``purpose`` separates its uses, so that new wordings never change a picture."""
    return np.random.default_rng(np.random.SeedSequence((seed, get_args(Split).index(split), purpose)))


def make_film(seed: int, split: Split) -> Film:
    """Makes the film of ``seed`` in ``split``, always the same one.

    Args:
        seed: 0 or more. In ``test`` every fourth seed makes a film with an unseen pair of colour and shape.
        split: ``train`` or ``test``; no film is in both.
    """
    rng = generator(seed, split)
    unseen = split == "test" and seed % _UNSEEN_EVERY == 0
    family = FAMILIES[rng.choice(len(FAMILIES), p=np.array(_FAMILY_WEIGHTS) / sum(_FAMILY_WEIGHTS))]
    duration_s, fps = _LENGTHS[rng.integers(len(_LENGTHS))]
    background = Background(
        tone=_triple(rng.uniform(30, 56) + rng.uniform(-7, 7, 3)), slope=_pair(rng.uniform(-7, 7, 2))
    )
    pairs = _pairs(rng, unseen)
    sizes = [str(rng.choice(list(SIZES))) for _ in pairs]
    radii = [round(float(rng.uniform(*SIZES[size])), 4) for size in sizes]
    extents = [radius * SHAPES[shape] for radius, (_, shape) in zip(radii, pairs, strict=True)]
    event = _event(rng, family)
    for _ in range(_MAX_REDRAWS):
        paths = place(rng, _programs(rng, family), extents, shared=_shared(family, event))
        if paths is not None:
            break
    else:
        raise AssertionError(f"film {seed} of {split} has no room for its objects")
    objects = [
        FilmObject(colour, shape, size, radius, path)
        for (colour, shape), size, radius, path in zip(pairs, sizes, radii, paths, strict=True)
    ]
    objects[0] = _with_event(objects[0], family, event)
    if rng.random() < 0.5:
        objects.reverse()
    return Film(seed, split, family, unseen, duration_s, fps, background, tuple(objects))


def _pairs(rng: np.random.Generator, unseen: bool) -> list[tuple[str, str]]:
    """Two pairs of colour and shape that share neither; with ``unseen``, one of them is an unseen pair."""
    first = UNSEEN_PAIRS[rng.integers(len(UNSEEN_PAIRS))] if unseen else _SEEN_PAIRS[rng.integers(len(_SEEN_PAIRS))]
    others = [pair for pair in _SEEN_PAIRS if pair[0] != first[0] and pair[1] != first[1]]
    pairs = [first, others[rng.integers(len(others))]]
    if rng.random() < 0.5:
        pairs.reverse()
    return pairs


def _programs(rng: np.random.Generator, family: Family) -> list[Program]:
    """The programs of the two objects; if the family has a leading role, the first object has it."""
    if family == "motion":
        return [_any_motion(rng), _any_motion(rng)]
    if family == "bounce":
        other = _bounce(rng) if rng.random() < 0.5 else _still_or_straight(rng, still_share=0.3)
        return [_bounce(rng), other]
    if family == "order":
        switch = round(float(rng.uniform(0.42, 0.58)), 3)
        return [_straight(rng, end=switch), _straight(rng, start=switch)]
    if family == "speed":
        slow = float(rng.uniform(0.15, 0.19))
        return [_straight(rng, lengths=(2.2 * slow, 3.2 * slow)), _straight(rng, lengths=(slow, slow))]
    return [motion.still(), _still_or_straight(rng, still_share=0.15)]


def _any_motion(rng: np.random.Generator) -> Program:
    kind = rng.choice(["still", "straight", "turn"], p=[0.15, 0.35, 0.5])
    if kind == "turn":
        return motion.turn(motion.TURNS[rng.integers(len(motion.TURNS))], round(float(rng.uniform(0.42, 0.58)), 3))
    return motion.still() if kind == "still" else _straight(rng)


def _still_or_straight(rng: np.random.Generator, still_share: float) -> Program:
    return motion.still() if rng.random() < still_share else _straight(rng)


def _straight(
    rng: np.random.Generator, lengths: tuple[float, float] = (0.35, 0.6), start: float = 0.0, end: float = 1.0
) -> Program:
    return motion.straight(str(rng.choice(list(motion.DIRECTIONS))), lengths, start, end)


def _bounce(rng: np.random.Generator) -> Program:
    return motion.bounce(str(rng.choice(list(motion.OPPOSITE))), int(rng.integers(1, 4)))


def _event(rng: np.random.Generator, family: Family) -> float | None:
    """When the first object appears or disappears, or None if it does neither."""
    if family not in ("appear", "disappear"):
        return None
    return round(float(rng.uniform(*MOMENTS[str(rng.choice(list(MOMENTS)))])), 3)


def _shared(family: Family, event: float | None) -> tuple[float, float]:
    """The part of the film in which both objects are in view."""
    if event is None:
        return 0.0, 1.0
    return (event, 1.0) if family == "appear" else (0.0, event)


def _with_event(item: FilmObject, family: Family, event: float | None) -> FilmObject:
    appears = event if family == "appear" else None
    disappears = event if family == "disappear" else None
    return FilmObject(item.colour, item.shape, item.size, item.radius, item.path, appears, disappears)


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    return round(float(values[0]), 2), round(float(values[1]), 2), round(float(values[2]), 2)


def _pair(values: np.ndarray) -> tuple[float, float]:
    return round(float(values[0]), 2), round(float(values[1]), 2)
