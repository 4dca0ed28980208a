"""``blip3v eval``."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import blip3v
from blip3v.commands.options import BACKEND_HELP
from blip3v.commands.output import check_file, write_json
from blip3v.errors import UsageError
from blip3v.evaluation.exact_match import Answerer, Report, evaluate

__all__ = ["command"]


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True, help="A model folder or a bundle.")
@click.option(
    "--questions",
    "num_questions",
    type=click.IntRange(1, 20000),
    default=2000,
    show_default=True,
    help="Held-out questions, from the first on.",
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where a model folder runs."
)
@click.option("--backend", help=f"Inference engine of a bundle: {BACKEND_HELP}.  [default: auto]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the report to this JSON file.")
@click.option("--force", is_flag=True, help="Overwrite that file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the table.")
def command(
    model: Path,
    num_questions: int,
    device: str,
    backend: str | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Exact match per kind of question on the held-out synthetic films.

    Beside the score stand two baselines that never look: the commonest answer of each kind, and the blind score (the
    commonest answer to the same words).

    \b
    Examples:
      blip3v eval -m runs/tiny-tokenlearner/model
      blip3v eval -m blip3v-tiny-tokenlearner-32tok-fp16 --backend openvino --questions 200 --json
    """
    check_file(output, force=force)
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        answerer, engine = _open(stack, model, device, backend)
        bar = stack.enter_context(Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()))
        task = bar.add_task("questions", total=num_questions)
        report = evaluate(
            answerer,
            num_questions=num_questions,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    record = _record(report, model, device, engine, time.perf_counter() - started)
    if output is not None:
        write_json(record, output)
        click.echo(f"{output} written", err=True)
    if as_json:
        click.echo(json.dumps(record))
    else:
        Console().print(_table(report))


def _open(stack: contextlib.ExitStack, model: Path, device: str, backend: str | None) -> tuple[Answerer, str]:
    """What answers, and what it computes with. Only a model folder needs torch: each is imported when it is given."""
    if (model / "manifest.json").is_file():
        if device != "cpu":
            raise UsageError("a bundle is evaluated on the CPU; --device belongs to model folders")
        from blip3v.evaluation.bundle import BundleAnswerer

        bundle = stack.enter_context(BundleAnswerer(model, backend=backend or "auto"))
        return bundle, str(bundle.backend)
    if backend is not None:
        raise UsageError("a model folder runs in PyTorch; --backend belongs to bundles")
    from blip3v.evaluation.reference import ReferenceAnswerer

    return ReferenceAnswerer(model, device=device), f"PyTorch on {device}"


def _record(report: Report, model: Path, device: str, engine: str, seconds: float) -> dict[str, Any]:
    return {
        "model": model.name if model.name != "model" else model.parent.name,
        "kind": "bundle" if (model / "manifest.json").is_file() else "model folder",
        "device": device,
        "computed": engine,
        "blip3v": blip3v.__version__,
        "seconds": round(seconds, 1),
        **report.to_dict(),
    }


def _table(report: Report) -> Table:
    table = Table(title=f"exact match on {report.num_questions} held-out questions, %")
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
