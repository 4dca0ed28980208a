"""``blip3v eval``: exact match of a model folder or a bundle on held-out films, or a bundle against its model.

``--benchmark`` asks the questions of a published benchmark instead (``eval_benchmark.py``).
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import blip3v
from blip3v.bundle.layout import ACCURACY
from blip3v.bundle.reader import open_bundle
from blip3v.commands.accuracy_report import print_accuracy
from blip3v.commands.completed_values import completes
from blip3v.commands.eval_options import BenchmarkOptions, JudgeOptions, benchmark_options, judge_options
from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.next_command import after_export
from blip3v.commands.options import BACKEND_HELP
from blip3v.commands.output import check_file, quiet_option, talk, talk_console, write_json
from blip3v.commands.program import command_line
from blip3v.commands.stages import show_stages
from blip3v.commands.tables import print_table
from blip3v.errors import UsageError
from blip3v.evaluation.exact_match import Answerer, Report, evaluate
from blip3v.export.accuracy import AccuracyReport, load_report, save_report
from blip3v.folders import check_checkpoint, kind_of
from blip3v.hub import model_name
from blip3v.publishing import check_writable
from blip3v.runtime.backends import AUTO, backend_names, choose_backend, parse_backends
from blip3v.strict_json import dumps
from blip3v.units import format_count

if TYPE_CHECKING:
    from blip3v.commands.eval_benchmark import BenchmarkRun

__all__ = ["command"]

_NUM_QUESTIONS = 2000


@click.command()
@click.option("-m", "--model", type=MODEL_PATH, help="Model folder or bundle, or its hub id.")
@click.option(
    "--reference",
    type=MODEL_PATH,
    help="Model that the bundle was made from, or its hub id: compare the bundle with it in fp32. With --benchmark any "
    "model folder or bundle: score both, and what -m loses.",
)
@click.option(
    "--questions",
    "num_questions",
    type=click.IntRange(1, 20000),
    help="Number of held-out questions, counted from the first.  [default: 2000; with --reference 32 unless the model "
    "was trained on these films; of a benchmark all]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="With --benchmark: the folder of its data. With --reference alone: a folder of your own videos with a "
    "questions.json (128 questions at most), instead of films.",
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Device for a model folder."
)
@click.option(
    "--backend",
    shell_complete=completes((AUTO, *backend_names())),
    help=f"Inference engine for a bundle: {BACKEND_HELP}.  [default: auto; with --reference all installed]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Also write the report to this JSON file; with --reference instead of the bundle's reports/accuracy.json.",
)
@click.option(
    "--force", is_flag=True, help="Overwrite the file if it exists; with --benchmark also make predictions anew."
)
@benchmark_options
@judge_options
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@quiet_option
def command(
    model: Path | None,
    reference: Path | None,
    num_questions: int | None,
    data: Path | None,
    device: str,
    backend: str | None,
    output: Path | None,
    force: bool,
    asked: BenchmarkOptions,
    judging: JudgeOptions,
    as_json: bool,
) -> None:
    """Measure exact match per kind of question on the held-out synthetic films.

    Next to the score are two baselines that never see the film: the commonest answer to each kind of question, and the
    blind score (the commonest answer to the same wording).

    With --reference a bundle is compared with the model that it was made from, in PyTorch fp32: video tokens, logits,
    tokens and answers, on every installed engine, and exact match if the model was trained on these films.

    With --benchmark the questions are those of a published data set: predictions are kept as they come and scored by a
    judge, by match with the references, or by the chosen option, beside the figures of the paper. With --reference too,
    another model answers the same questions, and what -m loses against it is counted question by question.

    \b
    Examples:
      blip3v eval -m runs/tiny-tokenlearner/model
      blip3v eval -m blip3v-tiny-tokenlearner-32tok-fp16 --backend openvino --questions 200 --json
      blip3v eval -m my-bundle --reference runs/mine/model
      blip3v eval --benchmark nextqa --data nextqa -m my-bundle
      blip3v eval --benchmark nextqa --data nextqa -m my-bundle --reference runs/mine/model
    """
    check_file(output, force=force and (output is not None or asked.benchmark is None))
    benchmark = _benchmark(asked, judging, data, num_questions)
    if model is None:
        raise click.MissingParameter(param_hint="'-m' / '--model'", param_type="option")
    model = local_model(model, None)
    if benchmark is not None:
        models = [model, *([local_model(reference, None)] if reference is not None else [])]
        _check_models(models, device, backend)
        benchmark.run(models, device=device, backend=backend or AUTO, force=force, output=output, as_json=as_json)
        return
    (is_bundle,) = _check_models([model], device, backend)
    if reference is not None:
        if not is_bundle:
            raise UsageError(f"{model} is not a bundle; --reference is what a bundle is compared with")
        report_of_bundle = _compare(model, local_model(reference, "checkpoint"), num_questions, data, backend, output)
        _print_comparison(report_of_bundle, model, as_json=as_json)
        return
    if data is not None:
        raise UsageError(
            "--data has no effect without --reference or --benchmark; true answers are known for the films only"
        )
    num_questions = num_questions or _NUM_QUESTIONS
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        answerer, engine = _open(stack, model, device, backend, is_bundle=is_bundle)
        console = talk_console()
        bar = stack.enter_context(Progress(console=console, disable=not console.is_terminal))
        task = bar.add_task("questions", total=num_questions)
        report = evaluate(
            answerer,
            num_questions=num_questions,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    record = _record(report, model, device, engine, time.perf_counter() - started)
    if output is not None:
        write_json(record, output)
        talk(f"wrote {output}")
    if as_json:
        click.echo(json.dumps(record))
    else:
        print_table(Console(highlight=False), _table(report))


def _benchmark(
    asked: BenchmarkOptions, judging: JudgeOptions, data: Path | None, num_questions: int | None
) -> BenchmarkRun | None:
    """The benchmark with its data read; None: none is asked for."""
    if asked.benchmark is None:
        asked.check_unused()
        judging.check_unused()
        if judging.judge is not None:
            raise UsageError("--judge has no effect without --benchmark")
        return None
    from blip3v.commands.eval_benchmark import BenchmarkRun  # only this form needs the data sets' readers

    return BenchmarkRun(asked, judging, data, num_questions)


def _compare(
    bundle: Path,
    reference: Path,
    num_questions: int | None,
    data: Path | None,
    backend: str | None,
    output: Path | None,
) -> AccuracyReport:
    """Measures the bundle against the reference, and writes the report."""
    backends = None if backend is None else (backend,)
    opened = open_bundle(bundle)
    if output is None:
        check_writable(bundle / ACCURACY)
    check_checkpoint(reference, kinds=("model folder", "released"))
    # These import PyTorch, which takes seconds: only after everything that can be checked without it.
    from blip3v.export.accuracy_run import AccuracyOptions, measure_accuracy
    from blip3v.export.source import bundle_source

    options = AccuracyOptions(
        backends=backends, data=data, num_questions=num_questions, command=command_line(*sys.argv[1:])
    )
    source = bundle_source(reference, opened)
    with contextlib.ExitStack() as stack:
        report = measure_accuracy(
            source,
            bundle,
            opened.manifest.precision,
            options,
            target=opened.manifest.target,
            progress=show_stages(talk_console(), stack),
        )
    before = load_report(bundle)
    report = report if before is None else report.merged(before)
    if output is None:
        talk(f"wrote {save_report(report, bundle)}")
    else:
        write_json(report.to_dict(), output)
        talk(f"wrote {output}")
    return report


def _print_comparison(report: AccuracyReport, bundle: Path, *, as_json: bool) -> None:
    next_command = after_export(open_bundle(bundle).manifest, bundle)
    if as_json:
        click.echo(dumps({**report.to_dict(), "next": next_command}), nl=False)
        return
    print_accuracy(report, Console(highlight=False))
    talk(f"next: {next_command}")


def _check_models(models: Sequence[Path], device: str, backend: str | None) -> list[bool]:
    """Which models are bundles; refuses options that go with none of them, and what is neither kind."""
    are_bundles = [kind_of(model) == "bundle" for model in models]
    for model, is_bundle in zip(models, are_bundles, strict=True):
        if not is_bundle:
            check_checkpoint(model, kinds=("model folder", "bundle"))
    if all(are_bundles) and device != "cpu":
        raise UsageError(
            "a bundle is evaluated on the device of its back end; choose that, --device is only for model folders"
        )
    if any(are_bundles):
        for graph, name in parse_backends(backend or AUTO).items():
            choose_backend(name, graph)
    elif backend is not None:
        raise UsageError("a model folder runs in PyTorch; --backend is only for bundles")
    return are_bundles


def _open(
    stack: contextlib.ExitStack, model: Path, device: str, backend: str | None, *, is_bundle: bool
) -> tuple[Answerer, str]:
    """The answerer, and what computes it. Only a model folder needs torch, so each is imported only when it is used."""
    if is_bundle:
        from blip3v.evaluation.bundle import BundleAnswerer

        bundle = stack.enter_context(BundleAnswerer(model, backend=backend or AUTO))
        return bundle, str(bundle.backend)
    from blip3v.evaluation.reference import ReferenceAnswerer

    return ReferenceAnswerer(model, device=device), f"PyTorch on {device}"


def _record(report: Report, model: Path, device: str, engine: str, seconds: float) -> dict[str, Any]:
    return {
        "model": model_name(model if model.name != "model" else model.parent),
        "kind": "bundle" if (model / "manifest.json").is_file() else "model folder",
        "device": device,
        "computed": engine,
        "blip3v": blip3v.__version__,
        "seconds": round(seconds, 1),
        **report.to_dict(),
    }


def _table(report: Report) -> Table:
    title = f"exact match on {format_count(report.num_questions, 'held-out question')}, %"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in ("kind", "questions", "model", "commonest", "blind"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind in report.kinds:
        scores = (f"{100 * score:.1f}" for score in (kind.exact_match, kind.commonest, kind.blind))
        table.add_row(kind.kind, str(kind.num_questions), *scores)
    table.add_section()
    totals = (f"{100 * score:.1f}" for score in (report.exact_match, report.commonest, report.blind))
    table.add_row("all", str(report.num_questions), *totals)
    table.add_row("that need time", "", f"{100 * report.exact_match_time:.1f}", "", "")
    table.add_row("unseen pairs", "", f"{100 * report.exact_match_unseen:.1f}", "", "")
    return table
