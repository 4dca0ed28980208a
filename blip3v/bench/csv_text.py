"""A result as CSV: a line for each row, with everything that its numbers depend on in the same line."""

from __future__ import annotations

import csv
import io
from typing import Any

from blip3v.bench.results import TRAINING, Result, kind_of

__all__ = ["csv_text"]

_OF_ROW = (
    "name",
    "manifest_sha256",
    "model",
    "encoder",
    "num_video_tokens",
    "precision",
    "weights",
    "computed_in",
    "batch_size",
    "requests_at_once",
    "prompt_tokens",
    "open_s",
    "peak_rss_bytes",
    "tokens_per_s",
)
_OF_TRAINING_ROW = (
    "model",
    "encoder",
    "num_video_tokens",
    "config_sha256",
    "precision",
    "weights",
    "batch_size",
    "tokens_per_s",
    "peak_bytes",
    "operations",
    "operations_per_s",
    "share",
)
_FIGURES = ("n", "mean", "std", "p50", "p90", "p99")
_OF_ENVIRONMENT = ("date", "cpu", "physical_cores", "usable_cpus", "memory_bytes", "system", "python", "blip3v")


def csv_text(result: Result) -> str:
    """The result as CSV with a head, lines ending in a single newline; what is not known is empty."""
    lines = [_line(row, result) for row in result["rows"]]
    names = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(row: dict[str, Any], result: Result) -> dict[str, Any]:
    line = _training(row) if kind_of(result) == TRAINING else _inference(row)
    line |= {f"setup_{name}": value for name, value in result["setup"].items()}
    line |= {name: result["environment"].get(name) for name in _OF_ENVIRONMENT}
    packages = result["environment"]["packages"]
    return line | {
        "packages": " ".join(f"{name}=={version}" for name, version in packages.items()),
        "command": result["command"],
    }


def _training(row: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {name: row[name] for name in _OF_TRAINING_ROW} | row[TRAINING]
    return line | {f"step_s_{figure}": row["stages"]["step_s"][figure] for figure in _FIGURES}


def _inference(row: dict[str, Any]) -> dict[str, Any]:
    line = {name: row[name] for name in _OF_ROW}
    for part in ("whole_chain", "language_model"):
        line |= {f"{part}_{name}": value for name, value in row[part].items()}
    metrics = row["metrics"] or {}
    line |= {name: value for name, value in metrics.items() if isinstance(value, float)}
    figures = {name: value for name, value in metrics.items() if isinstance(value, dict)} | row["stages"]
    for name, values in figures.items():
        line |= {f"{name}_{figure}": values[figure] for figure in _FIGURES}
    for share in row["shares"]:
        line |= {f"{share['stage']}_{name}": share[name] for name in ("limit", "limit_per_s", "reached_per_s", "share")}
    return line
