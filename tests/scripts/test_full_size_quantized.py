"""The measurements at full size: ratios within a round, the cut models, and steps that are not run again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from blip3v.config import preset
from scripts import full_size_quantized, full_size_report
from scripts.full_size_quantized import COMPARISONS, FORMS, summary
from scripts.full_size_report import Report

OPTIONS = argparse.Namespace(preset="xgen-mm-vid", decoder_layers=12, vision_layers=9)


def run(number: int, cut: str, form: str, seconds: float) -> dict[str, Any]:
    return {"round": number, "cut": cut, "form": form, "encode_s": seconds}


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    """A machine that slows down in one round slows both sides of its ratio."""
    runs = []
    for number, (fp32_s, int8_s) in enumerate([(4, 2), (40, 10), (9, 3)]):
        runs += [run(number, "a", "fp32", fp32_s), run(number, "a", "int8", int8_s)]
    fp32, int8 = summary(runs)["graphs"]
    assert (fp32["median_s"], fp32["fp32_to_this"]) == (9, 1)
    assert (int8["median_s"], int8["fp32_to_this"], int8["lowest"], int8["highest"]) == (3, 3, 2, 4)


def test_layers_are_the_difference_between_two_graphs() -> None:
    runs = [run(0, "nine", "fp32", 10), run(0, "nine", "int8", 5), run(0, "one", "fp32", 2), run(0, "one", "int8", 3)]
    between = {row["form"]: row for row in summary(runs)["between"]}
    assert (between["int8"]["median_s"], between["int8"]["fp32_to_this"]) == (2, 4)
    assert (between["int8"]["of"], between["int8"]["less"]) == ("nine", "one")


def test_of_several_answers_the_medians_are_shown() -> None:
    runs = [{"computed": "int8", "timings": {"encode_s": s, "num_steps": 15}, "open_s": 2 * s} for s in (3.0, 1.0, 8.0)]
    expected = {"computed": "int8", "timings": {"encode_s": 3.0, "num_steps": 15}, "open_s": 6.0}
    assert full_size_quantized._medians(runs) == expected


def test_cut_models_keep_the_full_width() -> None:
    cuts = full_size_quantized._cuts(OPTIONS)
    full = preset("xgen-mm-vid")
    assert {name for comparison in COMPARISONS for name in comparison.cuts} == set(cuts)
    for cut in cuts.values():
        assert set(cut.forms) <= set(FORMS)
        assert cut.config.text.hidden_size == full.text.hidden_size
        assert cut.config.vision.hidden_size == full.vision.hidden_size
    assert (cuts["decoder"].config.text.num_layers, cuts["vision"].config.vision.num_layers) == (12, 9)
    assert cuts["whole video encoder"].config.vision == full.vision
    assert cuts["whole video encoder"].config.temporal == full.temporal


def test_a_step_is_run_once_and_shows_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Any] = []

    def run_command(command: Any) -> str:
        commands.append(command)
        return '{"seconds": 1.5, "size_bytes": 7}'

    monkeypatch.setattr(full_size_report, "run_command", run_command)
    for _ in range(2):
        report = Report(tmp_path / "folder", tmp_path / "result.json", {})
        step = report.command("export int8", ["export"], tmp_path / "folder" / "bundle", ("seconds", "size_bytes"))
        assert (step["seconds"], step["size_bytes"]) == (1.5, 7)
        assert step["command"] == "blip3v export -o FOLDER/bundle --force"
    assert len(commands) == 1
