"""Draws samples per second: python scripts/plot_bench.py RESULT.json OUT.png

RESULT.json comes from `blip3v bench`, or from scripts/full_size.py, whose result contains one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws into files, even without a display

import matplotlib.pyplot as plt

_PANELS = {"whole_chain": "whole chain: file to answer", "language_model": "language model alone"}
_COLOUR, _BASELINE_COLOUR, _GREY = "#2a6f97", "#adb5bd", "#495057"


def main(result: Path, output: Path) -> None:
    """Reads ``result`` and writes the picture to ``output``."""
    report = json.loads(result.read_text("utf-8"))
    report = next((step["bench"] for step in report.get("steps", []) if "bench" in step), report)
    if report.get("schema_version") not in (1, 2):
        found = report.get("schema_version")
        raise SystemExit(f"{result} has schema_version {found!r}; 1 and 2 are read: run blip3v bench")
    rows = sorted(report["rows"], key=lambda row: row["num_video_tokens"])
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.9), dpi=160)
    for axis, (quantity, title) in zip(axes, _PANELS.items(), strict=True):
        _panel(axis, rows, quantity, title, report["baseline"])
    axes[0].set_ylabel("samples per second")
    figure.text(0.5, 0.015, _caption(report, rows), ha="center", va="bottom", fontsize=7.5, color=_GREY)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(output, metadata={"Software": None})  # the same bytes from the same result


def _panel(axis: Any, rows: list[dict[str, Any]], quantity: str, title: str, baseline: str | None) -> None:
    speeds = [row[quantity]["samples_per_s"] for row in rows]
    mixed = len({row["precision"] for row in rows}) > 1
    is_baseline = [
        row["name"] == baseline and row[quantity]["ratio"] == 1.0 for row in rows
    ]  # all rows may be of one bundle
    colours = [_BASELINE_COLOUR if it_is else _COLOUR for it_is in is_baseline]
    bars = axis.bar(range(len(rows)), speeds, color=colours, width=0.62)
    axis.set_xticks(range(len(rows)), [_label(row, mixed) for row in rows])
    for bar, row, speed in zip(bars, rows, speeds, strict=True):
        ratio = row[quantity]["ratio"]
        text = f"{speed:.3g}" if ratio is None else f"{speed:.3g}\n{ratio:.2f}x"
        axis.annotate(
            text,
            (bar.get_x() + bar.get_width() / 2, speed),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    axis.set_title(title, fontsize=11, loc="left")
    axis.set_xlabel("video tokens")
    axis.set_ylim(0, max(speeds) * 1.22)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)


def _label(row: dict[str, Any], mixed: bool) -> str:
    precision = f", {row['precision']}" if mixed else ""
    weights = "" if row["weights"] == "trained" else f"\n({row['weights']})"
    shown, own = row["num_video_tokens"], row["own_num_video_tokens"]
    change = "" if shown == own else ", cut" if shown < own else ",\nrepeated"
    return f"{shown}{precision}\n{row['encoder']}{change}{weights}"


def _caption(report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    setup, machine = report["setup"], report["environment"]
    stored = ", ".join(sorted({f"stored {row['precision']}, computed {row['computed_in']}" for row in rows}))
    return (
        f"{rows[0]['model']}: {rows[0]['num_frames']} frames decoded from {setup['clip']}, "
        f"{setup['question_tokens']}-token question, {setup['new_tokens']} new tokens, "
        f"batch {rows[0].get('batch_size', 1)}, median of {setup['repetitions']} turns\n"
        f"{machine['cpu']}, {machine['usable_cpus']} CPUs; {stored}; blip3v {machine['blip3v']}"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python scripts/plot_bench.py RESULT.json OUT.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
