"""Draws samples per second from a result of `scripts/gpu_check.py`: training next to the paper's, and the runtime.

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
from matplotlib.axes import Axes

_COLOURS = ("#2a6f97", "#61a5c2", "#012a4a", "#a9d6e5")
_PAPER_COLOUR, _GREY = "#adb5bd", "#495057"


def main(result: Path, output: Path) -> None:
    """Reads ``result`` and writes the picture to ``output``."""
    report = _read(result)
    panels = [draw for draw, is_there in ((_training, _groups(report)), (_runtime, _cases(report))) if is_there]
    figure, axes = plt.subplots(len(panels), figsize=(9, 3.9 * len(panels)), dpi=160, squeeze=False)
    for draw, axis in zip(panels, axes[:, 0], strict=True):
        draw(report, axis)
        axis.margins(y=0.18)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.text(0.5, 0.012, _caption(report), ha="center", va="bottom", fontsize=7.5, color=_GREY)
    figure.tight_layout(rect=(0, 0.09 / len(panels), 1, 1))
    figure.savefig(output, metadata={"Software": None})  # the same bytes from the same result


def _training(report: dict[str, Any], axis: Axes) -> None:
    groups = _groups(report)
    rows = groups[0]["rows"]
    series = [("paper, H100", [row["paper_samples_per_s"] for row in rows], _PAPER_COLOUR)]
    for group, colour in zip(groups, _COLOURS, strict=False):
        series.append((group["form"], [row["samples_per_s"] for row in group["rows"]], colour))
    _bars(axis, [f"{row['num_video_tokens']}\n{row['encoder']}" for row in rows], series)
    axis.set_ylabel("training samples per second")


def _runtime(report: dict[str, Any], axis: Axes) -> None:
    """One colour for each case; below, the numbers of video tokens."""
    found = _cases(report)
    counts = [str(speed["num_video_tokens"]) for speed in next(iter(found.values()))["speeds"]]
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(found)))
    series = [
        (name, [speed["samples_per_s"] for speed in row["speeds"]], colour)
        for (name, row), colour in zip(found.items(), colours, strict=True)
    ]
    _bars(axis, counts, series)
    axis.set_ylabel("samples answered per second")


def _bars(axis: Axes, ticks: list[str], series: list[tuple[str, list[float], Any]]) -> None:
    """Groups of bars, each with its speed and, below that, the ratio to the first of its series."""
    width = 0.84 / len(series)
    at = np.arange(len(ticks))
    for place, (label, speeds, colour) in enumerate(series):
        bars = axis.bar(at + (place - (len(series) - 1) / 2) * width, speeds, width, label=label, color=colour)
        axis.bar_label(bars, [f"{speed:.3g}\n{speed / speeds[0]:.2f}x" for speed in speeds], fontsize=7, padding=2)
    axis.set_xticks(at, ticks)
    axis.set_xlabel("video tokens")


def _groups(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The forms of training that were measured."""
    return [group for group in report.get("training", {}).get("rows", {}).values() if group.get("rows")]


def _cases(report: dict[str, Any]) -> dict[str, Any]:
    """The cases of the runtime that were measured and are right."""
    return {key: row for key, row in report.get("runtime", {}).get("rows", {}).items() if row.get("passed")}


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
    if not _groups(report) and not _cases(report):
        raise SystemExit(f"{result} holds no speed of training or of the runtime; run {make} --only training,runtime")
    return report


def _caption(report: dict[str, Any]) -> str:
    environment, trained, asked = report["environment"], report.get("training"), report.get("runtime")
    lines = [f"{environment['preset']} on one {environment['device']}, random weights"]
    if trained:
        lines.append(f"training: {trained['what']['text']}; weights {trained['what']['weights']}")
        lines[-1] += f"; without {trained['what']['left_out']}"
    if asked:
        lines.append(f"runtime: {asked['what']['samples_per_s']}; {asked['what']['text']}")
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "blip3v"))
    return "\n".join((*lines, versions))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python scripts/plot_gpu.py RESULT.json OUT.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
