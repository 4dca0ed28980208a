"""What ``blip3v bench`` shows of a measurement."""

from __future__ import annotations

import io

from bench_samples import report, row
from rich.console import Console

from blip3v.bench import BenchReport
from blip3v.commands.bench_tables import print_report


def printed(found: BenchReport) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_report(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_the_baseline_there_are_no_ratios() -> None:
    assert "No ratios: nothing was measured with all tokens" in printed(report(row([1, 2], encoder="tokenlearner")))


def test_one_bundle_at_several_counts_is_named_in_the_notes() -> None:
    own, all_of_them = row([1, 1], encoder="gttm"), row([2, 2], encoder="gttm", num_video_tokens=1024)
    assert "gttm's 32 tokens, repeated or cut" in printed(report(all_of_them, own))
    assert "repeated or cut" not in printed(report(own))


def test_tables_show_speeds_ratios_stages_and_what_is_untrained() -> None:
    text = printed(report(row([1, 1]), row([0.5, 0.5], encoder="tokenlearner", weights="untrained")))
    lines = text.splitlines()
    untrained = next(line for line in lines if "tokenlearner fp16, untrained" in line)
    assert untrained.split() == [
        "32",
        "tokenlearner",
        "fp16,",
        "untrained",
        "0.0769",
        "2.00x",
        "0.103",
        "2.00x",
        "128",
    ]
    assert "New tokens per second, by video tokens: 2.00 with 1024, 4.00 with 32." in text
    assert "their answers mean nothing" in text
    assert "Stored fp16, computed fp32 on ONNX Runtime CPU." in text
    prefill = next(line for line in lines if "prefill" in line and "±" in line)
    assert prefill.split() == ["prefill", "4000", "±", "0", "4000", "4000", "4000", "2"]
    assert "Load average before 0.1, after 1.5" in text
    assert all(len(line.rstrip()) <= 80 for line in lines if "±" in line or "x " in line)


def test_trained_rows_carry_no_warning() -> None:
    assert "mean nothing" not in printed(report(row([1, 1])))
