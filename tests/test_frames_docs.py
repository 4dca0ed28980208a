"""docs/frames.md: its table and its sentences are what the sampler, the limits and the bundles really do."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from blip3v.units import format_bytes
from blip3v.video import VideoLimits, sample_indices
from scripts import draw_frames

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/frames.md").read_text("utf-8")

ROWS = re.findall(r"^\| (\d+) \| ([\d, ]+) \| (\d+) \|$", PAGE, re.MULTILINE)


def test_the_table_is_the_one_that_the_script_writes() -> None:
    command = "python scripts/draw_frames.py docs/frames.md docs/frames.png"
    assert draw_frames.with_table(PAGE) == PAGE, f"run: {command}"
    assert set(draw_frames.DRAWN) <= set(draw_frames.LISTED) == {int(count) for count, *_ in ROWS}


@pytest.mark.parametrize(("count", "seen", "different"), ROWS, ids=[count for count, *_ in ROWS])
def test_every_row_is_what_the_released_script_takes(count: str, seen: str, different: str) -> None:
    """The numbers by the formula of the page, not by our sampler."""
    length = int(count)
    first, last = (4, length - 4) if length >= 8 else (0, length - 1)
    expected = [int(first + (last - first) * slot / 7) for slot in range(8)]
    assert [int(index) for index in seen.split(", ")] == expected
    assert int(different) == len(set(expected))


@pytest.mark.parametrize("num_frames", [2, 4, 8, 16, 32])
def test_what_the_page_says_of_every_clip(num_frames: int) -> None:
    for length in range(num_frames, 6 * num_frames):
        seen = sample_indices(length, num_frames).tolist()
        assert (min(seen), max(seen)) == (num_frames // 2, max(num_frames // 2, length - num_frames // 2))
        assert (len(set(seen)) < num_frames) == (length < 2 * num_frames - 1)
    assert set(sample_indices(num_frames, num_frames).tolist()) == {num_frames // 2}


def test_every_limit_on_urls_has_its_default_on_the_page() -> None:
    limits = VideoLimits()
    names = [field.name for field in fields(limits)]
    for name in ("max_bytes", *names[names.index("allow_private_url") :]):
        value = getattr(limits, name)
        shown = (
            format_bytes(value).replace(".00", "") if name == "max_bytes" else f"{value!r}".removesuffix(".0").lower()
        )
        assert f"| `{name}` | {shown} |" in PAGE
