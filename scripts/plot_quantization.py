"""Writes the table of quantisation.md from the JSON of quantization_table.py, and draws it.

    python scripts/plot_quantization.py benchmarks/results/quantization.json docs/quantization.md docs/quantization.png

It replaces what is between the page's two markers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws into files, even without a display

import matplotlib.pyplot as plt

from blip3v.publishing import write_file
from scripts.page_tables import replace_table

SCRIPT = "plot_quantization.py"
_ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_OURS, _NAIVE, _GREY = "#2a6f97", "#e07a5f", "#495057"


def main(result: Path, page: Path, picture: Path) -> None:
    """Writes both."""
    report = json.loads(result.read_text("utf-8"))
    if report.get("schema_version") != 1:
        raise SystemExit(f"{result} has schema_version {report.get('schema_version')!r}; 1 is read")
    write_file(page, replace_table(page.read_text("utf-8"), SCRIPT, tables(report)))
    draw(report, picture)


def tables(report: dict[str, Any]) -> str:
    """One table in Markdown for each model."""
    parts = []
    for model in _models(report):
        rows = list(_rows(report, model))
        if rows:
            parts.append(f"### {title(model)}\n\n{_table(rows)}\n")
    return "\n".join(parts)


def title(model: str) -> str:
    """A model as people read it."""
    name = model.removesuffix("-hardened")
    return f"`{name}`, hardened" if name != model else f"`{name}`"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head = ("form", "engine", "exact match, %", "lost, points (95 %)", "tokens, %", "answers, %", "MB")
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _rows(report: dict[str, Any], model: str) -> Iterator[tuple[str, ...]]:
    for cell in _cells(report, model):
        name = f"*{cell['form']}*" if report["forms"][cell["form"]]["naive"] else cell["form"]
        for engine in cell.get("engines", ()):
            films, answers = engine["films"], engine["answers"]
            drop = films["drop"]
            yield (
                name,
                _ENGINES.get(engine["backend"], engine["backend"]),
                f"{100 * films['graphs']:.2f}",
                f"{_signed(drop['points'])} ({_signed(drop['low'])} to {_signed(drop['high'])})",
                f"{100 * answers['tokens_agreeing'] / answers['num_tokens']:.2f}",
                f"{100 * answers['answers_agreeing'] / answers['num_answers']:.2f}",
                f"{cell['sizes']['bundle'] / 1e6:.2f}",
            )
        for backend, why in cell.get("unavailable", {}).items():
            yield name, _ENGINES.get(backend, backend), "does not run", why.replace("|", "\\|")[:80], "", "", ""


def _signed(points: float) -> str:
    """Two digits; a loss that rounds to zero has no sign."""
    text = f"{points:.2f}"
    return "0.00" if float(text) == 0 else text


def _models(report: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(cell["model"] for cell in report["cells"]))


def _cells(report: dict[str, Any], model: str) -> list[dict[str, Any]]:
    """A model's measured cells in the order of the forms."""
    found = {cell["form"]: cell for cell in report["cells"] if cell["model"] == model and "failed" not in cell}
    return [found[form] for form in report["forms"] if form in found]


def draw(report: dict[str, Any], picture: Path) -> None:
    """Draws the points that each form loses, with its interval, one panel for each model; an engine has a marker."""
    models = _models(report)
    forms = [form for form in report["forms"] if form != "fp32"]
    forms = [form for form in forms if any(form == cell["form"] for model in models for cell in _cells(report, model))]
    figure, axes = plt.subplots(
        1, len(models), figsize=(2.6 + 2.5 * len(models), 1.6 + 0.26 * len(forms)), dpi=160, sharey=True, squeeze=False
    )
    for axis, model in zip(axes[0], models, strict=True):
        _panel(axis, report, model, forms)
    axes[0][0].set_yticks(range(len(forms)), forms, fontsize=8)
    axes[0][0].invert_yaxis()
    figure.text(0.5, 0.01, _caption(report), ha="center", va="bottom", fontsize=7.5, color=_GREY)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(picture, metadata={"Software": None})  # the same bytes from the same result


def _panel(axis: Any, report: dict[str, Any], model: str, forms: Sequence[str]) -> None:
    cells = {cell["form"]: cell for cell in _cells(report, model)}
    for at, form in enumerate(forms):
        colour = _NAIVE if report["forms"][form]["naive"] else _OURS
        for engine in cells.get(form, {}).get("engines", ()):
            is_first = engine["backend"] == "onnxruntime"
            drop = engine["films"]["drop"]
            height = at - 0.14 if is_first else at + 0.14
            axis.plot([drop["low"], drop["high"]], [height, height], color=colour, linewidth=1)
            axis.plot(
                drop["points"], height, marker="o" if is_first else "D", markersize=4, color=colour,
                markerfacecolor=colour if is_first else "white",
            )  # fmt: skip
    axis.axvline(0, color=_GREY, linewidth=0.8)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axis.set_title(title(model).replace("`", ""), fontsize=9, loc="left")
    axis.set_xlabel("points of exact match lost", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)


def _caption(report: dict[str, Any]) -> str:
    questions = sorted({cell["questions"] for cell in report["cells"]})
    counts = " or ".join(f"{count:,}" for count in questions)
    return (
        f"{counts} held-out questions; lines are 95 % intervals; circles: ONNX Runtime, diamonds: OpenVINO; red: naive"
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: python scripts/plot_quantization.py RESULT.json PAGE.md OUT.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
