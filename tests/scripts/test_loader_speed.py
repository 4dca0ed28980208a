"""The measurement of the loader: its rates, and that a side of today's code runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.full_size_report import ROOT
from scripts.loader_speed import CLIPS_PER_SAMPLE, SAMPLES, SIDES, rates, write_clips
from scripts.loader_speed_samples import BATCHES_PER_SAMPLE, CLIPS_PER_BATCH
from scripts.loader_speed_samples import SIDES as SAMPLED
from scripts.video_speed import OURS, compare


def test_a_speedup_is_the_median_of_those_within_a_round() -> None:
    found = rates({"median_s": {"base": 8.0, "ours": 2.0}, "seconds": {"base": [8.0, 9.0], "ours": [2.0, 3.0]}})
    assert found["clips_per_s"] == {"base": 4.0, "ours": 16.0}
    assert found["speedup"] == {"base": 1.0, "ours": pytest.approx(3.5)}


def test_sides_and_sizes_are_those_of_the_samples() -> None:
    assert {side.does for side in SIDES} == set(SAMPLED)
    assert CLIPS_PER_SAMPLE == BATCHES_PER_SAMPLE * CLIPS_PER_BATCH


@pytest.mark.slow
def test_both_sides_of_this_code_agree(tmp_path: Path) -> None:
    listed = write_clips(tmp_path, num_clips=2, height=240)
    found = compare(SIDES[1:], {OURS: ROOT}, [str(listed)], 1, script=SAMPLES)
    assert set(found["median_s"]) == {"blip3v, workers", "blip3v, no workers"}
