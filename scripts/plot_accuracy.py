"""Draws exact match by kind of question from reports of `blip3v eval`, next to the blind score.

python scripts/plot_accuracy.py blip3v/models/tiny-tokenlearner/evaluation.json \\
    benchmarks/results/tiny-single-frame-evaluation.json docs/accuracy.png
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

_BAR = 0.27
_COLOURS = ("#2a6f97", "#89c2d9")
_BLIND_COLOUR = "#ced4da"


def main(reports: list[Path], output: Path) -> None:
    """Reads reports on the same questions and writes the picture to ``output``."""
    found = [json.loads(path.read_text("utf-8")) for path in reports]
    kinds = [kind["kind"] for kind in found[0]["kinds"]]
    figure, axis = plt.subplots(figsize=(9, 3.2), dpi=160)
    at = np.arange(len(kinds))
    series = [(_label(report), _scores(report, "exact_match"), _COLOURS[n]) for n, report in enumerate(found)]
    series.append(("blind (best without the film)", _scores(found[0], "blind"), _BLIND_COLOUR))
    for place, (label, scores, colour) in enumerate(series):
        axis.bar(at + (place - 1) * _BAR, scores, _BAR, label=label, color=colour)
    axis.set_xticks(at, [f"{kind['kind']}\n({kind['num_questions']})" for kind in found[0]["kinds"]], fontsize=8)
    axis.set_ylabel("exact match, %")
    axis.set_ylim(0, 100)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout()
    figure.savefig(output, metadata={"Software": None})  # the same bytes from the same reports


def _scores(report: dict[str, Any], name: str) -> list[float]:
    return [100 * kind[name] for kind in report["kinds"]]


def _label(report: dict[str, Any]) -> str:
    return f"{report['model']}: {100 * report['exact_match']:.1f} % of {report['num_questions']}"


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: python scripts/plot_accuracy.py REPORT.json REPORT.json OUT.png")
    main([Path(sys.argv[1]), Path(sys.argv[2])], Path(sys.argv[3]))
