"""What identifies data: every part of a sample, but not where its video lies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from blip3v.data.digests import digest_of_samples
from blip3v.data.records import ClipSample, Turn


def test_every_part_of_a_sample_is_in_the_digest() -> None:
    one = ClipSample(Path("/data/0.mp4"), (Turn("q", "yes"),), key="0", references=("a",), kind="TN")
    changes: tuple[dict, ...] = (
        {"video": Path("/data/1.mp4")},
        {"turns": (Turn("q", "no"),)},
        {"start_s": 1.0},
        {"end_s": 1.0},
        {"key": "1"},
        {"options": ("yes",)},
        {"references": ("b",)},
        {"kind": "TC"},
    )
    assert {name for change in changes for name in change} == {field.name for field in dataclasses.fields(ClipSample)}
    others = [dataclasses.replace(one, **change) for change in changes]
    digests = {digest_of_samples(samples) for samples in ([], [one], [one, one], *([other] for other in others))}
    assert len(digests) == 3 + len(others)
    assert digest_of_samples([dataclasses.replace(one, video=Path("/elsewhere/0.mp4"))]) == digest_of_samples([one])
