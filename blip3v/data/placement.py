"""Chooses lengths and places for two motion programs, so that the objects never touch while both are in view.

Rejection sampling on whole paths. The check is exact: between two corners of either path the objects' distance is that
from a straight line to a point, so no moment is missed.

Letters: N candidates, K corners of a path, S moments, 2 is (x, y).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blip3v.data.motion import ASPECT, DIRECTIONS, Path, Program

__all__ = ["closest", "place"]

_Array = npt.NDArray[np.float64]

_FRAME = np.array([ASPECT, 1.0])
_ROUNDS = 16
_CANDIDATES = 96
_GAP = 0.02  # a pixel of 64 between two outlines


def place(
    rng: np.random.Generator, programs: Sequence[Program], extents: Sequence[float], *, shared: tuple[float, float]
) -> tuple[Path, Path] | None:
    """Finds paths for two objects inside the frame and apart from each other; None if the search fails.

    Args:
        rng: draws lengths and places.
        programs: the two motions.
        extents: radius of each object's bounding circle, in world units.
        shared: the part of the film, as fractions, in which both objects are in view.
    """
    for attempt in range(_ROUNDS):
        # Later rounds draw shorter legs, which fit more often.
        slack = 1 - attempt / _ROUNDS
        corners = [_corners(rng, *pair, slack) for pair in zip(programs, extents, strict=True)]
        starts = [_starts(rng, *pair) for pair in zip(corners, extents, strict=True)]
        paths = [start_N2[:, None] + corner_K2 for start_N2, corner_K2 in zip(starts, corners, strict=True)]
        gap_N = _closest(paths, [program.times for program in programs], shared) - sum(extents)
        found = np.flatnonzero(gap_N >= _GAP)
        if found.size:
            first, second = (
                _path(program, path_NK2[found[0]]) for program, path_NK2 in zip(programs, paths, strict=True)
            )
            return first, second
    return None


def closest(first: Path, second: Path, shared: tuple[float, float] = (0.0, 1.0)) -> float:
    """Smallest distance between the two centres within ``shared``, in world units."""
    paths = [np.asarray(path.points)[None] for path in (first, second)]
    return float(_closest(paths, [first.times, second.times], shared)[0])


def _corners(rng: np.random.Generator, program: Program, extent: float, slack: float) -> _Array:
    """Corners (K, 2) relative to the start, with drawn lengths."""
    room_2 = _FRAME - 2 * extent
    low, high = program.lengths
    corners = [np.zeros(2)]
    length = None
    for leg in program.legs:
        unit_2 = np.array(DIRECTIONS[leg])
        # Both limits of a bounce are fixed, so all its legs share one length.
        if length is None or program.kind != "bounce":
            longest = min([high, *(room / abs(part) for room, part in zip(room_2, unit_2, strict=True) if part)])
            length = low + max(0.0, longest - low) * slack * float(rng.random())
        corners.append(corners[-1] + unit_2 * length)
    return np.stack(corners)


def _starts(rng: np.random.Generator, corner_K2: _Array, extent: float) -> _Array:
    """Candidate starts (N, 2) from which the whole path stays in the frame."""
    low_2 = extent - corner_K2.min(axis=0)
    high_2 = _FRAME - extent - corner_K2.max(axis=0)
    return rng.uniform(low_2, np.maximum(low_2, high_2), (_CANDIDATES, 2))


def _closest(paths: Sequence[_Array], times: Sequence[tuple[float, ...]], shared: tuple[float, float]) -> _Array:
    """Smallest distance (N,) between the centres of each pair of paths (N, K, 2) within ``shared``."""
    moments = np.unique(np.clip(np.array([*times[0], *times[1], *shared]), *shared))
    first_NS2, second_NS2 = (_along(path, at, moments) for path, at in zip(paths, times, strict=True))
    apart_NS2 = first_NS2 - second_NS2
    if len(moments) == 1:
        return _norm(apart_NS2[:, 0])
    from_NS2, step_NS2 = apart_NS2[:, :-1], np.diff(apart_NS2, axis=1)
    squared_NS = np.maximum((step_NS2**2).sum(-1), 1e-12)
    nearest_NS = np.clip(-(from_NS2 * step_NS2).sum(-1) / squared_NS, 0, 1)
    distance_N: _Array = _norm(from_NS2 + nearest_NS[..., None] * step_NS2).min(axis=1)
    return distance_N


def _along(path_NK2: _Array, times: tuple[float, ...], moments: _Array) -> _Array:
    """Positions (N, S, 2) at ``moments``: one weight matrix serves all candidates."""
    weights_KS = np.stack([np.interp(moments, times, row) for row in np.eye(len(times))])
    position_NS2: _Array = np.einsum("nkd,ks->nsd", path_NK2, weights_KS)
    return position_NS2


def _norm(vectors: _Array) -> _Array:
    length: _Array = np.sqrt((vectors**2).sum(axis=-1))
    return length


def _path(program: Program, point_K2: _Array) -> Path:
    # Rounded so that a film is the same on every machine, down to the last digit stored.
    points = tuple((round(float(x), 5), round(float(y), 5)) for x, y in point_K2)
    return Path(program.kind, program.legs, program.times, points)
