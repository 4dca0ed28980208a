"""``blip3v bench``: tables or JSON on stdout, progress on stderr."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from blip3v.bench.bundles import default_bundles
from blip3v.bench.report import BenchReport
from blip3v.bench.run import run_bench, write_default_clip
from blip3v.bench.tables import print_report
from blip3v.bundle.precision import Precision
from blip3v.errors import UsageError
from blip3v.runtime import OpenEstimate
from blip3v.strict_json import dumps

__all__ = ["command"]

_CACHE = Path("blip3v-bench")


@click.command("bench", short_help="Samples per second against the 1024-token baseline.")
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path), metavar="[BUNDLE]...")
@click.option("-w", "--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Turns thrown away.")
@click.option(
    "-r", "--repetitions", type=click.IntRange(min=1), default=30, show_default=True, help="Turns that count."
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    multiple=True,
    help="Measure with so many video tokens, the bundle's own repeated or cut; may be given several times.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Inside an operator.  [default: one for each physical core]"
)
@click.option("--clip", type=click.Path(path_type=Path), help="Video file.  [default: a film of the film set]")
@click.option(
    "--precision",
    metavar="PRECISION",
    help="Of the bundles that are made, as for export; not with BUNDLE.  [default: fp32]",
)
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    help="Folder of model folders tiny-ENCODER to make them from; not with BUNDLE.  [default: those in the package]",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
@click.option("--force", is_flag=True, help="Overwrite that file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the tables.")
def command(
    bundles: tuple[Path, ...],
    warmup: int,
    repetitions: int,
    tokens: tuple[int, ...],
    threads: int | None,
    clip: Path | None,
    precision: str | None,
    models: Path | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Samples per second of BUNDLEs, beside the one without a temporal encoder.

    A sample is a clip decoded from its file, a question of 32 tokens and 32 new tokens, greedy, batch 1. The bundles
    take turns, each in a process of its own. Without BUNDLE, bundles of 1024, 128, 32 and 16 tokens are made from the
    trained models and kept in the folder blip3v-bench; the one of 16 tokens has an untrained encoder and shows speed
    only.

    \b
    Examples:
      blip3v bench --precision fp16 -o bench.json
      blip3v bench baseline-bundle my-bundle -r 100 --threads 2 --json
      blip3v bench my-bundle --tokens 1024 --tokens 128 --tokens 32 --tokens 16 -w 1 -r 3
    """
    _check(bundles, precision, models, output, force)
    if tokens and not bundles:
        raise UsageError("--tokens has no effect without BUNDLE: the default bundles give 1024, 128, 32 and 16 tokens")
    console = Console(stderr=True, highlight=False)
    if not bundles:
        bundles = tuple(
            default_bundles(
                _CACHE,
                models=models,
                precision=Precision.parse(precision or "fp32"),
                progress=lambda line: console.print(line, soft_wrap=True),
            )
        )
    report = _measure(bundles, clip, warmup, repetitions, tokens, threads, console)
    if output is not None:
        _write(report, output)
        console.print(f"{output} written", soft_wrap=True)
    if as_json:
        click.echo(dumps(report.to_dict()), nl=False)
    else:
        print_report(report, Console(highlight=False))


def _check(
    bundles: tuple[Path, ...], precision: str | None, models: Path | None, output: Path | None, force: bool
) -> None:
    if bundles and (precision is not None or models is not None):
        odd = "--precision" if precision is not None else "--models"
        raise UsageError(f"{odd} has no effect on a bundle that is already made; leave it out, or name no bundle")
    if output is None and force:
        raise UsageError("--force has no effect without --output")
    if output is not None and output.exists() and not (force and output.is_file()):
        hint = "choose another file or add --force" if output.is_file() else "choose a file"
        raise UsageError(f"{output} exists; {hint}")
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"{output.parent} is not a folder; choose an --output in one that is there")


def _measure(
    bundles: tuple[Path, ...],
    clip: Path | None,
    warmup: int,
    repetitions: int,
    tokens: tuple[int, ...],
    threads: int | None,
    console: Console,
) -> BenchReport:
    def announce(bundle: Path, needed: OpenEstimate) -> None:
        if needed.is_large:
            console.print(f"opening {bundle}: {needed}", soft_wrap=True)

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
            threads=threads,
            on_estimate=announce,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _write(report: BenchReport, output: Path) -> None:
    """Writes the JSON whole or not at all."""
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.write_text(dumps(report.to_dict()), "utf-8")
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
