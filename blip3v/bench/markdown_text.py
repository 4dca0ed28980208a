"""A result as Markdown: its tables, and below them the machine, the bundles and the command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from blip3v.bench.labels import engines, row_labels, shape_text
from blip3v.bench.metrics import LATENCIES
from blip3v.bench.report import STAGES, WHOLE_CHAIN
from blip3v.bench.results import TRAINING, Result, kind_of
from blip3v.units import format_bytes, format_number, format_ratio

__all__ = ["markdown_text"]

_FIGURES = ("mean", "std", "median", "p90", "p99", "n")


def markdown_text(result: Result) -> str:
    """The result as a page without a heading of its own level one."""
    if kind_of(result) == TRAINING:
        return "\n".join([*_training(result), *_steps(result), *_origin(result)])
    return "\n".join([*_speeds(result), *_latencies(result), *_stages(result), *_shares(result), *_origin(result)])


def _table(heading: str, columns: Sequence[str], left: int, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table whose first ``left`` columns are words."""
    yield f"## {heading}"
    yield ""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'|'.join('---' if index < left else '---:' for index in range(len(columns)))}|"
    yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    yield ""


def _speeds(result: Result) -> Iterator[str]:
    rows = [
        [
            f"{row['encoder']} {row['precision']}" + ("" if row["weights"] == "trained" else f", {row['weights']}"),
            engines(row),
            shape_text(row),
            str(row["num_video_tokens"]),
            *(cell for part in ("whole_chain", "language_model") for cell in _speed(row[part])),
            *(_rate(row, name) for name in ("request_throughput", "output_token_throughput")),
            "-" if row["peak_rss_bytes"] is None else format_bytes(row["peak_rss_bytes"]),
        ]
        for row in result["rows"]
    ]
    speeds = ("whole chain", "", "language model", "", "request throughput", "output token throughput")
    columns = ("bundle", "back end", "requests", "video tokens", *speeds, "peak memory")
    yield from _table("Samples per second", columns, 3, rows)


def _speed(speed: dict[str, float | None]) -> tuple[str, str]:
    per_second, ratio = speed["samples_per_s"], speed["ratio"]
    return _number(per_second), "-" if ratio is None else format_ratio(ratio)


def _rate(row: dict[str, Any], name: str) -> str:
    return "-" if row["metrics"] is None else f"{format_number(row['metrics'][name])} /s"


def _latencies(result: Result) -> Iterator[str]:
    measured = [(label, row["metrics"]) for label, row in _labelled(result) if row["metrics"] is not None]
    rows = [
        _figures(label, name, metrics[field])
        for label, metrics in measured
        for field, name in LATENCIES.items()
        if metrics[field] is not None
    ]
    if rows:
        yield from _table("Latency, ms", ("row", "metric", *_FIGURES), 2, rows)


def _stages(result: Result) -> Iterator[str]:
    rows = [
        _figures(label, name.removesuffix("_s").replace("_", " "), row["stages"][name])
        for label, row in _labelled(result)
        for name in (*STAGES, WHOLE_CHAIN)
    ]
    yield from _table("Stages, ms", ("row", "stage", *_FIGURES), 2, rows)


def _figures(label: str, name: str, figures: dict[str, float]) -> list[str]:
    cells = [format_number(1000 * figures[key]) for key in ("mean", "std", "p50", "p90", "p99")]
    return [label, name, *cells, str(figures["n"])]


def _shares(result: Result) -> Iterator[str]:
    rows = [
        [
            label,
            share["stage"].replace("_", " "),
            share["limit"] if share["problem"] is None else f"not known: {share['problem']}",
            *(_in_unit(share[name], share["unit"]) for name in ("reached_per_s", "limit_per_s")),
            "-" if share["share"] is None else f"{100 * share['share']:.0f} %",
        ]
        for label, row in _labelled(result)
        for share in row["shares"]
    ]
    if rows:
        yield from _table("Shares of the limits", ("row", "stage", "limit", "reached", "of", "share"), 3, rows)


def _training(result: Result) -> Iterator[str]:
    rows = [
        [
            row["encoder"],
            str(row["batch_size"]),
            str(row["num_video_tokens"]),
            *_speed(row[TRAINING]),
            _number(row[TRAINING]["paper_samples_per_s"]),
            "-" if row[TRAINING]["paper_ratio"] is None else format_ratio(row[TRAINING]["paper_ratio"]),
            f"{format_number(row['tokens_per_s'])} /s",
            "-" if row["peak_bytes"] is None else format_bytes(row["peak_bytes"]),
            "-" if row["share"] is None else f"{100 * row['share']:.0f} %",
        ]
        for row in result["rows"]
    ]
    speeds = ("samples per second", "", "the paper, one H100", "", "tokens", "peak memory", "of PyTorch's GEMM")
    yield from _table("Training", ("encoder", "batch", "video tokens", *speeds), 1, rows)


def _steps(result: Result) -> Iterator[str]:
    rows = [_figures(label, "step", row["stages"]["step_s"]) for label, row in _labelled(result)]
    yield from _table("Steps, ms", ("row", "", *_FIGURES), 2, rows)


def _in_unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{format_number(value / 1e9)} {'GB/s' if unit == 'bytes' else 'Gop/s'}"


def _origin(result: Result) -> Iterator[str]:
    machine, setup = result["environment"], result["setup"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    if result["command"] is not None:
        yield f"- command: `{result['command']}`"
    yield f"- {machine['cpu']}, {machine['usable_cpus']} CPUs, {machine['system']}, {machine['date']}"
    yield f"- Python {machine['python']}, blip3v {machine['blip3v']}, {packages}"
    if kind_of(result) == TRAINING:
        yield (
            f"- {setup['preset']} with {setup['weights']} weights on {setup['device']} in {setup['precision']}, "
            f"{setup['optimizer']}, frozen: {setup['frozen']}; a question of {setup['question_tokens']} tokens, an "
            f"answer of {setup['new_tokens']}; {setup['repetitions']} turns after {setup['warmup']}"
        )
        hashes = {f"{row['encoder']} {row['num_video_tokens']}": row["config_sha256"] for row in result["rows"]}
        yield from (f"- {name}: config sha256 {digest[:16]}" for name, digest in hashes.items())
        yield ""
        return
    yield (
        f"- {setup['clip']} (sha256 {setup['clip_sha256'][:16]}), a question of {setup['question_tokens']} tokens, "
        f"{setup['new_tokens']} new tokens, {setup['decoding']}; {setup['repetitions']} turns after {setup['warmup']}"
    )
    hashes = {row["name"]: row["manifest_sha256"] for row in result["rows"]}
    yield from (f"- {name}: manifest sha256 {digest[:16]}" for name, digest in hashes.items())
    yield ""


def _labelled(result: Result) -> Iterator[tuple[str, dict[str, Any]]]:
    return zip(row_labels(result["rows"]), result["rows"], strict=True)


def _number(value: float | None) -> str:
    return "-" if value is None else format_number(value)
