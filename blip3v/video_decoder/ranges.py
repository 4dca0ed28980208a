"""Which frames lie between two times. Shared by the decoder process and by images and arrays."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from blip3v.errors import UsageError

__all__ = ["check_range", "frames_between"]

# Times are multiples of a time base: this absorbs the error of rounding them to a float and to six printed digits.
_ROUNDING_S = 5e-7


def check_range(start_s: float | None, end_s: float | None) -> None:
    """Refuses a range that no video can have.

    Raises:
        UsageError: a time that is negative or not a number, or an end that is not after the start.
    """
    for name, value in (("start", start_s), ("end", end_s)):
        if value is not None and (not math.isfinite(value) or value < 0):
            raise UsageError(f"{name} is {value} s; a time from 0 on is needed, counted from the video's first frame")
    if end_s is not None and end_s <= (start_s or 0.0):
        raise UsageError(f"end is {end_s} s, not after start ({start_s or 0.0} s); give an end after the start")


def frames_between(times_s: Sequence[float], start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """The half-open index range of the frames with ``start_s`` <= time < ``end_s``; None is the video's own end."""
    low = 0 if start_s is None else bisect_left(times_s, start_s - _ROUNDING_S)
    high = len(times_s) if end_s is None else bisect_left(times_s, end_s - _ROUNDING_S)
    return low, max(low, high)
