"""Numeric labels of what a patch or an object of a synthetic film shows and does.

They train components without pretrained weights from scratch; questions and captions are elsewhere.
"""

# Shapes: N labelled items (patches or objects), A attributes, T frames, P patches.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blip3v.data.film import COLOURS, SHAPES, SIZES, Film, FilmObject
from blip3v.data.motion import ASPECT, DIRECTIONS

__all__ = [
    "IGNORE_INDEX",
    "NUM_WORDS",
    "OBJECTS_PER_FRAME",
    "Labels",
    "motion_labels",
    "num_motion_words",
    "object_labels",
    "patch_labels",
]

_TABLES = (list(COLOURS), list(SHAPES), list(SIZES))
# Number of classes of colour, shape and size: 0 is no object, then come the words of each table.
NUM_WORDS: tuple[int, ...] = tuple(1 + len(table) for table in _TABLES)
OBJECTS_PER_FRAME = 2
IGNORE_INDEX = -100  # class of an attribute without a label
_DIRECTIONS = list(DIRECTIONS)
_MAX_REVERSALS = 3


@dataclass(frozen=True)
class Labels:
    """Labels of N patches or objects.

    Attributes:
        words_NA: int64, the class of each attribute, or ``IGNORE_INDEX``.
        place_N2: float32, (x, y) in halves of the frame's width and height; NaN if there is none.
    """

    words_NA: npt.NDArray[np.int64]
    place_N2: npt.NDArray[np.float32]


def num_motion_words(num_frames: int) -> tuple[int, ...]:
    """Number of classes of each attribute of ``motion_labels``."""
    direction = 2 + len(_DIRECTIONS)  # not known yet, at rest, or a direction
    return direction, direction, 1 + _MAX_REVERSALS, num_frames


def patch_labels(film: Film, time: float, grid: int) -> Labels:
    """Labels the object that covers the middle of each patch, and the patch's row and column.

    Args:
        film: the film.
        time: a fraction of the film.
        grid: patches along each side of the squashed frame.

    Returns:
        N = grid * grid, row by row. Words: those of ``NUM_WORDS``, row, column. Place: the object's centre, 0 in the
        middle of the frame.
    """
    middles = (np.arange(grid) + 0.5) / grid
    x_P, y_P = (axis.ravel() for axis in np.meshgrid(middles * ASPECT, middles))
    words_PA, place_P2 = _empty_labels(grid * grid)
    for item in film.objects:
        if item.visible(time):
            x, y = item.path.positions([time])[0]
            covered_P = np.hypot(x_P - x, y_P - y) < item.radius
            words_PA[covered_P], place_P2[covered_P] = _appearance(item, time)
    rows_P, columns_P = np.divmod(np.arange(grid * grid), grid)
    return Labels(np.column_stack((words_PA, rows_P, columns_P)), place_P2)


def object_labels(film: Film, times: npt.NDArray[np.floating]) -> Labels:
    """Labels the objects in view at each of ``times`` (fractions of the film), in the order of ``COLOURS``.

    Returns:
        N = T * ``OBJECTS_PER_FRAME``, frame by frame. An object alone in view appears twice in its frame. Words: those
        of ``NUM_WORDS``. Place: the centre, 0 in the middle of the frame.
    """
    words_NA, place_N2 = _empty_labels(len(times) * OBJECTS_PER_FRAME)
    for n, frame, item in _in_view(film, times):
        words_NA[n], place_N2[n] = _appearance(item, float(times[frame]))
    return Labels(words_NA, place_N2)


def motion_labels(film: Film, times: npt.NDArray[np.floating]) -> Labels:
    """Labels what the objects of ``object_labels`` have done up to each of ``times``, as far as the frames show it.

    Returns:
        N as in ``object_labels``. Words (``num_motion_words``): direction since the previous frame; first direction;
        number of changes of direction; the frame in which the object came into view. Place: the displacement since.
    """
    count = len(times) * OBJECTS_PER_FRAME
    words_NA = np.full((count, len(num_motion_words(len(times)))), IGNORE_INDEX, np.int64)
    place_N2 = np.full((count, 2), np.nan, np.float32)
    for n, frame, item in _in_view(film, times):
        words_NA[n], place_N2[n] = _motion_so_far(item, times, frame)
    return Labels(words_NA, place_N2)


def _in_view(film: Film, times: npt.NDArray[np.floating]) -> Iterator[tuple[int, int, FilmObject]]:
    """Yields (n, frame, object) for each entry of ``object_labels``."""
    ranked = sorted(film.objects, key=lambda item: _TABLES[0].index(item.colour))
    for frame, time in enumerate(times):
        seen = [item for item in ranked if item.visible(float(time))]
        for place, item in enumerate((seen[0], seen[-1]) if seen else ()):
            yield frame * OBJECTS_PER_FRAME + place, frame, item


def _empty_labels(count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    return np.zeros((count, len(_TABLES)), np.int64), np.full((count, 2), np.nan, np.float32)


def _appearance(item: FilmObject, time: float) -> tuple[list[int], tuple[float, float]]:
    words = zip(_TABLES, (item.colour, item.shape, item.size), strict=True)
    x, y = item.path.positions([time])[0]
    return [1 + table.index(word) for table, word in words], (2 * x / ASPECT - 1, 2 * y - 1)


def _motion_so_far(
    item: FilmObject, times: npt.NDArray[np.floating], frame: int
) -> tuple[tuple[int, int, int, int], tuple[float, float]]:
    first = next(at for at, time in enumerate(times) if item.visible(float(time)))
    if frame == first:
        return (0, 0, 0, first), (0.0, 0.0)
    legs = [_leg(item, float(times[at - 1] + times[at]) / 2) for at in (first + 1, frame)]
    directions = [1 if leg is None else 2 + _DIRECTIONS.index(item.path.legs[leg]) for leg in legs]
    changes = (legs[1] or 0) - (legs[0] or 0)
    from_xy, to_xy = item.path.positions([times[first], times[frame]])
    across, down = to_xy - from_xy
    return (directions[1], directions[0], changes, first), (2 * across / ASPECT, 2 * down)


def _leg(item: FilmObject, time: float) -> int | None:
    """Index of the leg of its path that the object is on; None at rest."""
    path = item.path
    if not path.legs or not path.times[0] <= time < path.times[-1]:
        return None
    return int(np.searchsorted(path.times, time, side="right")) - 1
