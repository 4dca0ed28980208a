"""Which frames lie between two times. Shared by the decoder process and by images and arrays."""

from __future__ import annotations

import math
import numbers
from bisect import bisect_left
from collections.abc import Sequence
from typing import cast

from blip3v.errors import UsageError

__all__ = ["check_range", "frames_between"]

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


def _time(name: str, value: object) -> float | None:
    if value is None:
        return None
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        time_s = float(cast("float", value)) if number else math.nan
    except OverflowError:  # an int beyond the largest float
        time_s = math.inf
    if not 0 <= time_s < math.inf:
        shown = f"{time_s} s" if number else repr(value)
        raise UsageError(f"{name} is {shown}; a time from 0 s on is needed, counted from the video's first frame")
    return time_s


def frames_between(times_s: Sequence[float], start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """The half-open index range of the frames with ``start_s`` <= time < ``end_s``; None is the video's own end."""
    low = 0 if start_s is None else bisect_left(times_s, start_s - _ROUNDING_S)
    high = len(times_s) if end_s is None else bisect_left(times_s, end_s - _ROUNDING_S)
    return low, max(low, high)
