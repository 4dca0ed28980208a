"""Which frames lie between two times. Shared by the decoder process and by images and arrays."""

from __future__ import annotations

import math
import numbers
from bisect import bisect_left
from collections.abc import Sequence
from typing import cast

from blip3v.errors import UsageError

__all__ = ["check_fps", "check_range", "frames_between"]

# Times are multiples of a time base: this absorbs the error of rounding them to a float and to six printed digits.
_ROUNDING_S = 5e-7


def check_range(start_s: object, end_s: object) -> tuple[float | None, float | None]:
    """The range of a clip as a caller gave it, as numbers.

    Raises:
        UsageError: not a number, a time that is negative or not finite, or an end that is not after the start.
    """
    start, end = _time("start", start_s), _time("end", end_s)
    if end is not None and end <= (start or 0.0):
        raise UsageError(f"end is {end:g} s, not after start ({start or 0.0:g} s); give an end after the start")
    return start, end


def check_fps(fps: object) -> float | None:
    """The frame rate as a caller gave it, as a number.

    Raises:
        UsageError: not a number, or not a finite one above 0.
    """
    if fps is None:
        return None
    rate = _number(fps)
    if not 0 < rate < math.inf:
        raise UsageError(f"fps is {fps!r}; a finite number above 0 is needed")
    return rate


def _time(name: str, value: object) -> float | None:
    if value is None:
        return None
    time_s = _number(value)
    if not 0 <= time_s < math.inf:
        shown = repr(value) if math.isnan(time_s) else f"{time_s} s"
        raise UsageError(f"{name} is {shown}; a time from 0 s on is needed, counted from the video's first frame")
    return time_s


def _number(value: object) -> float:
    """``value`` as a float, whichever library it is from; NaN if it is not a number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(cast("float", value))
    except OverflowError:  # an int beyond the largest float
        return math.inf


def frames_between(times_s: Sequence[float], start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """The half-open index range of the frames with ``start_s`` <= time < ``end_s``; None is the video's own end."""
    low = 0 if start_s is None else bisect_left(times_s, start_s - _ROUNDING_S)
    high = len(times_s) if end_s is None else bisect_left(times_s, end_s - _ROUNDING_S)
    return low, max(low, high)
