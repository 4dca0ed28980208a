"""``blip3v bench``: tables or JSON on stdout, progress on stderr."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TypedDict

import click
from rich.progress import Progress

from blip3v.bench.compare import check_same
from blip3v.bench.defaults import default_bundles, write_default_clip
from blip3v.bench.environment import describe_environment
from blip3v.bench.limits import measure_limits
from blip3v.bench.measure import NEW_TOKENS, QUESTION_TOKENS
from blip3v.bench.random_preset import random_bundle, token_counts
from blip3v.bench.report import BenchReport, Setup
from blip3v.bench.results import INFERENCE, TRAINING, Result, read_result
from blip3v.bench.run import run_bench
from blip3v.bench.sample import Shape
from blip3v.bundle.layout import MANIFEST
from blip3v.bundle.precision import DEFAULT_PRECISION, PRECISIONS, Precision
from blip3v.bundle.scan import hash_file
from blip3v.commands.bench_checks import CACHE, check_baseline, check_inputs, check_options, check_preset
from blip3v.commands.bench_files import ResultFiles
from blip3v.commands.bench_finish import finish
from blip3v.commands.bench_options import COUNTS, PERCENT
from blip3v.commands.bench_tables import print_report
from blip3v.commands.bench_training import PRECISIONS as TRAINING_PRECISIONS
from blip3v.commands.bench_training import TrainingAsked, check_training, measure_training
from blip3v.commands.completed_values import completes
from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.options import BACKEND_HELP
from blip3v.commands.output import quiet_option, talk, talk_console
from blip3v.commands.program import command_line
from blip3v.commands.training_tables import print_training
from blip3v.config import PRESETS
from blip3v.runtime import OpenEstimate
from blip3v.runtime.backends import AUTO, backend_names, choose_backend, parse_backends
from blip3v.runtime.opening import check_threads

__all__ = ["command"]

_TURNS = 3, 30  # of warm-up, and measured
_TURNS_OF_PRESET = 1, 3  # which may be large: each turn then takes minutes


@click.command("bench", short_help="Measure samples per second against the 1024-token baseline.")
@click.argument("bundles", nargs=-1, type=MODEL_PATH, metavar="[BUNDLE]...")
@click.option(
    "-w",
    "--warmup",
    type=click.IntRange(min=0),
    help="Turns to discard first.  [default: 3, with --preset 1]",
)
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(min=1),
    help="Turns to measure.  [default: 30, with --preset 3]",
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
    help="Precision of the exported bundles, as for `blip3v export`, not with BUNDLE; with --training one of "
    f"{', '.join(TRAINING_PRECISIONS)}.  [default: {DEFAULT_PRECISION}, with --training the preset's own]",
)
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    help="Folder with the model folders tiny-ENCODER to export; not with BUNDLE.  [default: those in the package]",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Measure this model shape with random weights: a bundle is exported, after a word on the memory and disk that "
    "it takes, and kept in the folder blip3v-bench; needs --init random, not with BUNDLE.",
)
@click.option("--init", type=click.Choice(["random"]), help="Random weights, for --preset.")
@click.option(
    "--training",
    is_flag=True,
    help="Measure training steps instead, as the paper did: forward, backward and optimizer, with 1024, 128, 32 and 16 "
    "video tokens, random weights, by default of tiny in batches of 4.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Device to train on, for --training.  [default: auto: a GPU if there is one]",
)
@click.option(
    "--gradient-checkpointing",
    is_flag=True,
    help="Recompute activations in the backward pass, which takes less memory; for --training.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
@click.option("--csv", type=click.Path(path_type=Path), help="Also write a CSV file with one line for each row.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the tables to this Markdown file.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Also draw samples per second and the stages to this file (.png, .svg or .pdf); needs the extra eval.  "
    "[default: blip3v-bench/bench.png without BUNDLE and --training, else none]",
)
@click.option("--force", is_flag=True, help="Overwrite these files if they exist.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="Compare with this earlier JSON of the same setup, machine and bundles; exits with code 10 if a median is "
    "slower than the tolerance allows.",
)
@click.option(
    "--tolerance", type=PERCENT, metavar="PERCENT", help="Share by which a median may be slower.  [default: 10%]"
)
@click.option(
    "--allow-other-setup", is_flag=True, help="Compare even if setup, machine or bundles are not the baseline's."
)
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
@quiet_option
def command(
    bundles: tuple[Path, ...],
    warmup: int | None,
    repetitions: int | None,
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
    preset: str | None,
    init: str | None,
    training: bool,
    device: str | None,
    gradient_checkpointing: bool,
    output: Path | None,
    csv: Path | None,
    markdown: Path | None,
    plot: Path | None,
    force: bool,
    baseline: Path | None,
    tolerance: float | None,
    allow_other_setup: bool,
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
      blip3v bench --preset xgen-mm-vid --init random --precision int8
      blip3v bench --baseline bench.json --tolerance 15% --markdown bench.md
      blip3v bench --training -o training.json
      blip3v bench --training --preset xgen-mm-vid --init random --batch-sizes 4,16
    """
    check_training(
        {
            **{"BUNDLE": bundles, "--tokens": tokens, "--requests-at-once": requests_at_once, "--clip": clip},
            **{"--backend": backends != (AUTO,), "--models": models},
        }
        if training
        else {"--device": device, "--gradient-checkpointing": gradient_checkpointing},
        training=training,
        preset=preset,
        init=init,
        precision=precision,
    )
    check_threads(threads)
    check_baseline(baseline, tolerance, allow_other_setup)
    files = ResultFiles(output=output, csv=csv, markdown=markdown, plot=plot, force=force)
    earlier = None if baseline is None else read_result(baseline, TRAINING if training else INFERENCE)
    if training:
        files.check()
        steps = TrainingAsked(
            preset=preset,
            precision=precision,
            device=device,
            gradient_checkpointing=gradient_checkpointing,
            batch_sizes=batch_sizes,
            threads=threads,
            question_tokens=question_tokens,
            new_tokens=new_tokens,
            warmup=warmup,
            repetitions=repetitions,
        )
        result, differences = measure_training(steps, earlier, allow_other_setup)
        finish(result, lambda console: print_training(result, console), earlier, tolerance, differences, files, as_json)
        return
    chosen = Precision.parse(precision or DEFAULT_PRECISION)
    check_options(bundles, tokens, precision, models, preset)
    check_preset(bundles, preset, init, models)
    exports = not bundles
    bundles = tuple(map(local_model, bundles))
    files.check()
    check_inputs(bundles, models, clip, trained=preset is None)
    for backend in backends:
        for graph, name in parse_backends(backend).items():
            choose_backend(name, graph)
    if preset is not None:
        bundles = (random_bundle(CACHE, preset, precision=chosen, backends=backends, progress=talk),)
        tokens = tokens or token_counts(preset)
    elif exports:
        bundles = tuple(default_bundles(CACHE, models=models, precision=chosen, progress=talk))
    default_warmup, default_repetitions = _TURNS if preset is None else _TURNS_OF_PRESET
    asked = _Asked(
        warmup=default_warmup if warmup is None else warmup,
        repetitions=default_repetitions if repetitions is None else repetitions,
        shapes=_shapes(tokens, batch_sizes, requests_at_once),
        question_tokens=question_tokens,
        new_tokens=new_tokens,
        backends=backends,
        threads=threads,
        command=command_line(*sys.argv[1:]),
    )
    report, differences = _measure(bundles, clip, asked, earlier, allow_other_setup)
    default_plot = CACHE / "bench.png" if exports and plot is None else None
    finish(
        report.to_dict(),
        lambda console: print_report(report, console),
        earlier,
        tolerance,
        differences,
        files,
        as_json,
        default_plot=default_plot,
    )


class _Asked(TypedDict):
    """What ``run_bench`` is asked for besides the bundles and the clip."""

    warmup: int
    repetitions: int
    shapes: list[Shape]
    question_tokens: int
    new_tokens: int
    backends: tuple[str, ...]
    threads: int | None
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


def _measure(
    bundles: tuple[Path, ...], clip: Path | None, asked: _Asked, baseline: Result | None, allow_other_setup: bool
) -> tuple[BenchReport, tuple[str, ...]]:
    """The report, and in what it differs from the baseline, which is checked before anything is measured."""

    def announce(bundle: Path, needed: OpenEstimate) -> None:
        if needed.is_large:
            talk(f"opening {bundle}: {needed}")

    console = talk_console()
    with ExitStack() as stack:
        if clip is None:
            clip = write_default_clip(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        differences = () if baseline is None else _differences(baseline, bundles, clip, asked, allow_other_setup)
        talk("measuring the limits of this machine")
        limits = measure_limits(asked["threads"])
        bar = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        task = bar.add_task("samples", total=None)
        report = run_bench(
            bundles,
            clip,
            **asked,
            limits=limits,
            on_estimate=announce,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return report, differences


def _differences(
    baseline: Result, bundles: tuple[Path, ...], clip: Path, asked: _Asked, allow_other_setup: bool
) -> tuple[str, ...]:
    setup = Setup(
        clip=clip.name,
        clip_sha256=hash_file(clip),
        warmup=asked["warmup"],
        repetitions=asked["repetitions"],
        threads=asked["threads"],
        question_tokens=asked["question_tokens"],
        new_tokens=asked["new_tokens"],
    )
    return check_same(
        baseline,
        setup=dataclasses.asdict(setup),
        environment=describe_environment(),
        bundles={bundle.name: hash_file(bundle / MANIFEST) for bundle in bundles},
        allow_other_setup=allow_other_setup,
    )
