"""The measurement of the way from a file to frames: ratios within a round, sides in turns, and that they agree."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from scripts import video_speed
from scripts.full_size_report import ROOT
from scripts.video_speed import CLIPS, DECODING, OURS, compare, summary, write_film
from scripts.video_speed_samples import SIDES


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    found = summary({"loop": [4.0, 40.0, 9.0], "ours": [2.0, 10.0, 3.0]})
    assert found["median_s"] == {"loop": 9.0, "ours": 3.0}
    assert found["ratio"] == {"loop": 1.0, "ours": pytest.approx(1 / 3)}


def test_every_side_exists() -> None:
    assert {side.does for side in (*CLIPS, *DECODING, *video_speed.ANSWERS)} == set(SIDES)


def test_sides_are_measured_in_turns_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_speed, "WARM_UPS", 0)
    film = tmp_path / "film.mp4"
    write_film(film, 12)
    found = compare(CLIPS[:2], {OURS: ROOT}, [str(film)], 1)
    assert set(found["median_s"]) == {"PyAV loop", "blip3v"}
    assert all(seconds > 0 for seconds in found["cpu_s"].values())


def test_sides_that_disagree_end_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter(("a", "b"))
    monkeypatch.setattr(video_speed, "WARM_UPS", 0)
    monkeypatch.setattr(video_speed, "_worker", lambda *arguments: nullcontext())
    monkeypatch.setattr(video_speed, "_ask", lambda worker: {"seconds": 1.0, "cpu_s": 1.0, "sha256": next(found)})
    with pytest.raises(SystemExit, match="do not agree: PyAV loop, blip3v"):
        compare(CLIPS[:2], {OURS: ROOT}, [str(tmp_path)], 1)
