"""A report for people: one table of samples per second, one of the stages."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blip3v.bench.report import LANGUAGE_MODEL, STAGES, WHOLE_CHAIN, BenchReport, ReportRow

__all__ = ["print_report", "print_throughput"]


def print_report(report: BenchReport, console: Console) -> None:
    """Prints samples per second, stages and what was measured on what."""
    print_throughput(report, console)
    console.print(_stages(report))
    for line in _environment(report):
        console.print(escape(line), soft_wrap=True)


def print_throughput(report: BenchReport, console: Console) -> None:
    """Prints samples per second with the lines that explain them."""
    console.print(_throughput(report))
    for line in _notes(report):
        console.print(escape(line), soft_wrap=True)


def _throughput(report: BenchReport) -> Table:
    table = _table("samples per second")
    for heading in ("tokens", "bundle"):
        table.add_column(heading, justify="right" if heading == "tokens" else "left")
    for heading in ("whole\nchain", "", "language\nmodel", "", "peak\nMiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        bundle = row.bundle
        weights = "" if bundle.weights == "trained" else f", {bundle.weights}"
        peak = "-" if row.peak_rss_bytes is None else f"{row.peak_rss_bytes / 2**20:.0f}"
        cells = [cell for quantity in (WHOLE_CHAIN, LANGUAGE_MODEL) for cell in _speed(row, quantity, report.baseline)]
        table.add_row(str(bundle.num_video_tokens), f"{bundle.encoder} {bundle.precision}{weights}", *cells, peak)
    return table


def _speed(row: ReportRow, quantity: str, baseline: ReportRow | None) -> tuple[str, str]:
    ratio = "-" if baseline is None else f"{row.ratio(quantity, baseline):.2f}x"
    return f"{row.per_second(quantity):.4g}", ratio


def _notes(report: BenchReport) -> Iterator[str]:
    setup, bundle = report.setup, report.rows[0].bundle
    yield (
        f"A sample: {bundle.num_frames} frames decoded from {setup.clip}, a question of {setup.question_tokens} "
        f"tokens, {setup.new_tokens} new tokens, batch {setup.batch_size}, {setup.decoding}."
    )
    yield "Whole chain: from the file to the last token. Language model: prefill and decoding steps alone."
    yield f"Medians of {setup.repetitions} turns, taken in turns after {setup.warmup} of warm-up."
    speeds = (f"{row.tokens_per_s:.4g} behind {row.bundle.num_video_tokens}" for row in report.rows)
    yield f"New tokens a second, by video tokens: {', '.join(speeds)}."
    baseline = report.baseline
    if baseline is None:
        yield "No ratio: nothing was measured with all tokens, as without a temporal encoder (`none`)."
    else:
        yield (
            f"1.00x: {baseline.bundle.name} ({baseline.bundle.num_video_tokens} tokens); "
            "a ratio is the median of the ratios within a turn."
        )
    if any(row.bundle.num_video_tokens != row.bundle.own_num_video_tokens for row in report.rows):
        yield (
            f"One bundle for all rows: {bundle.encoder}'s {bundle.own_num_video_tokens} tokens, repeated or cut. The "
            "language model's time depends on their number alone; the video encoder's is the same in every row."
        )
    yield from sorted({f"Stored {row.bundle.precision}, computed {row.bundle.computed_in}." for row in report.rows})
    if any(row.bundle.weights != "trained" for row in report.rows):
        yield "Rows marked untrained (the temporal encoder) or random show speed only: their answers mean nothing."


def _stages(report: BenchReport) -> Table:
    table = _table("stages, ms")
    table.add_column("tokens", justify="right")
    table.add_column("stage")
    for heading in ("mean ± std", "p50", "p90", "p99", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        for index, quantity in enumerate((*STAGES, WHOLE_CHAIN)):
            figures = row.statistics(quantity)
            name = quantity.removesuffix("_s").replace("_", " ")
            percentiles = (f"{1000 * value:.2f}" for value in (figures.p50, figures.p90, figures.p99))
            spread = f"{1000 * figures.mean:.2f} ± {1000 * figures.std:.2f}"
            tokens = "" if index else str(row.bundle.num_video_tokens)
            table.add_row(tokens, name, spread, *percentiles, str(figures.n))
        table.add_section()
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, collapse_padding=True)


def _environment(report: BenchReport) -> Iterator[str]:
    found = report.environment
    cores, threads = found["physical_cores"] or "unknown", report.setup.threads or "one for each physical core"
    memory = "unknown" if found["memory_bytes"] is None else f"{found['memory_bytes'] / 2**30:.1f} GiB"
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    yield f"{found['cpu']}, {cores} cores, {found['usable_cpus']} usable, threads: {threads}, memory {memory}"
    yield f"{found['system']}, Python {found['python']}, blip3v {found['blip3v']}, {packages}"
    load = found["load_average"]
    if load["before"] is not None:
        yield f"Load average before {load['before'][0]}, after {load['after'][0]}; {found['date']}"
    for row in report.rows:
        yield f"{row.bundle.name}: manifest sha256 {row.bundle.manifest_sha256[:16]}"
