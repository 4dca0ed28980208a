"""Draws training samples per second from a result of `scripts/gpu_check.py` next to the paper's.

python scripts/plot_gpu.py benchmarks/results/gpu.json docs/gpu.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws into files, even without a display

import matplotlib.pyplot as plt
import numpy as np

_COLOURS = ("#2a6f97", "#61a5c2", "#012a4a", "#a9d6e5")
_PAPER_COLOUR, _GREY = "#adb5bd", "#495057"


def main(result: Path, output: Path) -> None:
    """Reads ``result`` and writes the picture to ``output``."""
    report = _read(result)
    groups = [group for group in report["training"]["rows"].values() if group.get("rows")]
    rows = groups[0]["rows"]
    series = [("paper, H100", [row["paper_samples_per_s"] for row in rows], _PAPER_COLOUR)]
    for group, colour in zip(groups, _COLOURS, strict=False):
        series.append((group["form"], [row["samples_per_s"] for row in group["rows"]], colour))
    figure, axis = plt.subplots(figsize=(9, 3.9), dpi=160)
    width = 0.84 / len(series)
    at = np.arange(len(rows))
    for place, (label, speeds, colour) in enumerate(series):
        bars = axis.bar(at + (place - (len(series) - 1) / 2) * width, speeds, width, label=label, color=colour)
        axis.bar_label(bars, [f"{speed:.3g}\n{speed / speeds[0]:.2f}x" for speed in speeds], fontsize=7, padding=2)
    axis.set_xticks(at, [f"{row['num_video_tokens']}\n{row['encoder']}" for row in rows])
    axis.set_xlabel("video tokens")
    axis.set_ylabel("training samples per second")
    axis.margins(y=0.18)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, ncols=len(series), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.text(0.5, 0.015, _caption(report), ha="center", va="bottom", fontsize=7.5, color=_GREY)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(output, metadata={"Software": None})  # the same bytes from the same result


def _read(result: Path) -> dict[str, Any]:
    make = f"python scripts/gpu_check.py --output {result}"
    if not result.is_file():
        raise SystemExit(f"{result} is not there yet: nothing was measured on a GPU; on a machine with one run {make}")
    report: dict[str, Any] = json.loads(result.read_text("utf-8"))
    if report.get("schema_version") != 1:
        raise SystemExit(f"{result} has schema_version {report.get('schema_version')!r}; 1 is read: run {make}")
    environment = report["environment"]
    if not environment["is_gpu"] or environment["smallest"]:
        raise SystemExit(
            f"{result} was measured on {environment['device']} with {environment['preset']}, which says nothing about "
            f"a GPU and the 4B model; on a machine with a GPU run {make}"
        )
    if not any(group.get("rows") for group in report.get("training", {}).get("rows", {}).values()):
        raise SystemExit(f"{result} holds no speed of training; run {make} --only training")
    return report


def _caption(report: dict[str, Any]) -> str:
    environment, what = report["environment"], report["training"]["what"]
    return (
        f"{environment['preset']} on one {environment['device']}: {what['text']}; weights {what['weights']}\n"
        f"without {what['left_out']}; torch {environment['torch']}, "
        f"transformers {environment['transformers']}, blip3v {environment['blip3v']}"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python scripts/plot_gpu.py RESULT.json OUT.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
