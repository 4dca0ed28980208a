"""The tables that the GPU check prints at the end."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from blip3v.units import format_bytes

__all__ = ["print_report"]


def print_report(content: dict[str, Any], console: Console) -> None:
    """Prints one table for each stage in the report.

    Args:
        content: the content of the report.
        console: where to print.
    """
    environment = content["environment"]
    where = f"{environment['device']}{'' if environment['is_gpu'] else ', not a GPU'}"
    stages = (
        ("parity", _parity),
        ("training", _training),
        ("loading", _loading),
        ("generation", _generation),
        ("runtime", _runtime),
    )
    for stage, table in stages:
        rows = content.get(stage, {}).get("rows", {})
        if rows:
            console.print(table(rows, f"{stage}: {environment['preset']} on {where}"))


def _parity(rows: dict[str, Any], title: str) -> Table:
    table = _table(
        title,
        "encoder",
        "shape",
        "dtype",
        "largest error",
        "smallest cosine",
        "",
    )
    for key, row in rows.items():
        encoder, _, shape = key.partition(", ")
        if "skipped" in row:
            table.add_row(encoder, shape, "", "", "", row["skipped"])
            continue
        for dtype in dict.fromkeys(found["dtype"] for found in row["comparisons"]):
            same = [found for found in row["comparisons"] if found["dtype"] == dtype]
            passed = all(found["passed"] for found in same)
            errors, cosines = ([found[name] for found in same] for name in ("relative_error", "cosine"))
            table.add_row(
                encoder,
                shape,
                dtype,
                _worst(max, errors, ".1e"),
                _worst(min, cosines, ".6f"),
                "" if passed else "MISSED",
            )
    return table


def _training(rows: dict[str, Any], title: str) -> Table:
    table = _table(title, "form", "tokens", "encoder", "samples/s", "ratio", "paper", "ratio", "peak")
    for key, group in rows.items():
        if not group.get("rows"):
            table.add_row(key, "", group.get("skipped") or group["failures"][-1]["why"])
        for row in group.get("rows", ()):
            table.add_row(
                group["form"],
                str(row["num_video_tokens"]),
                row["encoder"],
                f"{row['samples_per_s']:.3g}",
                f"{row['ratio']:.2f}x",
                f"{row['paper_samples_per_s']:.3g}",
                f"{row['paper_ratio']:.2f}x",
                _gib(row["peak_gib"]),
            )
    return table


def _loading(rows: dict[str, Any], title: str) -> Table:
    table = _table(title, "form", "tokens", "encoder", "workers", "step", "waited for data")
    for key, row in rows.items():
        if "waited" not in row:
            table.add_row(key, "", row.get("skipped") or row["failed"])
            continue
        named = str(row["num_video_tokens"]), row["encoder"], str(row["workers"])
        table.add_row(key, *named, f"{row['step_s']:.3g} s", f"{100 * row['waited']:.1f} %")
    return table


def _generation(rows: dict[str, Any], title: str) -> Table:
    table = _table(
        title,
        "form",
        "tokens",
        "encoder",
        "encode ms",
        "prefill ms",
        "ms/token",
        "tokens/s",
        "samples/s",
        "peak",
    )
    for key, group in rows.items():
        for left_out, why in ({"": group["skipped"]} if "skipped" in group else group["left_out"]).items():
            table.add_row(key, "", f"{left_out} {why}".strip())
        for row in group.get("rows", ()):
            speeds = [
                f"{row[name]:.3g}" for name in ("encode_ms", "prefill_ms", "token_ms", "tokens_per_s", "samples_per_s")
            ]
            table.add_row(key, str(row["num_video_tokens"]), row["encoder"], *speeds, _gib(row["peak_gib"]))
    return table


def _runtime(rows: dict[str, Any], title: str) -> Table:
    """Speeds besides samples/s are those at the last number of video tokens; what did not run is told below."""
    measured = {key: row for key, row in rows.items() if "speeds" in row}
    counts = list(dict.fromkeys(str(speed["num_video_tokens"]) for row in measured.values() for speed in row["speeds"]))
    table = _table(
        title,
        "case",
        "largest error",
        "opens in",
        "encode ms",
        "first token ms",
        "ms/token",
        *(f"samples/s at {count}" for count in counts),
        "beside the first",
        "device",
        "",
    )
    for key, row in measured.items():
        last = row["speeds"][-1]
        errors = [found["relative_error"] for found in row["comparisons"]]
        table.add_row(
            key,
            _worst(max, errors, ".1e"),
            f"{row['open_s']:.1f} s",
            *(f"{last[name]:.3g}" for name in ("video_encoder_ms", "first_token_ms", "token_ms")),
            *(f"{speed['samples_per_s']:.3g}" for speed in row["speeds"]),
            "" if last["times_base"] is None else f"{last['times_base']:.2f}x",
            "" if row["device_bytes"] is None else format_bytes(row["device_bytes"]),
            "" if row["passed"] else "MISSED",
        )
    told: dict[str, list[str]] = {}
    for key, row in rows.items():
        for kind in ("refused", "failed", "skipped"):
            if kind in row:
                told.setdefault(f"{kind}: {row[kind]}", []).append(key)
    table.caption = Text("\n".join(f"{'; '.join(keys)}\n  {why}" for why, keys in told.items()))
    table.caption_justify = "left"
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _worst(choose: Any, values: list[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(choose(known), form) if len(known) == len(values) else "not finite"


def _gib(value: float | None) -> str:
    return "" if value is None else format_bytes(round(value * 2**30))
