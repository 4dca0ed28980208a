"""What ``blip3v bench --training`` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blip3v.bench.results import TRAINING, Result
from blip3v.commands.tables import print_table
from blip3v.units import format_bytes, format_count, format_number, format_ratio

__all__ = ["print_training"]


def print_training(result: Result, console: Console) -> None:
    """Prints samples per second beside the paper's, and the machine that was measured."""
    print_table(console, _speeds(result))
    for line in (*_notes(result), *_environment(result)):
        console.print(escape(line), soft_wrap=True)


def _speeds(result: Result) -> Table:
    table = Table(
        title="training, samples per second",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        collapse_padding=True,
    )
    several = len({row["batch_size"] for row in result["rows"]}) > 1
    for heading in ("tokens", "encoder", *(("batch",) if several else ())):
        table.add_column(heading, justify="left" if heading == "encoder" else "right")
    for heading in (
        "here",
        "",
        "H100",
        "",
        "step, ms\nmean ± std",
        "GEMM",
        "peak\nMiB",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        found, step = row[TRAINING], row["stages"]["step_s"]
        table.add_row(
            str(row["num_video_tokens"]),
            row["encoder"],
            *((str(row["batch_size"]),) if several else ()),
            format_number(found["samples_per_s"]),
            _ratio(found["ratio"]),
            "-" if found["paper_samples_per_s"] is None else format_number(found["paper_samples_per_s"]),
            _ratio(found["paper_ratio"]),
            f"{format_number(1000 * step['mean'])} ± {format_number(1000 * step['std'])}",
            "-" if row["share"] is None else f"{100 * row['share']:.0f} %",
            "-" if row["peak_bytes"] is None else format_number(row["peak_bytes"] / 2**20),
        )
    return table


def _ratio(value: float | None) -> str:
    return "-" if value is None else format_ratio(value)


def _notes(result: Result) -> Iterator[str]:
    setup, rows = result["setup"], result["rows"]
    sizes = ", ".join(dict.fromkeys(str(row["batch_size"]) for row in rows))
    recompute = "with" if setup["gradient_checkpointing"] else "without"
    yield (
        f"A step: forward, backward, clipping and {setup['optimizer']} of {sizes} clips on one device, the trainer's "
        f"own: {format_count(rows[0]['num_frames'], 'frame')} each, a question of {setup['question_tokens']} tokens, "
        f"an answer of {setup['new_tokens']}; the vision encoder is frozen. Without loading data."
    )
    yield (
        f"{setup['preset']} with {setup['weights']} weights in {setup['precision']}, {recompute} gradient "
        f"checkpointing, on {setup['device']}. One process holds the model for all rows: their peaks include all "
        "temporal encoders."
    )
    turns, warmup = format_count(setup["repetitions"], "turn"), format_count(setup["warmup"], "turn")
    yield (
        f"Medians of {turns}, row after row, after {warmup} of warm-up; a ratio is the median of the ratios within "
        "each turn."
    )
    yield (
        "H100: the paper's samples per second. It trained the 4B model and states neither batch size nor precision: "
        "with another model or on other hardware, compare the ratios alone."
    )
    gemm = format_number(result["limits"]["gemm_per_s"] / 1e9)
    yield f"GEMM: share of PyTorch's product of large matrices in the step's dtype, measured first: {gemm} Gop/s."


def _environment(result: Result) -> Iterator[str]:
    found, setup = result["environment"], result["setup"]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    memory = "unknown" if found["memory_bytes"] is None else format_bytes(found["memory_bytes"])
    threads = "" if setup["threads"] is None else f", threads: {setup['threads']}"
    yield f"{found['cpu']}, {found['usable_cpus']} usable{threads}, memory {memory}"
    yield f"{found['system']}, Python {found['python']}, blip3v {found['blip3v']}, {packages}"
    load = found["load_average"]
    if load["before"] is not None:
        yield f"Load average before {load['before'][0]}, after {load['after'][0]}; {found['date']}"
    yield from dict.fromkeys(_hash(row) for row in result["rows"])


def _hash(row: dict[str, Any]) -> str:
    return f"{row['encoder']} {row['num_video_tokens']}: config sha256 {row['config_sha256'][:16]}"
