"""The figures of the README and of docs/benchmarks.md are those of the committed measurements."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from doc_pages import ROOT

from benchmarks.peers import table as peers_table
from scripts import (
    full_size_tensorrt,
    plot_ablation,
    plot_full_size_quantized,
    plot_quantization,
    speculation,
    support_matrix,
)
from scripts.page_tables import replace_table
from scripts.plot_full_size_quantized import speeds as speeds_of_quantized
from scripts.plot_full_size_quantized import tables as tables_of_full_size

README = (ROOT / "README.md").read_text("utf-8")
PAGE = (ROOT / "docs/benchmarks.md").read_text("utf-8")
PEERS = (ROOT / "docs/peers.md").read_text("utf-8")
TRAINING = (ROOT / "docs/training.md").read_text("utf-8")


def read(path: str) -> Any:
    return json.loads((ROOT / path).read_text("utf-8"))


TINY = read("benchmarks/results/bench-cpu.json")
FULL_SIZE = {step["name"]: step for step in read("benchmarks/results/full-size-cpu.json")["steps"]}


FULL_SIZE_INT8 = read("benchmarks/results/bench-full-size.json")
QUANTIZED = read("benchmarks/results/full-size-quantized.json")


def test_the_scores_are_the_committed_ones() -> None:
    """Every cell of the accuracy table, from the reports of the two models."""
    paths = ("blip3v/models/tiny-tokenlearner/evaluation.json", "benchmarks/results/tiny-single-frame-evaluation.json")
    model, one_frame = map(read, paths)
    want = {
        kind["kind"]: (kind["exact_match"], single["exact_match"], kind["commonest"], kind["blind"])
        for kind, single in zip(model["kinds"], one_frame["kinds"], strict=True)
    }
    want["all"] = (model["exact_match"], one_frame["exact_match"], model["commonest"], model["blind"])
    for kind, values in want.items():
        row = re.search(rf"^\| {kind} \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
        assert row is not None, kind
        assert [float(cell) for cell in row.groups()] == [round(100 * value, 1) for value in values], kind


@pytest.mark.parametrize("encoder", ["gttm", "none"])
def test_the_scores_in_the_text_are_the_committed_ones(encoder: str) -> None:
    report = read(f"blip3v/models/tiny-{encoder}/evaluation.json")
    assert f"`{encoder}` ({100 * report['exact_match']:.1f} %)" in PAGE


def speeds(row: dict[str, Any]) -> list[str]:
    """The four cells of a row: the whole chain and the language model, each with its ratio."""
    cells = []
    for part in ("whole_chain", "language_model"):
        speed, ratio = row[part]["samples_per_s"], row[part]["ratio"]
        cells += [f"{speed:.3g}", f"{1.0 if ratio is None else ratio:.2f}x"]
    return cells


def test_the_speeds_of_tiny_are_the_committed_ones() -> None:
    for row in TINY["rows"]:
        encoder = row["encoder"] + ("" if row["weights"] == "trained" else f" ({row['weights']})")
        assert f"| {' | '.join([str(row['num_video_tokens']), encoder, *speeds(row)])} |" in PAGE


def test_the_times_from_a_file_are_the_committed_ones() -> None:
    steps = {step["name"]: step for step in read("benchmarks/results/video-speed.json")["steps"]}
    names = {
        "PyAV's loop": "PyAV loop",
        "blip3v": "blip3v",
        "blip3v, decoder process started ahead": "blip3v, process ahead",
        "blip3v before (`0c71cff`)": "base",
    }
    clip = steps["clip"]
    for shown, name in names.items():
        assert f"| {shown} | {1e3 * clip['median_s'][name]:.0f} ms | {clip['ratio'][name]:.2f}x |" in PAGE, name
    text, off = " ".join(PAGE.split()), steps["decoding"]["ratio"]
    assert f"keyframes {off['in one thread']:.2f}x the time" in text
    assert f"decoded too {off['with pictures that nothing refers to']:.2f}x" in text
    answer, at_once = steps["answer"], steps["answer without a pause"]
    ours_ms, base_ms = (1e3 * answer["median_s"][name] for name in ("blip3v", "base"))
    assert f"takes {ours_ms:.0f} ms instead of {base_ms:.0f} ({answer['ratio']['base']:.2f}x" in text
    assert f"requests; {at_once['ratio']['base']:.2f}x without" in text


def test_the_speed_of_the_loader_is_the_committed_one() -> None:
    """And at least three times that of the code before the workers."""
    (found,) = read("benchmarks/results/loader-speed.json")["steps"]
    names = {
        "blip3v before (`f364baa`)": "base",
        "blip3v, no workers": "blip3v, no workers",
        "blip3v, workers": "blip3v, workers",
    }
    for shown, name in names.items():
        assert f"| {shown} | {found['clips_per_s'][name]:.1f} | {found['speedup'][name]:.2f}x |" in TRAINING, name
    assert found["speedup"]["blip3v, workers"] >= 3


def test_the_costs_of_the_4b_model_are_the_measured_ones() -> None:
    for name, step in FULL_SIZE.items():
        peak = f"{step['peak_rss_bytes'] / 2**30:.1f} GiB" if "peak_rss_bytes" in step else "[^|]*"
        disk = f"{step['size_bytes'] / 1e9:.1f} GB" if "size_bytes" in step else "[^|]*"
        assert re.search(rf"^\| {name} \| {step['seconds']:.0f} s \| {peak} \| {disk} \|$", PAGE, re.MULTILINE), name
    exports = [step for step in FULL_SIZE.values() if "parity" in step]
    worst = max(row["relative_error"] for step in exports for row in step["parity"]["comparisons"])
    assert f"worst relative error {worst:.1e}" in PAGE
    assert all(step["peak_rss_bytes"] < 20 * 2**30 for step in FULL_SIZE.values() if "peak_rss_bytes" in step)
    assert all(step["parity"]["passed"] and step["parity"]["tokens"]["differing"] == 0 for step in exports)
    asked, opened = FULL_SIZE["ask"]["timings"], FULL_SIZE["bench"]["bench"]["rows"][0]["open_s"]
    video_s, prompt_s = asked["encode_s"], asked["prefill_s"]
    spent = f"{opened:.0f} s on opening, {video_s:.0f} s on the video, {prompt_s:.1f} s on the prompt"
    assert f"{spent} and {asked['per_token_s']:.2f} s on a token" in " ".join(PAGE.split())


def test_the_speeds_of_the_4b_model_are_the_committed_ones() -> None:
    for row in FULL_SIZE["bench"]["bench"]["rows"]:
        further = [f"{row['stages']['prefill_s']['p50']:.1f} s", f"{row['tokens_per_s']:.2f}"]
        assert f"| {' | '.join([str(row['num_video_tokens']), *speeds(row), *further])} |" in PAGE


def test_the_speeds_of_the_4b_model_in_int8_are_the_committed_ones() -> None:
    shares = [{share["stage"]: share["share"] for share in row["shares"]} for row in FULL_SIZE_INT8["rows"]]
    for row, share in zip(FULL_SIZE_INT8["rows"], shares, strict=True):
        further = [f"{row['stages']['prefill_s']['p50']:.2f} s", f"{row['tokens_per_s']:.2f}"]
        cells = [str(row["num_video_tokens"]), *speeds(row), *further, f"{100 * share['decode_step']:.0f} %"]
        assert f"| {' | '.join(cells)} |" in PAGE
    text, encoder_s = " ".join(PAGE.split()), FULL_SIZE_INT8["rows"][0]["stages"]["video_encoder_s"]["p50"]
    most = 100 * max(share["video_encoder"] for share in shares)
    assert f"takes {encoder_s:.1f} s in every row, {most:.0f} % of what" in text
    one, eight = (row["tokens_per_s"] for row in read("benchmarks/results/bench-full-size-batch.json")["rows"])
    assert f"get {eight / one:.1f} times the tokens per second of one" in text


def test_the_readme_says_the_same() -> None:
    """Its table joins those of both models; its sentence names the export and an answer."""
    large = {row["num_video_tokens"]: row for row in FULL_SIZE_INT8["rows"]}
    for row in TINY["rows"]:
        num_tokens = row["num_video_tokens"]
        assert f"| {' | '.join([str(num_tokens), *speeds(row), *speeds(large[num_tokens])])} |" in README
    export, ask = FULL_SIZE["export random weights"], FULL_SIZE["ask"]
    peaks = [f"{step['peak_rss_bytes'] / 2**30:.1f} GiB" for step in (export, ask)]
    disk = f"{export['size_bytes'] / 1e9:.1f} GB"
    assert f"export {export['seconds']:.0f} s and {peaks[0]} at the peak, {disk} on disk" in README
    assert f"with opening {ask['seconds']:.0f} s and {peaks[1]}" in README
    assert f"as a bundle of {disk} |" in README


def test_the_readme_says_what_quantising_the_4b_model_gives() -> None:
    steps = {step["name"]: step for step in QUANTIZED["steps"]}
    on_disk = [f"{steps[f'export {name}']['size_bytes'] / 1e9:.1f}" for name in ("int8", "int4")]
    asked = [steps[f"ask {name} on onnxruntime"]["median"] for name in ("int8", "int4")]
    resident = [f"{answer['resident_while_asking']['rss_bytes'] / 2**30:.1f}" for answer in asked]
    text = " ".join(README.split())
    opening = [f"{answer['open_s']:.1f}" for answer in asked]
    figures = [
        f"{on_disk[0]} and {on_disk[1]} GB on disk",
        f"opens in {opening[0]} and {opening[1]} s",
        f"and answers from {resident[0]} and {resident[1]} GiB",
    ]
    assert ", ".join(figures) in text
    ratios = {
        (speed.part, speed.form): f"{speed.ratio:.1f} times as fast in {speed.form}"
        for speed in speeds_of_quantized(QUANTIZED)
        if speed.backend == "onnxruntime"
    }
    decoder = "12 decoder layers and head"
    assert f"the video encoder is {ratios['whole video encoder', 'int8']}" in text
    assert f"read a prompt {ratios[f'{decoder}, prompt of 160 tokens', 'int8']}" in text
    assert f"write a token {ratios[f'{decoder}, one token', 'int4']}" in text


@pytest.mark.parametrize(
    ("script", "page", "result"),
    [
        (support_matrix, "support-matrix.md", "support-matrix.json"),
        (full_size_tensorrt, "tensorrt.md", "full-size-tensorrt.json"),
    ],
    ids=["support matrix", "engines at full width"],
)
def test_the_tables_of_tensorrt_are_made_from_the_results(script: Any, page: str, result: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    made = replace_table(text, script.SCRIPT, script.table(read(f"benchmarks/results/{result}")))
    assert made == text, f"run scripts/{script.SCRIPT}, as the page says"


@pytest.mark.parametrize(
    ("script", "result"),
    [
        (plot_quantization.SCRIPT, "quantization.json"),
        (plot_full_size_quantized.SCRIPT, "full-size-quantized.json"),
    ],
)
def test_the_tables_of_quantised_models_are_made_from_the_results(script: str, result: str) -> None:
    table = {plot_quantization.SCRIPT: plot_quantization.tables, plot_full_size_quantized.SCRIPT: tables_of_full_size}
    page = (ROOT / "docs/quantization.md").read_text("utf-8")
    made = replace_table(page, script, table[script](read(f"benchmarks/results/{result}")))
    assert made == page, f"run scripts/{script}, as the page says"


def test_the_table_of_other_stacks_is_made_from_the_results() -> None:
    text = (ROOT / "docs/peers.md").read_text("utf-8")
    results = [read(f"benchmarks/results/{name}.json") for name in ("peers-full-size", "peers")]
    made = replace_table(text, peers_table.SCRIPT, peers_table.tables(results))
    assert made == text, f"run {peers_table.SCRIPT}, as the page says"


def test_the_tables_and_words_of_the_ablations_are_made_from_the_results() -> None:
    text = (ROOT / "docs/study.md").read_text("utf-8")
    report = read("benchmarks/results/ablation.json")
    made = text
    for table, rows in plot_ablation.tables(report).items():
        made = replace_table(made, plot_ablation.marker(table), rows)
    assert made == text, f"run scripts/{plot_ablation.SCRIPT}, as the page says"
    right = {step["name"].removesuffix(", seed 1"): 100 * step["evaluation"]["exact_match"] for step in report["steps"]}
    best = max(value for name, value in right.items() if name.endswith(" 128"))
    assert f"here it is {best - right['single-frame 128']:.0f} below" in text
    stamps = right["tokenlearner 128"] - right["tokenlearner 128 time_stamps=False"]
    assert f"Time stamps alone are worth {stamps:.0f} points" in text
    losses = {step["name"]: step["loss"][-1][1] for step in report["steps"] if "loss" in step}
    ours, theirs = (losses[f"{name} 128, seed 1"] for name in ("tokenlearner", "pllava"))
    assert f"(`pllava`, 128 tokens: {theirs:.2f}; `tokenlearner`: {ours:.2f})" in text
    (longer,) = [step["evaluation"] for step in read("benchmarks/results/ablation-longer.json")["steps"]]
    whole, time = (f"{100 * longer[key]:.1f} %" for key in ("exact_match", "exact_match_time"))
    assert f"answers\n{whole}, and {time} of what needs time" in text


def ratio(part: str, ours: str, peer: str, figure: str) -> float:
    """Seconds of a peer by those of the whole decoder's ``ours``, each as a ratio to what both were measured beside."""
    groups = [group for group in read("benchmarks/results/peers-full-size.json")["groups"] if group["part"] == part]
    found = {name: row[figure]["ratio"] for group in groups for name, row in group["summary"].items()}
    return float(found[peer] / found[ours])


def test_the_ratios_to_the_fastest_stack_are_those_of_the_results() -> None:
    """The peers of each row are all that were measured; the fastest of them counts."""
    openvino = {bits: (f"openvino-genai-{bits}", f"openvino-genai-{bits}-f32") for bits in ("int8", "int4")}
    decoders = {"int8": openvino["int8"], "int4": (*openvino["int4"], "genai-int4")}

    cells = {
        "prompt of 160 tokens": ("ours-int8", "ours-int4-prompts-int8", None, "prefill_160_s"),
        "prompt of 1152 tokens": ("ours-int8", "ours-int4-prompts-int8", None, "prefill_1152_s"),
        "token after 160": ("ours-int8", "ours-int4", "ours-cache-int4", "step_160_s"),
        "token after 1152": ("ours-int8", "ours-int4", "ours-cache-int4", "step_1152_s"),
    }
    for row, (int8, int4, cached, figure) in cells.items():
        (line,) = [line for line in PEERS.splitlines() if line.startswith(f"| {row} |")]
        shown = [float(number) for number in re.findall(r"\d\.\d\d", line)]
        want = [min(ratio("decoder", int8, peer, figure) for peer in decoders["int8"])]
        want += [
            min(ratio("decoder", ours, peer, figure) for peer in decoders["int4"])
            for ours in (int4, cached)
            if ours is not None
        ]
        assert shown == [round(number, 2) for number in want], row
    for row, suffix in (("as they come", ""), ("better hint", "-mixed")):
        (line,) = [line for line in PEERS.splitlines() if line.startswith("| answer") and row in line]
        shown = [float(number) for number in re.findall(r"\d\.\d\d", line)]
        want = [
            ratio("answer", "answer-ours-int8", f"answer-openvino-int8{suffix}", "answer_s"),
            ratio("answer", "answer-ours-int4-prompts-int8", f"answer-openvino-int4{suffix}", "answer_s"),
        ]
        assert shown == [round(number, 2) for number in want], row


def test_the_tables_of_speculation_are_made_from_the_results() -> None:
    made = replace_table(PAGE, speculation.SCRIPT, speculation.table(read("benchmarks/results/speculation.json")))
    assert made == PAGE, f"run scripts/{speculation.SCRIPT}, as the page says"


def test_the_times_of_packed_weights_are_the_committed_ones() -> None:
    result = read("benchmarks/results/open-speed.json")["medians"]
    page = " ".join((ROOT / "docs/backends.md").read_text("utf-8").split())
    packed, plain = result["with"], result["without"]
    assert f"opens in {packed['open_s']:.2f} s instead of {plain['open_s']:.2f}" in page
    mebibytes, gibibytes = packed["anonymous_bytes"] / 2**20, plain["anonymous_bytes"] / 2**30
    assert f"holds {mebibytes:.0f} MiB outside of mapped files instead of {gibibytes:.2f} GiB" in page


def test_what_the_bundles_lose_on_a_benchmark_is_the_measured_loss() -> None:
    page = (ROOT / "docs/evaluation.md").read_text("utf-8")
    rows = read("benchmarks/results/film-benchmark.json")["rows"]
    assert [row["comparison"]["model"]["precision"] for row in rows] == ["fp16", "int8", "int4"]
    for row in rows:
        compared = row["comparison"]
        (score,) = [one for one in compared["scores"] if one["name"] == "normalised match"]
        assert compared["reference"]["model"] == "tiny-tokenlearner"
        assert score["num"] == compared["num_compared"] == 2000
        shares = [f"{100 * score[name]:.2f} %" for name in ("reference", "model")]
        lost, low, high = (100 * score[name] for name in ("lost", "low", "high"))
        counts = [str(count) for count in (compared["num_changed"], score["num_lost"], score["num_gained"])]
        cells = [compared["model"]["precision"], *shares, f"{lost:.2f} ({low:.2f} to {high:.2f})", *counts]
        assert f"| {' | '.join(cells)} |" in page
