"""What ``blip3v bench`` shows of a measurement."""

from __future__ import annotations

import dataclasses
import io

from bench_samples import report, row
from rich.console import Console

from blip3v.bench import BenchReport, Shape
from blip3v.bench.compare import compare
from blip3v.bench.limits import GemmRate, Limits
from blip3v.bench.work import Work
from blip3v.commands.bench_tables import print_comparison, print_report


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


def test_shares_name_their_limit_and_what_is_not_known() -> None:
    work = Work(
        video_encoder_operations=3 * 10**9,
        video_encoder_kind="float32",
        prefill_operations=8 * 10**9,
        decoder_kind="int8",
        step_bytes=10**9,
    )
    gemm = (GemmRate(backend="openvino", kind="float32", operations_per_s=4e9),)
    limits = Limits(threads=2, read_bytes_per_s=4e9, read_problem=None, cache_bytes=2**31, gemm=gemm)
    found = report(dataclasses.replace(row([1, 1]), work=work))
    text = printed(dataclasses.replace(found, limits=limits))
    lines = {words[0]: words for words in map(str.split, text[text.index("shares of this") :].splitlines()) if words}
    assert lines["1024"] == ["1024", "video", "encoder", "fp32", "GEMM", "1.00", "Gop/s", "4.00", "Gop/s", "25", "%"]
    assert lines["decode"] == ["decode", "step", "memory", "bandwidth", "2.00", "GB/s", "4.00", "GB/s", "50", "%"]
    assert "not known" in text
    assert lines["prefill"][-1] == "-"
    assert "Limits, measured first with 2 threads: memory read 4.00 GB/s." in text
    assert "may hold: such a share says little" in text
    unknown = dataclasses.replace(limits, read_bytes_per_s=None, read_problem="the caches are too large")
    assert "memory read not measured (the caches are too large)" in printed(dataclasses.replace(found, limits=unknown))
    assert "shares of" not in printed(found)


def test_batches_and_requests_at_once_are_named() -> None:
    batch = dataclasses.replace(row([2, 2]), shape=Shape(batch_size=4))
    at_once = dataclasses.replace(row([2, 2]), shape=Shape(requests_at_once=4))
    text = printed(report(row([1, 1]), batch, at_once))
    speeds = [line.split() for line in text.splitlines() if "none fp16" in line]
    assert [words[3:5] for words in speeds] == [["batch", "1"], ["batch", "4"], ["4", "at"]]
    assert speeds[2][-3:-1] == ["-", "-"]
    assert "their stages overlap" in text
    assert any(line.startswith("  1024, 4 at once") for line in text.splitlines())


def test_a_comparison_shows_what_is_worse() -> None:
    before, now = report(row([1, 1])).to_dict(), report(row([1, 1])).to_dict()
    now["rows"][0]["stages"]["prefill_s"]["p50"] *= 1.5
    found = compare(now, before, tolerance=0.1, differences=["cpu was a and is b"])
    console = Console(file=io.StringIO(), width=80)
    print_comparison(found, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    prefill = next(line.split() for line in text.splitlines() if "prefill" in line)
    assert prefill == ["1024", "prefill", "4000", "6000", "1.50x", "worse"]
    assert "1 of 8 medians worse by more than 10 %." in text
    assert "Not comparable, and compared as asked: cpu was a and is b." in text
    assert next(line.split()[1] for line in text.splitlines() if "10500" in line) == "TTFT"


def test_trained_rows_carry_no_warning() -> None:
    assert "mean nothing" not in printed(report(row([1, 1])))
