"""Draws a film: signed distances to straight edges and circles, antialiased over one pixel, in numpy.

Height and width are free: x and y are scaled independently, so a square render is the 4:3 film squashed to a square.

Letters: T frames, H and W the whole picture, h and w the window around an object, 3 is RGB.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from blip3v.data.film import COLOURS, Film, FilmObject
from blip3v.data.motion import ASPECT

__all__ = ["render"]

_Array = npt.NDArray[np.float32]

# Half sides in units of the radius.
_SQUARE = 0.84
_ARM_LENGTH, _ARM_WIDTH = 1.04, 0.36
_TRIANGLE = 0.61  # inner radius: half of the outer one
_DIAMOND = 1.15
_STAR = 1.22  # outer radius


def render(film: Film, times: npt.NDArray[np.floating], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Frames of ``film`` at ``times``.

    Args:
        film: the film.
        times: (T,) fractions of the duration in [0, 1]; frame ``i`` of a file is at ``i / num_frames``.
        height: rows of a frame.
        width: columns of a frame.

    Returns:
        (T, height, width, 3) uint8 RGB.
    """
    moments = np.asarray(times, np.float64)
    ground_HW3 = _ground(film, height, width)
    # Half is added once here, so that the final cast rounds.
    frames_THW3 = np.repeat(ground_HW3[None] + np.float32(0.5), len(moments), axis=0)
    for item in film.objects:
        seen = np.flatnonzero([item.visible(float(time)) for time in moments])
        if seen.size:
            _paint(frames_THW3, seen, item, item.path.positions(moments[seen]))
    return frames_THW3.astype(np.uint8)


def _ground(film: Film, height: int, width: int) -> _Array:
    across_W = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(film.background.slope[0])
    down_H = np.linspace(-1, 1, height, dtype=np.float32) * np.float32(film.background.slope[1])
    ground_HW = down_H[:, None] + across_W
    ground_HW3: _Array = ground_HW[..., None] + np.array(film.background.tone, np.float32)
    return ground_HW3


def _paint(frames_THW3: _Array, seen: npt.NDArray[np.intp], item: FilmObject, centres: npt.NDArray[np.float64]) -> None:
    """Blends ``item`` into the frames ``seen``; ``centres`` (len(seen), 2) are in world units."""
    _, height, width, _ = frames_THW3.shape
    pitch = (ASPECT / width, 1 / height)
    left_T, x_Tw = _window(centres[:, 0], item.extent, pitch[0], width)
    top_T, y_Th = _window(centres[:, 1], item.extent, pitch[1], height)
    cover_Thw = _coverage(item, x_Tw[:, None, :], y_Th[:, :, None], pitch)
    colour_3 = np.array(COLOURS[item.colour], np.float32) + np.float32(0.5)
    h, w = y_Th.shape[1], x_Tw.shape[1]
    for frame, cover_hw, left, top in zip(seen, cover_Thw, left_T, top_T, strict=True):
        window_hw3 = frames_THW3[frame, top : top + h, left : left + w]
        window_hw3 += cover_hw[..., None] * (colour_3 - window_hw3)


def _window(
    centre_T: npt.NDArray[np.float64], extent: float, pitch: float, limit: int
) -> tuple[npt.NDArray[np.intp], _Array]:
    """First pixel of the window along one axis, and the world distance of its pixel centres from the object's."""
    size = min(limit, math.ceil(2 * extent / pitch) + 3)
    first_T = np.clip(np.floor((centre_T - extent) / pitch).astype(np.intp) - 1, 0, limit - size)
    pixels_Tn = first_T[:, None] + np.arange(size)
    return first_T, ((pixels_Tn + 0.5) * pitch - centre_T[:, None]).astype(np.float32)


def _coverage(item: FilmObject, x: _Array, y: _Array, pitch: tuple[float, float]) -> _Array:
    """Share of each pixel (T, h, w) that the object covers; x (T, 1, w) and y (T, h, 1) in world units."""
    x, y = x / np.float32(item.radius), y / np.float32(item.radius)
    pitch = pitch[0] / item.radius, pitch[1] / item.radius
    cover_Thw: _Array = np.clip(np.float32(0.5) - _DISTANCE[item.shape](x, y, pitch), 0, 1)
    return cover_Thw


# Each shape's function returns the distance to its outline in pixels along the outline's normal, negative inside.


def _edge(x: _Array, y: _Array, angle: float, offset: float, pitch: tuple[float, float]) -> _Array:
    """Distance to the line whose outward normal points at ``angle`` (radians, y down), ``offset`` from the centre."""
    normal_x, normal_y = math.cos(angle), math.sin(angle)
    # A pixel's width along the normal: pixels need not be square.
    step = abs(normal_x) * pitch[0] + abs(normal_y) * pitch[1]
    distance: _Array = np.float32(normal_x / step) * x + (np.float32(normal_y / step) * y - np.float32(offset / step))
    return distance


def _box(x: _Array, y: _Array, half_x: float, half_y: float, pitch: tuple[float, float]) -> _Array:
    across = (np.abs(x) - np.float32(half_x)) / np.float32(pitch[0])
    down = (np.abs(y) - np.float32(half_y)) / np.float32(pitch[1])
    distance: _Array = np.maximum(across, down)
    return distance


def _circle(x: _Array, y: _Array, pitch: tuple[float, float]) -> _Array:
    distance: _Array = np.maximum(np.hypot(x, y), np.float32(1e-6))
    step = (np.abs(x) * np.float32(pitch[0]) + np.abs(y) * np.float32(pitch[1])) / distance
    outline: _Array = np.divide(distance - 1, np.maximum(step, np.float32(1e-6)), dtype=np.float32)
    return outline


def _square(x: _Array, y: _Array, pitch: tuple[float, float]) -> _Array:
    return _box(x, y, _SQUARE, _SQUARE, pitch)


def _cross(x: _Array, y: _Array, pitch: tuple[float, float]) -> _Array:
    across, upright = _box(x, y, _ARM_LENGTH, _ARM_WIDTH, pitch), _box(x, y, _ARM_WIDTH, _ARM_LENGTH, pitch)
    union: _Array = np.minimum(across, upright)
    return union


def _triangle(x: _Array, y: _Array, pitch: tuple[float, float]) -> _Array:
    sides = [_edge(x, y, math.radians(angle), _TRIANGLE, pitch) for angle in (90, 210, 330)]
    common: _Array = np.maximum(np.maximum(sides[0], sides[1]), sides[2])
    return common


def _diamond(x: _Array, y: _Array, pitch: tuple[float, float]) -> _Array:
    # Four edges that differ only in signs.
    return _edge(np.abs(x), np.abs(y), math.radians(45), _DIAMOND * math.sqrt(0.5), pitch)


def _star(x: _Array, y: _Array, pitch: tuple[float, float]) -> _Array:
    """A pentagram, one tip up: inside at least four of the lines through its tips, so the second largest counts."""
    inner = _STAR * math.cos(math.radians(72))
    largest = second = np.full(np.broadcast_shapes(x.shape, y.shape), -np.inf, np.float32)
    for tip in range(5):
        side = _edge(x, y, math.radians(270 + 72 * tip), inner, pitch)
        second = np.maximum(second, np.minimum(largest, side))
        largest = np.maximum(largest, side)
    return second


_DISTANCE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
}
