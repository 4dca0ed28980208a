"""The order of the clips, from a step's number alone: no state to save, and every process finds its own share."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["candidates", "positions_of_step", "visits_of_step"]


def positions_of_step(step: int, batch_size: int) -> range:
    """Positions in the order of all visits: those of visit 0 first, one for each clip."""
    return range(step * batch_size, (step + 1) * batch_size)


def candidates(position: int, num_clips: int, seed: int) -> Iterator[tuple[int, int]]:
    """The (clip, visit) pair of a position, then those that replace it if it cannot be read: all clips once.

    These are the next ones in the same visit's order, after its last clip its first. Each visit goes through all clips
    once, in a random order of its own.
    """
    visit, at = divmod(position, num_clips)
    order = _order(num_clips, seed, visit)
    return ((int(order[(at + later) % num_clips]), visit) for later in range(num_clips))


def visits_of_step(step: int, num_clips: int, batch_size: int, seed: int) -> list[tuple[int, int]]:
    """The (clip, visit) pairs of one step, if all of them can be read."""
    return [next(candidates(position, num_clips, seed)) for position in positions_of_step(step, batch_size)]


@functools.lru_cache(maxsize=4)
def _order(num_clips: int, seed: int, visit: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(np.random.SeedSequence((seed, visit))).permutation(num_clips)
