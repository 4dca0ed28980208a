"""How an object moves: programs (directions and times) and paths (the same with lengths and a place).

World units: y runs from 0 (top) to 1 (bottom), x from 0 (left) to ``ASPECT`` (right); time is a fraction of the film.
Not here: which program an object gets, and whether two paths stay apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "ASPECT",
    "DIRECTIONS",
    "OPPOSITE",
    "TURNS",
    "MotionKind",
    "Path",
    "Program",
    "bounce",
    "still",
    "straight",
    "turn",
]

MotionKind = Literal["still", "straight", "turn", "bounce"]

ASPECT = 4 / 3
_DIAGONAL = math.sqrt(0.5)
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up and left": (-_DIAGONAL, -_DIAGONAL),
    "up and right": (_DIAGONAL, -_DIAGONAL),
    "down and left": (-_DIAGONAL, _DIAGONAL),
    "down and right": (_DIAGONAL, _DIAGONAL),
}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
TURNS: tuple[tuple[str, str], ...] = tuple((a, b) for a in OPPOSITE for b in OPPOSITE if a != b)


@dataclass(frozen=True)
class Program:
    """A motion without lengths and a place.

    Attributes:
        kind: name of the motion.
        legs: direction of each leg, a key of ``DIRECTIONS``; empty for a still object.
        times: when each leg starts, and when the last one ends; ``len(legs) + 1`` values, or one for a still object.
        lengths: shortest and longest leg, in world units.
    """

    kind: MotionKind
    legs: tuple[str, ...]
    times: tuple[float, ...]
    lengths: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Path:
    """A motion in the world: straight lines between ``points``, each reached at the time of the same index.

    Attributes:
        kind: name of the motion.
        legs: direction of each leg, a key of ``DIRECTIONS``; empty for a still object.
        times: increasing fractions of the film; before the first and after the last the object rests.
        points: (x, y) in world units.
    """

    kind: MotionKind
    legs: tuple[str, ...]
    times: tuple[float, ...]
    points: tuple[tuple[float, float], ...]

    def positions(self, times: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Centres (T, 2) in world units at ``times`` (T,), fractions of the film."""
        points = np.asarray(self.points)
        return np.stack([np.interp(times, self.times, points[:, axis]) for axis in range(2)], axis=-1)


def still() -> Program:
    """An object at rest."""
    return Program("still", (), (0.0,))


def straight(direction: str, lengths: tuple[float, float], start: float = 0.0, end: float = 1.0) -> Program:
    """One leg at constant speed between ``start`` and ``end``."""
    return Program("straight", (direction,), (start, end), lengths)


def turn(legs: tuple[str, str], corner: float) -> Program:
    """Two legs; the second one starts at the time ``corner``."""
    return Program("turn", legs, (0.0, corner, 1.0), (0.3, 0.5))


def bounce(first: str, count: int) -> Program:
    """Back and forth between two limits, reversing ``count`` times at equal intervals."""
    legs = tuple(first if leg % 2 == 0 else OPPOSITE[first] for leg in range(count + 1))
    return Program("bounce", legs, tuple(leg / (count + 1) for leg in range(count + 2)), (0.3, 0.55))
