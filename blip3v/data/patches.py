"""What each patch of a frame shows: the labels that train a vision encoder from nothing on synthetic films."""

# Shapes: P patches, A attributes.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from blip3v.data.film import COLOURS, SHAPES, SIZES, Film
from blip3v.data.motion import ASPECT

__all__ = ["NUM_CLASSES", "patch_labels"]

# Classes of each attribute: 0 is the ground, then the words in the order of the world's tables.
NUM_CLASSES = (1 + len(COLOURS), 1 + len(SHAPES), 1 + len(SIZES))
_TABLES = (list(COLOURS), list(SHAPES), list(SIZES))


def patch_labels(film: Film, time: float, grid: int) -> npt.NDArray[np.int64]:
    """Colour, shape and size of the object that covers the middle of each patch.

    Args:
        film: the film.
        time: a fraction of it.
        grid: patches along each side of the squashed frame.

    Returns:
        (P, A) int64, P = grid * grid row by row, A = 3: classes below ``NUM_CLASSES``.
    """
    middles = (np.arange(grid) + 0.5) / grid
    x_P, y_P = (axis.ravel() for axis in np.meshgrid(middles * ASPECT, middles))
    labels_PA = np.zeros((grid * grid, len(_TABLES)), np.int64)
    for item in film.objects:
        if item.visible(time):
            x, y = item.path.positions([time])[0]
            covered = np.hypot(x_P - x, y_P - y) < item.radius
            words = (item.colour, item.shape, item.size)
            labels_PA[covered] = [1 + table.index(word) for table, word in zip(_TABLES, words, strict=True)]
    return labels_PA
