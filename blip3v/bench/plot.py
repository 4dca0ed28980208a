"""The plot of a result: samples per second over the video tokens, beside the paper's, and where the time goes.

The paper (arXiv 2410.16267) measured training on H100 GPUs: the curves share an axis to compare their shapes, never
their heights. Needs matplotlib, from the extra ``eval``, which is imported here when something is drawn.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from blip3v.bench.labels import row_labels, run_labels
from blip3v.bench.results import TRAINING, Result, kind_of
from blip3v.bench.training.rows import PAPER_SAMPLES_PER_S
from blip3v.errors import UsageError
from blip3v.publishing import write_file

__all__ = ["SUFFIXES", "check_plot", "draw"]

SUFFIXES = (".png", ".svg", ".pdf")

_GREY = "#495057"
_LEGEND = {"fontsize": 7, "frameon": False, "loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
_CURVES = ("#2a6f97", "#e07a5f", "#6a994e", "#8e7cc3", "#bc8f00", "#444444")
_STAGES = {
    "file_decode_s": ("file decode", "#adb5bd"),
    "preprocess_s": ("preprocess", "#ced4da"),
    "video_encoder_s": ("video encoder", "#e9c46a"),
    "prefill_s": ("prefill", "#2a9d8f"),
    "steps_s": ("decode steps", "#264653"),
    "other_s": ("other", "#f4a261"),
}


def check_plot(path: Path) -> None:
    """Checks, before anything is measured, that ``draw`` can draw to ``path``.

    Raises:
        UsageError: its ending is of no format.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"a plot cannot be written to {path.name}; its name has to end in {', '.join(SUFFIXES)}")
    importlib.import_module("matplotlib")


def draw(result: Result, path: Path) -> None:
    """Draws a result to a file, whose ending is one of ``SUFFIXES``; the same bytes from the same result.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib  # an extra
    from matplotlib.figure import Figure

    rows = sorted(result["rows"], key=lambda row: row["num_video_tokens"])
    figure = Figure(figsize=(11, 4.8), dpi=160)
    curves, bars = figure.subplots(1, 2)
    if kind_of(result) == TRAINING:
        _curves(curves, rows, ((TRAINING, "training steps", "-"),))
        _ratios(bars, rows)
        caption = _training_caption(result, rows)
    else:
        _curves(curves, rows, (("whole_chain", "whole chain", "-"), ("language_model", "language model", "--")))
        _bars(bars, rows)
        caption = _caption(result, rows)
    figure.text(0.5, 0.012, caption, ha="center", va="bottom", fontsize=7, color=_GREY)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    picture = io.BytesIO()
    metadata = {
        ".png": {"Software": None, "Description": _origin(result)},
        ".svg": {"Date": None, "Description": _origin(result)},
        ".pdf": {"CreationDate": None, "Subject": _origin(result)},
    }[path.suffix]
    with matplotlib.rc_context({"svg.hashsalt": "blip3v"}):
        figure.savefig(picture, format=path.suffix[1:], metadata=metadata)
    write_file(path, picture.getvalue())


def _origin(result: Result) -> str:
    """What goes into the file unseen: the command, the day and the hash of each bundle or config."""
    if kind_of(result) == TRAINING:
        hashes = {f"{row['encoder']} {row['config_sha256']}": None for row in result["rows"]}
    else:
        hashes = {f"{row['name']} {row['manifest_sha256']}": None for row in result["rows"]}
    return "; ".join([result["command"] or "blip3v bench", result["environment"]["date"], *hashes])


def _curves(axis: Any, rows: Sequence[dict[str, Any]], parts: Sequence[tuple[str, str, str]]) -> None:
    """The speed of each part over the tokens, in curves for each way in which the rows were run.

    A part is its key in a row, its label and its line style; the first's numbers stand below its points.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    labels = run_labels(rows)
    names = list(dict.fromkeys(labels))
    for colour, name in zip(cycle(_CURVES), names, strict=False):
        group = [row for row, label in zip(rows, labels, strict=True) if label == name]
        suffix = f", {name}" if name else ""
        for part, text, line in parts:
            _curve(axis, group, part, f"{text}{suffix}", f"o{line}", colour, labelled=len(names) == 1)
    counts = sorted(PAPER_SAMPLES_PER_S)
    axis.plot(
        counts,
        [PAPER_SAMPLES_PER_S[count] for count in counts],
        "s:",
        color=_GREY,
        markersize=4,
        label="the paper: training on an H100",
    )
    ticks = sorted({*PAPER_SAMPLES_PER_S, *(row["num_video_tokens"] for row in rows)})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(count) for count in ticks])
    axis.set_xticks([], minor=True)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.1, y=0.15)
    axis.set_xlabel("video tokens")
    axis.set_title("samples per second", fontsize=11, loc="left")
    axis.legend(**_LEGEND, ncols=2 if len(names) > 1 else 3, handlelength=3)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _curve(
    axis: Any, rows: Sequence[dict[str, Any]], part: str, label: str, style: str, colour: str, *, labelled: bool
) -> None:
    points = [(row["num_video_tokens"], row[part]) for row in rows if row[part]["samples_per_s"] is not None]
    if not points:
        return
    counts, speeds = [count for count, _ in points], [speed["samples_per_s"] for _, speed in points]
    axis.plot(counts, speeds, style, color=colour, label=label, markersize=4)
    for count, speed in points if labelled else ():  # several curves are too close for numbers
        text = f"{speed['samples_per_s']:.3g}"
        if speed["ratio"] is not None:
            text += f"\n{speed['ratio']:.2f}x"
        point = (count, speed["samples_per_s"])
        place = {"xytext": (0, -4), "va": "top"} if part != "language_model" else {"xytext": (0, 4), "va": "bottom"}
        axis.annotate(text, point, textcoords="offset points", ha="center", fontsize=7, **place)


def _bars(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    """The median seconds of each stage of a turn, in a bar for each row."""
    seconds = {name: [max(0.0, _stage_s(row, name)) for row in rows] for name in _STAGES}
    left = [0.0] * len(rows)
    longest_s = max(sum(values) for values in zip(*seconds.values(), strict=True))
    unit, per_second = ("seconds", 1) if longest_s >= 2 else ("ms", 1000)
    for name, (label, colour) in _STAGES.items():
        widths = [per_second * value for value in seconds[name]]
        axis.barh(range(len(rows)), widths, left=left, color=colour, label=label, height=0.62)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.set_yticks(range(len(rows)), row_labels(rows), fontsize=8)
    axis.set_xlabel(f"{unit} of a turn, sum of the medians")
    axis.set_title("where the time goes", fontsize=11, loc="left")
    axis.legend(**_LEGEND, ncols=6, handlelength=1.2, columnspacing=1.2)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _ratios(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    """How many times as fast as the baseline, beside the paper."""
    height = 0.38
    for place, (name, label, colour) in enumerate(
        (("ratio", "this device", _CURVES[0]), ("paper_ratio", "the paper", _GREY))
    ):
        at = [index + (place - 0.5) * height for index in range(len(rows))]
        found = [row[TRAINING][name] or 0.0 for row in rows]
        bars = axis.barh(at, found, height, color=colour, label=label)
        axis.bar_label(bars, [f"{ratio:.2f}x" if ratio else "" for ratio in found], fontsize=7, padding=2)
    axis.set_yticks(range(len(rows)), row_labels(rows), fontsize=8)
    axis.set_xlabel("times the samples per second of all tokens")
    axis.set_title("what fewer tokens gain", fontsize=11, loc="left")
    axis.legend(**_LEGEND, ncols=2)
    axis.margins(x=0.12)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _stage_s(row: dict[str, Any], name: str) -> float:
    stages = row["stages"]
    if name == "steps_s":
        steps: float = stages["per_token_s"]["p50"] * row["samples"][0]["num_steps"]
        return steps
    median: float = stages[name]["p50"]
    return median


def _caption(result: Result, rows: Sequence[dict[str, Any]]) -> str:
    setup, machine = result["setup"], result["environment"]
    computed = {f"stored {row['precision']}, computed {row['computed_in']}" for row in rows}
    how = computed.pop() if len(computed) == 1 else "several precisions or back ends"
    return (
        f"{rows[0]['model']}: {rows[0]['num_frames']} frames decoded from {setup['clip']}, "
        f"{setup['question_tokens']}-token question, {setup['new_tokens']} new tokens, median of "
        f"{setup['repetitions']} turns; {machine['cpu']}, {machine['usable_cpus']} CPUs; blip3v {machine['blip3v']}\n"
        f"{how}. The paper's points are of training, on other hardware: compare the shapes alone."
    )


def _training_caption(result: Result, rows: Sequence[dict[str, Any]]) -> str:
    setup, machine = result["setup"], result["environment"]
    device = f"{machine['cpu']}, {setup['threads']} threads" if setup["device"] == "cpu" else setup["device"]
    return (
        f"{setup['preset']} with {setup['weights']} weights: forward, backward and {setup['optimizer']} in "
        f"{setup['precision']}, {rows[0]['num_frames']} frames, {setup['question_tokens']}-token question, "
        f"{setup['new_tokens']}-token answer, median of {setup['repetitions']} turns; {device}; "
        f"blip3v {machine['blip3v']}\n"
        "The paper's points are of the 4B model on an H100: with another model or on other hardware, compare the "
        "shapes alone."
    )
