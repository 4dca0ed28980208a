"""One rounding rule for every number that people read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3v.units import format_bytes, format_count, format_duration, format_number, format_ratio, format_time


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[
            (0, "0"),
            (0.0145, "0.0145"),
            (4.14, "4.14"),
            (51.6, "51.6"),
            (2.0, "2.00"),
            (9.996, "10.0"),
            (999.7, "1000"),
        ],
        *[(1023.4, "1023"), (-12.34, "-12.3"), (float("nan"), "nan"), (float("inf"), "inf")],
    ],
    ids=str,
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


@given(st.floats(1e-9, 1e9))
def test_a_number_is_written_to_half_a_percent_and_never_as_zero(value: float) -> None:
    text = format_number(value)
    assert re.fullmatch(r"\d+(\.\d+)?", text)
    assert float(text) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        *[(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (5 * 2**20, "5.00 MiB"), (3 * 2**30, "3.00 GiB")],
        *[(2**20 - 1, "1.00 MiB"), (100 * 2**20, "100 MiB"), (1000 * 2**20, "1000 MiB"), (5000 * 2**30, "5000 GiB")],
    ],
    ids=str,
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@given(st.integers(1, 2**40))
def test_a_size_is_never_shown_as_nothing(num_bytes: int) -> None:
    assert float(format_bytes(num_bytes).split()[0]) > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.00456, "4.56 ms"),
        (0.9994, "999 ms"),
        (0.9997, "1.00 s"),
        (1.0, "1.00 s"),
        (12.34, "12.3 s"),
        (386.4, "386 s"),
    ],
    ids=str,
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 clips"), (1, "1 clip"), (2, "2 clips"), (2000, "2000 clips")])
def test_one_thing_is_in_the_singular(count: int, text: str) -> None:
    """`data --count 1` said "1 clips"."""
    assert format_count(count, "clip") == text


def test_a_time_and_a_ratio_have_two_decimals() -> None:
    assert (format_time(0.16), format_ratio(1.2051)) == ("0.16 s", "1.21x")
