"""What tables and plots call the rows of a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["engines", "row_labels", "run_labels", "shape_text"]


def engines(row: dict[str, Any]) -> str:
    """The back ends of a row, once if both graphs share one; a result of version 1 may only say it in words."""
    if row["backend"] is None:
        words: str = row["computed_in"]
        return words
    return " + ".join(dict.fromkeys(row["backend"][graph]["backend"] for graph in ("video_encoder", "decoder")))


def shape_text(row: dict[str, Any]) -> str:
    """How many requests a turn was: ``batch 4``, ``8 at once``."""
    if row["requests_at_once"] > 1:
        return f"{row['requests_at_once']} at once"
    return f"batch {row['batch_size']}"


def row_labels(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A label for each row: the video tokens, and of the rest what the rows differ in."""
    weights = ["" if row["weights"] == "trained" else row["weights"] for row in rows]
    differences = _differences([[row["encoder"] for row in rows], *_run_with(rows), weights])
    return [", ".join([str(row["num_video_tokens"]), *words]) for row, words in zip(rows, differences, strict=True)]


def run_labels(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Precision, back ends and requests of each row, as far as the rows differ in them; "" if they do not."""
    return [", ".join(words) for words in _differences(_run_with(rows))]


def _run_with(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[row["precision"] for row in rows], [engines(row) for row in rows], [shape_text(row) for row in rows]]


def _differences(columns: Sequence[Sequence[str]]) -> list[list[str]]:
    """For each row its words of the columns in which rows differ, without empty ones."""
    told = [column for column in columns if len(set(column)) > 1]
    return [[word for word in words if word] for words in zip(*told, strict=True)] or [[] for _ in columns[0]]
