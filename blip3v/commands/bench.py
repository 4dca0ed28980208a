"""``blip3v bench``: tables or JSON on stdout, progress on stderr."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TypedDict

import click
from rich.console import Console
from rich.progress import Progress

from blip3v.bench.defaults import check_models, default_bundles, write_default_clip
from blip3v.bench.limits import Limits, measure_limits
from blip3v.bench.measure import NEW_TOKENS, QUESTION_TOKENS
from blip3v.bench.report import BenchReport
from blip3v.bench.run import check_clip, run_bench
from blip3v.bench.sample import Shape
from blip3v.bundle.precision import DEFAULT_PRECISION, PRECISIONS, Precision
from blip3v.commands.bench_options import COUNTS
from blip3v.commands.bench_tables import print_report
from blip3v.commands.completed_values import completes
from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.options import BACKEND_HELP
from blip3v.commands.output import check_file, quiet_option, talk, talk_console, write_json
from blip3v.commands.program import command_line
from blip3v.errors import UsageError
from blip3v.folders import check_bundle
from blip3v.publishing import check_writable
from blip3v.runtime import OpenEstimate
from blip3v.runtime.backends import AUTO, backend_names, choose_backend, parse_backends
from blip3v.runtime.opening import check_threads
from blip3v.strict_json import dumps

__all__ = ["command"]

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
    "--batch-sizes",
    type=COUNTS,
    metavar="N,N...",
    help="Measure batches of these sizes, for example 1,2,4,8: so many videos and questions answered together.  "
    "[default: 1]",
)
@click.option(
    "--requests-at-once",
    type=COUNTS,
    metavar="N,N...",
    help="Also measure this many requests at once, for example 8: as many threads ask one opened bundle.",
)
@click.option(
    "--question-tokens",
    type=click.IntRange(min=1),
    default=QUESTION_TOKENS,
    show_default=True,
    help="Tokens of the question; those of the chat template come on top.",
)
@click.option(
    "--new-tokens", type=click.IntRange(min=2), default=NEW_TOKENS, show_default=True, help="Tokens of the answer."
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
    batch_sizes: tuple[int, ...] | None,
    requests_at_once: tuple[int, ...] | None,
    question_tokens: int,
    new_tokens: int,
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

    A sample is a clip decoded from its file, a question of 32 tokens and 32 new tokens, greedy. The bundles take turns,
    each in its own process. First the limits of the machine are measured (memory bandwidth, and how fast each engine
    multiplies matrices), and each stage is shown as a share of its limit. Without BUNDLE, bundles with 1024, 128, 32
    and 16 video tokens are exported from the trained models and kept in the folder blip3v-bench; the one with 16 tokens
    has an untrained encoder and only shows speed.

    \b
    Examples:
      blip3v bench -o bench.json
      blip3v bench baseline-bundle my-bundle -r 100 --threads 2 --json
      blip3v bench my-bundle --backend onnxruntime --backend openvino
      blip3v bench my-bundle --tokens 1024 --tokens 128 --tokens 32 --tokens 16 -w 1 -r 3
      blip3v bench my-bundle --batch-sizes 1,2,4,8 --requests-at-once 8 --new-tokens 64
    """
    chosen = Precision.parse(precision or DEFAULT_PRECISION)
    check_threads(threads)
    _check_options(bundles, tokens, precision, models)
    bundles = tuple(map(local_model, bundles))
    _check_files(bundles, models, clip, output, force)
    for backend in backends:
        for graph, name in parse_backends(backend).items():
            choose_backend(name, graph)
    if not bundles:
        bundles = tuple(default_bundles(_CACHE, models=models, precision=chosen, progress=talk))
    talk("measuring the limits of this machine")
    asked = _Asked(
        warmup=warmup,
        repetitions=repetitions,
        shapes=_shapes(tokens, batch_sizes, requests_at_once),
        question_tokens=question_tokens,
        new_tokens=new_tokens,
        backends=backends,
        threads=threads,
        limits=measure_limits(threads),
        command=command_line(*sys.argv[1:]),
    )
    report = _measure(bundles, clip, asked)
    if output is not None:
        write_json(report.to_dict(), output)
        talk(f"wrote {output}")
    if as_json:
        click.echo(dumps(report.to_dict()), nl=False)
    else:
        print_report(report, Console(highlight=False))


class _Asked(TypedDict):
    """What ``run_bench`` is asked for besides the bundles and the clip."""

    warmup: int
    repetitions: int
    shapes: list[Shape]
    question_tokens: int
    new_tokens: int
    backends: tuple[str, ...]
    threads: int | None
    limits: Limits
    command: str


def _shapes(
    tokens: tuple[int, ...], batch_sizes: tuple[int, ...] | None, requests_at_once: tuple[int, ...] | None
) -> list[Shape]:
    """At each number of video tokens first the batches, then the requests at once."""
    loads = [(size, 1) for size in batch_sizes or (1,)] + [(1, count) for count in requests_at_once or ()]
    return [
        Shape(num_video_tokens=count, batch_size=size, requests_at_once=at_once)
        for count in tokens or (None,)
        for size, at_once in dict.fromkeys(loads)
    ]


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


def _measure(bundles: tuple[Path, ...], clip: Path | None, asked: _Asked) -> BenchReport:
    def announce(bundle: Path, needed: OpenEstimate) -> None:
        if needed.is_large:
            talk(f"opening {bundle}: {needed}")

    console = talk_console()
    with ExitStack() as stack:
        if clip is None:
            clip = write_default_clip(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        bar = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        task = bar.add_task("samples", total=None)
        return run_bench(
            bundles,
            clip,
            **asked,
            on_estimate=announce,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
