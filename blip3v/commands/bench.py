"""``blip3v bench``: tables or JSON on stdout, progress on stderr."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from blip3v.bench.defaults import check_models, default_bundles, write_default_clip
from blip3v.bench.report import LANGUAGE_MODEL, STAGES, WHOLE_CHAIN, BenchReport, ReportRow
from blip3v.bench.run import check_clip, run_bench
from blip3v.bundle.precision import DEFAULT_PRECISION, PRECISIONS, Precision
from blip3v.commands.completed_values import completes
from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.options import BACKEND_HELP
from blip3v.commands.output import check_file, quiet_option, talk, talk_console, write_json
from blip3v.commands.tables import print_table
from blip3v.errors import UsageError
from blip3v.folders import check_bundle
from blip3v.publishing import check_writable
from blip3v.runtime import BackendReport, OpenEstimate
from blip3v.runtime.backends import AUTO, backend_names, choose_backend, parse_backends
from blip3v.runtime.opening import check_threads
from blip3v.strict_json import dumps
from blip3v.units import format_bytes, format_count, format_number, format_ratio

__all__ = ["command", "print_report", "print_throughput"]

_CACHE = Path("blip3v-bench")


@click.command("bench", short_help="Measure samples per second against the 1024-token baseline.")
@click.argument("bundles", nargs=-1, type=MODEL_PATH, metavar="[BUNDLE]...")
@click.option(
    "-w", "--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Turns to discard first."
)
@click.option(
    "-r", "--repetitions", type=click.IntRange(min=1), default=30, show_default=True, help="Turns to measure."
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    multiple=True,
    help="Measure with this many video tokens, repeating or cutting the bundle's own; can be given several times.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=(AUTO,),
    metavar="BACKEND",
    shell_complete=completes((AUTO, *backend_names())),
    help=f"Inference engine: {BACKEND_HELP}; can be given several times to compare.  [default: {AUTO}]",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads per operator.  [default: one per physical core]")
@click.option(
    "--clip", type=click.Path(path_type=Path), help="Video file to measure with.  [default: a film of the film set]"
)
@click.option(
    "--precision",
    metavar="PRECISION",
    shell_complete=completes(PRECISIONS),
    help=f"Precision of the exported bundles, as for `blip3v export`; not with BUNDLE.  [default: {DEFAULT_PRECISION}]",
)
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    help="Folder with the model folders tiny-ENCODER to export; not with BUNDLE.  [default: those in the package]",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
@click.option("--force", is_flag=True, help="Overwrite the file if it exists.")
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
@quiet_option
def command(
    bundles: tuple[Path, ...],
    warmup: int,
    repetitions: int,
    tokens: tuple[int, ...],
    backends: tuple[str, ...],
    threads: int | None,
    clip: Path | None,
    precision: str | None,
    models: Path | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure samples per second of BUNDLEs, compared with the one without a temporal encoder.

    A sample is a clip decoded from its file, a question of 32 tokens and 32 new tokens, greedy, batch size 1. The
    bundles take turns, each in its own process. Without BUNDLE, bundles with 1024, 128, 32 and 16 video tokens are
    exported from the trained models and kept in the folder blip3v-bench; the one with 16 tokens has an untrained
    encoder and only shows speed.

    \b
    Examples:
      blip3v bench -o bench.json
      blip3v bench baseline-bundle my-bundle -r 100 --threads 2 --json
      blip3v bench my-bundle --backend onnxruntime --backend openvino
      blip3v bench my-bundle --tokens 1024 --tokens 128 --tokens 32 --tokens 16 -w 1 -r 3
    """
    chosen = Precision.parse(precision or DEFAULT_PRECISION)
    check_threads(threads)
    _check_options(bundles, tokens, precision, models)
    bundles = tuple(map(local_model, bundles))
    _check_files(bundles, models, clip, output, force)
    for backend in backends:
        for graph, name in parse_backends(backend).items():
            choose_backend(name, graph)
    console = talk_console()
    if not bundles:
        bundles = tuple(default_bundles(_CACHE, models=models, precision=chosen, progress=talk))
    report = _measure(bundles, clip, warmup, repetitions, tokens, backends, threads, console)
    if output is not None:
        write_json(report.to_dict(), output)
        talk(f"wrote {output}")
    if as_json:
        click.echo(dumps(report.to_dict()), nl=False)
    else:
        print_report(report, Console(highlight=False))


def _check_options(
    bundles: tuple[Path, ...], tokens: tuple[int, ...], precision: str | None, models: Path | None
) -> None:
    if tokens and not bundles:
        raise UsageError("--tokens has no effect without BUNDLE: the default bundles have 1024, 128, 32 and 16 tokens")
    if bundles and (precision is not None or models is not None):
        option = "--precision" if precision is not None else "--models"
        raise UsageError(f"{option} has no effect on an existing bundle; leave it out, or name no bundle")


def _check_files(
    bundles: tuple[Path, ...], models: Path | None, clip: Path | None, output: Path | None, force: bool
) -> None:
    check_file(output, force=force)
    if clip is not None:
        check_clip(clip)
    for bundle in bundles:
        check_bundle(bundle)
    if not bundles:
        check_models(models)
        check_writable(_CACHE / "bundle")


def _measure(
    bundles: tuple[Path, ...],
    clip: Path | None,
    warmup: int,
    repetitions: int,
    tokens: tuple[int, ...],
    backends: tuple[str, ...],
    threads: int | None,
    console: Console,
) -> BenchReport:
    def announce(bundle: Path, needed: OpenEstimate) -> None:
        if needed.is_large:
            talk(f"opening {bundle}: {needed}")

    with ExitStack() as stack:
        if clip is None:
            clip = write_default_clip(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        bar = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        task = bar.add_task("samples", total=None)
        return run_bench(
            bundles,
            clip,
            warmup=warmup,
            repetitions=repetitions,
            tokens=tokens,
            backends=backends,
            threads=threads,
            on_estimate=announce,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def print_report(report: BenchReport, console: Console) -> None:
    """Prints samples per second, the stages, and the machine and bundles that were measured."""
    print_throughput(report, console)
    print_table(console, _stages(report))
    for line in _environment(report):
        console.print(escape(line), soft_wrap=True)


def print_throughput(report: BenchReport, console: Console) -> None:
    """Prints samples per second and the notes that explain them."""
    print_table(console, _throughput(report))
    for line in _notes(report):
        console.print(escape(line), soft_wrap=True)


def _throughput(report: BenchReport) -> Table:
    table = _table("samples per second")
    for heading in ("tokens", "bundle"):
        table.add_column(heading, justify="right" if heading == "tokens" else "left")
    several = len({row.backend for row in report.rows}) > 1
    if several:
        table.add_column("back end")
    for heading in ("whole\nchain", "", "language\nmodel", "", "peak\nMiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        bundle = row.bundle
        weights = "" if bundle.weights == "trained" else f", {bundle.weights}"
        peak = "-" if row.peak_rss_bytes is None else format_number(row.peak_rss_bytes / 2**20)
        cells = [cell for quantity in (WHOLE_CHAIN, LANGUAGE_MODEL) for cell in _speed(row, quantity, report.baseline)]
        engine = [_engines(row.backend)] if several else []
        table.add_row(
            str(bundle.num_video_tokens), f"{bundle.encoder} {bundle.precision}{weights}", *engine, *cells, peak
        )
    return table


def _engines(backend: BackendReport) -> str:
    return "\n".join(dict.fromkeys((backend.video_encoder.backend, backend.decoder.backend)))


def _speed(row: ReportRow, quantity: str, baseline: ReportRow | None) -> tuple[str, str]:
    ratio = "-" if baseline is None else format_ratio(row.ratio(quantity, baseline))
    return format_number(row.per_second(quantity)), ratio


def _notes(report: BenchReport) -> Iterator[str]:
    setup, bundle = report.setup, report.rows[0].bundle
    yield (
        f"A sample: {format_count(bundle.num_frames, 'frame')} decoded from {setup.clip}, a question of "
        f"{setup.question_tokens} tokens, {setup.new_tokens} new tokens, batch {setup.batch_size}, {setup.decoding}."
    )
    yield "Whole chain: from the file to the last token. Language model: prefill and decoding steps only."
    turns, warmup = format_count(setup.repetitions, "turn"), format_count(setup.warmup, "turn")
    yield f"Medians of {turns}, bundle after bundle, after {warmup} of warm-up."
    speeds = (f"{format_number(row.tokens_per_s)} with {row.bundle.num_video_tokens}" for row in report.rows)
    yield f"New tokens per second, by video tokens: {', '.join(speeds)}."
    baseline = report.baseline
    if baseline is None:
        yield "No ratios: nothing was measured with all tokens, as without a temporal encoder (`none`)."
    else:
        yield (
            f"1.00x: {baseline.bundle.name} ({format_count(baseline.bundle.num_video_tokens, 'token')}); "
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
            percentiles = (format_number(1000 * value) for value in (figures.p50, figures.p90, figures.p99))
            spread = f"{format_number(1000 * figures.mean)} ± {format_number(1000 * figures.std)}"
            tokens = "" if index else str(row.bundle.num_video_tokens)
            table.add_row(tokens, name, spread, *percentiles, str(figures.n))
        table.add_section()
    return table


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
