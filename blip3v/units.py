"""Human-readable sizes, counts, durations, rates and ratios. One rule: three digits, and never an exponent.

A number below a thousand is shown with three significant digits, a larger one with all the digits before the point, so
that only zero is written as zero. Files and JSON hold the exact numbers.
"""

from __future__ import annotations

import math

__all__ = [
    "format_bytes",
    "format_count",
    "format_duration",
    "format_frame",
    "format_number",
    "format_ratio",
    "format_time",
]

_UNITS = ("B", "KiB", "MiB", "GiB")


def format_number(value: float) -> str:
    """A rate, or any number whose unit is given next to it: 0.0145, 4.14, 51.6, 1234."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.2e}")  # 9.996 has as many digits before the point as 10
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def format_bytes(num_bytes: int) -> str:
    """A size in binary units: 512 B, 1.50 KiB, 64.0 MiB, 17.4 GiB."""
    size, unit = float(num_bytes), 0
    while round(size) >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{format_number(size) if unit else num_bytes} {_UNITS[unit]}"


def format_count(count: int, noun: str) -> str:
    """A number of things: 1 clip, 2 clips, 2000 questions.

    Args:
        count: how many.
        noun: in the singular; its plural ends in "s".
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_duration(seconds: float) -> str:
    """How long something took or takes: 4.56 ms, 12.3 s, 386 s."""
    if 0 < seconds < 0.9995:
        return f"{format_number(1000 * seconds)} ms"
    return f"{format_number(seconds)} s"


def format_time(seconds: float) -> str:
    """A time within a clip, to the hundredth of a second: 1.28 s."""
    return f"{seconds:.2f} s"


def format_frame(index: int, time_s: float | None) -> str:
    """A frame of a clip, with its time if it has one: 32 (1.28 s)."""
    return str(index) if time_s is None else f"{index} ({format_time(time_s)})"


def format_ratio(value: float) -> str:
    """A speed relative to another, to two decimals: 1.21x."""
    return f"{value:.2f}x"
