"""What each patch of a frame shows, and where: labels that train a vision encoder from nothing on synthetic films."""

# Shapes: P patches, A attributes.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from blip3v.data.film import COLOURS, SHAPES, SIZES, Film
from blip3v.data.motion import ASPECT

__all__ = ["num_classes", "patch_labels"]

_TABLES = (list(COLOURS), list(SHAPES), list(SIZES))


def num_classes(grid: int) -> tuple[int, ...]:
    """Classes of each attribute: the ground or a word of each of the world's tables, then the rows and the columns.

    Place is asked for because nothing else here needs it, and a vision encoder that drops it cannot tell motion.
    """
    return (*(1 + len(table) for table in _TABLES), grid, grid)


def patch_labels(film: Film, time: float, grid: int) -> npt.NDArray[np.int64]:
    """Colour, shape and size of the object that covers the middle of each patch, and the patch's row and column.

    Args:
        film: the film.
        time: a fraction of it.
        grid: patches along each side of the squashed frame.

    Returns:
        (P, A) int64, P = grid * grid row by row, A = 5: classes below ``num_classes(grid)``; 0 of the first three is
        the ground.
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
    rows_P, columns_P = np.divmod(np.arange(grid * grid), grid)
    return np.column_stack((labels_PA, rows_P, columns_P))
