"""What ``blip3v bench`` prints: tables, and the notes that explain them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blip3v.bench.compare import Comparison
from blip3v.bench.gemm_graphs import KIND_NAMES
from blip3v.bench.limits import Limits
from blip3v.bench.metrics import LATENCIES
from blip3v.bench.report import LANGUAGE_MODEL, STAGES, WHOLE_CHAIN, BenchReport, ReportRow
from blip3v.bench.statistics import Statistics
from blip3v.commands.tables import print_table
from blip3v.runtime import BackendReport
from blip3v.units import format_bytes, format_count, format_number, format_ratio

__all__ = ["print_comparison", "print_report", "print_throughput"]

_WORDS = (
    "TTFT: from the file to the first token. TPOT: mean time of each further token of an answer. ITL: each gap between "
    "two tokens. E2EL: from the file to the last token. The words are vLLM's."
)


def print_report(report: BenchReport, console: Console) -> None:
    """Prints samples per second, latencies, the stages, and the machine and bundles that were measured."""
    print_throughput(report, console)
    print_table(console, _latencies(report))
    console.print(_WORDS, soft_wrap=True)
    print_table(console, _stages(report))
    if report.limits is not None:
        print_table(console, _shares(report, report.limits))
        for line in _limits(report, report.limits):
            console.print(escape(line), soft_wrap=True)
    for line in _environment(report):
        console.print(escape(line), soft_wrap=True)


def print_throughput(report: BenchReport, console: Console) -> None:
    """Prints samples per second and the notes that explain them."""
    print_table(console, _throughput(report))
    for line in _notes(report):
        console.print(escape(line), soft_wrap=True)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints the medians beside the baseline's, and which are worse."""
    table = _table("medians against the baseline, ms")
    for heading in ("tokens", "median", "before", "now", "now / before", ""):
        table.add_column(heading, justify="left" if heading in ("tokens", "median", "") else "right")
    for median in comparison.medians:
        name = LATENCIES.get(median.quantity) or median.quantity.removesuffix("_s").replace("_", " ")
        seconds = (format_number(1000 * value) for value in (median.before_s, median.now_s))
        worse = "worse" if median in comparison.worse else ""
        table.add_row(median.row, name, *seconds, format_ratio(median.ratio), worse)
    print_table(console, table)
    console.print(
        f"{len(comparison.worse)} of {format_count(len(comparison.medians), 'median')} worse by more than "
        f"{100 * comparison.tolerance:g} %."
    )
    for line in (
        *(f"Not comparable, and compared as asked: {difference}." for difference in comparison.differences),
        *(f"Not in the baseline: {label}." for label in comparison.unmatched),
    ):
        console.print(escape(line), soft_wrap=True)


def _throughput(report: BenchReport) -> Table:
    table = _table("samples per second")
    for heading in ("tokens", "bundle"):
        table.add_column(heading, justify="right" if heading == "tokens" else "left")
    several = len({row.backend for row in report.rows}) > 1
    if several:
        table.add_column("back end")
    shapes = _shapes(report)
    if shapes:
        table.add_column("requests", no_wrap=True)
    for heading in ("whole\nchain", "", "language\nmodel", "", "peak\nMiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        bundle = row.bundle
        weights = "" if bundle.weights == "trained" else f", {bundle.weights}"
        peak = "-" if row.peak_rss_bytes is None else format_number(row.peak_rss_bytes / 2**20)
        cells = [cell for quantity in (WHOLE_CHAIN, LANGUAGE_MODEL) for cell in _speed(row, quantity, report.baseline)]
        engine = [_engines(row.backend)] if several else []
        shape = [str(row.shape)] if shapes else []
        name = f"{bundle.encoder} {bundle.precision}{weights}"
        table.add_row(str(bundle.num_video_tokens), name, *engine, *shape, *cells, peak)
    return table


def _shapes(report: BenchReport) -> bool:
    """Whether the rows need to say how many requests they are."""
    return any(not row.shape.is_single for row in report.rows)


def _engines(backend: BackendReport) -> str:
    return "\n".join(dict.fromkeys((backend.video_encoder.backend, backend.decoder.backend)))


def _speed(row: ReportRow, quantity: str, baseline: ReportRow | None) -> tuple[str, str]:
    speed = row.per_second(quantity)
    ratio = None if baseline is None else row.ratio(quantity, baseline)
    return "-" if speed is None else format_number(speed), "-" if ratio is None else format_ratio(ratio)


def _notes(report: BenchReport) -> Iterator[str]:
    setup, bundle = report.setup, report.rows[0].bundle
    yield (
        f"A sample: {format_count(bundle.num_frames, 'frame')} decoded from {setup.clip}, a question of "
        f"{setup.question_tokens} tokens, {setup.new_tokens} new tokens, {setup.decoding}."
    )
    if _shapes(report):
        yield (
            "A batch: so many videos and questions, answered together. At once: so many threads that ask one model, "
            "each from its file; their stages overlap and have no speed of their own."
        )
    yield "Whole chain: from the file to the last token. Language model: prefill and decoding steps only."
    turns, warmup = format_count(setup.repetitions, "turn"), format_count(setup.warmup, "turn")
    yield f"Medians of {turns}, bundle after bundle, after {warmup} of warm-up."
    speeds = [(row.tokens_per_s, row) for row in report.rows if row.tokens_per_s is not None]
    if speeds:
        listed = (f"{format_number(speed)} with {_with(row)}" for speed, row in speeds)
        yield f"New tokens per second, by video tokens: {', '.join(listed)}."
    baseline = report.baseline
    if baseline is None:
        yield "No ratios: nothing was measured with all tokens, as without a temporal encoder (`none`)."
    else:
        yield (
            f"1.00x: {baseline.bundle.name} ({format_count(baseline.bundle.num_video_tokens, 'token')}"
            f"{_requests(baseline)}); "
            "a ratio is the median of the ratios within each turn."
        )
    if any(row.bundle.num_video_tokens != row.bundle.own_num_video_tokens for row in report.rows):
        yield (
            f"One bundle for all rows: {bundle.encoder}'s {bundle.own_num_video_tokens} tokens, repeated or cut. The "
            "language model's time depends only on their number; the video encoder's is the same in every row."
        )
    yield from sorted({f"S{str(row.backend)[1:]}." for row in report.rows})
    if any(row.bundle.weights != "trained" for row in report.rows):
        yield "Rows marked untrained (the temporal encoder) or random only show speed: their answers mean nothing."


def _with(row: ReportRow) -> str:
    return f"{row.bundle.num_video_tokens}{_requests(row)}"


def _requests(row: ReportRow) -> str:
    return "" if row.shape.is_single else f", {row.shape}"


def _latencies(report: BenchReport) -> Table:
    """The metrics of vLLM and AIPerf (``bench/metrics.py``)."""
    table = _milliseconds("latency, ms", "tokens", "metric")
    for row in report.rows:
        metrics = row.metrics
        found = [(name, getattr(metrics, field)) for field, name in LATENCIES.items()]
        _add_figures(table, _with(row), [(name, figures) for name, figures in found if figures is not None])
    return table


def _stages(report: BenchReport) -> Table:
    table = _milliseconds("stages, ms", "tokens", "stage")
    for row in report.rows:
        names = {name: name.removesuffix("_s").replace("_", " ") for name in (*STAGES, WHOLE_CHAIN)}
        _add_figures(table, _with(row), [(shown, row.statistics(name)) for name, shown in names.items()])
    return table


def _shares(report: BenchReport, limits: Limits) -> Table:
    table = _table("shares of this machine's limits")
    for heading in ("tokens", "stage", "limit", "reached", "of", "share"):
        right = heading in ("tokens", "reached", "of", "share")
        table.add_column(heading, justify="right" if right else "left", no_wrap=right)
    for row in report.rows:
        for index, share in enumerate(row.shares(limits)):
            known = share.share is not None
            table.add_row(
                "" if index else _with(row),
                share.stage.replace("_", " "),
                share.limit if known else f"not known: {share.problem}",
                _rate(share.reached_per_s, share.unit),
                _rate(share.limit_per_s, share.unit),
                f"{100 * share.share:.0f} %" if share.share is not None else "-",
            )
        table.add_section()
    return table


def _rate(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{format_number(value / 1e9)} {'GB/s' if unit == 'bytes' else 'Gop/s'}"


def _limits(report: BenchReport, limits: Limits) -> Iterator[str]:
    read = f"not measured ({limits.read_problem})"
    if limits.read_bytes_per_s is not None:
        read = _rate(limits.read_bytes_per_s, "bytes")
    yield f"Limits, measured first with {format_count(limits.threads, 'thread')}: memory read {read}."
    for backend in dict.fromkeys(rate.backend for rate in limits.gemm):
        rates = (rate for rate in limits.gemm if rate.backend == backend)
        found = (f"{KIND_NAMES[rate.kind]} {_rate(rate.operations_per_s, 'operations')}" for rate in rates)
        yield f"GEMM of {backend}: {', '.join(found)}."
    yield (
        "Video encoder and prefill: operations of their matrix products, against the faster engine's GEMM by weights "
        "of that format. Decode step: bytes of weights and KV cache, against memory."
    )
    smallest = min((row.work.step_bytes for row in report.rows if row.work is not None), default=None)
    if smallest is not None and limits.cache_bytes is not None and smallest < limits.cache_bytes:
        yield (
            f"A step reads {format_bytes(smallest)}, which the processor's cache of {format_bytes(limits.cache_bytes)} "
            "may hold: such a share says little, and can exceed 100 %."
        )


def _milliseconds(title: str, *keys: str) -> Table:
    table = _table(title)
    for index, heading in enumerate(keys):
        table.add_column(heading, justify="left" if index else "right")
    for heading in ("mean ± std", "median", "p90", "p99", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _add_figures(table: Table, first: str, rows: Sequence[tuple[str, Statistics]]) -> None:
    """Adds a section: ``first`` stands beside its first row. Figures are in seconds, cells in milliseconds."""
    for index, (name, figures) in enumerate(rows):
        percentiles = (format_number(1000 * value) for value in (figures.p50, figures.p90, figures.p99))
        spread = f"{format_number(1000 * figures.mean)} ± {format_number(1000 * figures.std)}"
        table.add_row("" if index else first, name, spread, *percentiles, str(figures.n))
    table.add_section()


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, collapse_padding=True)


def _environment(report: BenchReport) -> Iterator[str]:
    found = report.environment
    cores, threads = found["physical_cores"] or "unknown", report.setup.threads or "one per physical core"
    memory = "unknown" if found["memory_bytes"] is None else format_bytes(found["memory_bytes"])
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    yield f"{found['cpu']}, {cores} cores, {found['usable_cpus']} usable, threads: {threads}, memory {memory}"
    yield f"{found['system']}, Python {found['python']}, blip3v {found['blip3v']}, {packages}"
    load = found["load_average"]
    if load["before"] is not None:
        yield f"Load average before {load['before'][0]}, after {load['after'][0]}; {found['date']}"
    bundles = (f"{row.bundle.name}: manifest sha256 {row.bundle.manifest_sha256[:16]}" for row in report.rows)
    yield from dict.fromkeys(bundles)
