"""``blip3v demo``: run the whole chain on a real clip.

Export and ask are the very commands that a user would type, each in its own process: a step that fails ends the demo
with its own message and exit code, and the questions are asked in a process that cannot import PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console

from blip3v.bench import ROWS, BenchReport, BundleRow, default_bundles, default_film, run_bench, write_default_clip
from blip3v.bench.child import child_environment
from blip3v.bench.defaults import check_models
from blip3v.bundle.layout import PARITY
from blip3v.bundle.precision import DEFAULT_PRECISION
from blip3v.commands.bench_tables import print_throughput
from blip3v.commands.next_command import shorter
from blip3v.commands.output import is_quiet, made_line, quiet_option, talk, talk_console
from blip3v.commands.program import command_line
from blip3v.data.film_files import AskedQuestion, ClipRecord
from blip3v.errors import UsageError
from blip3v.folders import example_clip
from blip3v.publishing import check_writable
from blip3v.python_arguments import code_arguments
from blip3v.strict_json import dumps, read_json
from blip3v.units import format_count, format_duration, format_frame

__all__ = ["command"]

_FOLDER = Path("blip3v-demo")
_MARK = ".made-by-blip3v-demo"
_ROW = BundleRow(encoder="tokenlearner", num_video_tokens=32)
_BUNDLE = _FOLDER / f"blip3v-tiny-tokenlearner-32tok-{DEFAULT_PRECISION}"
_KINDS = ("turn", "direction", "shape")  # one question of each; the first two need time
_WARMUP, _REPETITIONS = 1, 5
_BARRED = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir")
_COMMAND_LINE = "from blip3v.cli import main; main()"
_WITHOUT_TORCH = f"""\
import sys
sys.modules.update(dict.fromkeys({_BARRED!r}))  # from here on, importing one of these raises
{_COMMAND_LINE}
"""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class CheckedAnswer:
    """A question about the clip, the bundle's answer, and the true one."""

    question: str
    answer: str
    true_answer: str
    right: bool
    frames: list[dict[str, Any]]  # index and time_s of each frame that the model saw


class StepFailed(click.ClickException):
    """A step of the demo ended with an error, which its own process has told."""

    def __init__(self, verb: str, exit_code: int) -> None:
        super().__init__(f"the demo ends here: blip3v {verb} failed")
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[str] | None = None) -> None:
        """Prints the sentence without click's "Error:", which the step has printed."""
        click.echo(self.message, file=file, err=True)


@click.command("demo", short_help="Run the whole chain on a real clip: export, check, ask, measure.")
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    help="Folder with the model folders tiny-ENCODER to use.  [default: those in the package]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; everything else goes to stderr.")
@quiet_option
def command(models: Path | None, as_json: bool) -> None:
    """Run the whole chain on a real clip: export, check, ask, measure.

    A small trained model is exported to two ONNX graphs, which are compared with PyTorch; a process without PyTorch
    uses them to answer questions about a video; then samples per second are measured. This takes minutes on two cores.
    Everything is written to the folder blip3v-demo, which is created from scratch each time.

    \b
    Examples:
      blip3v demo
      blip3v demo --json
    """
    start_s = time.perf_counter()
    talks = as_json or is_quiet()
    say: Say = talk if talks else click.echo
    check_models(models)
    clip, record = _make_folder()
    say("A trained model with BLIP-3-Video's architecture is exported from PyTorch to two ONNX graphs, is checked")
    say("against PyTorch, answers questions about a video in a process that cannot import PyTorch, and is measured.")
    say(f"Everything is written to {_FOLDER}.")
    _heading(say, 1, "export in half precision and compare with PyTorch")
    _export(models, say)
    _heading(say, 2, "ask in a process that cannot import PyTorch")
    answers = _ask(clip, record, say)
    _heading(say, 3, "samples per second against the 1024-token baseline")
    report = _bench(clip, models, say, talk_console() if talks else Console(highlight=False))
    seconds = time.perf_counter() - start_s
    next_commands = _next_commands(clip, record)
    _close(say, seconds, answers, next_commands)
    if is_quiet() and not as_json:
        click.echo(f"{_BUNDLE}: {_score(answers)}")
    if as_json:
        values = {
            "clip": str(clip),
            "bundle": str(_BUNDLE),
            "parity": read_json(_BUNDLE / PARITY),
            "answers": [dataclasses.asdict(answer) for answer in answers],
            "bench": report.to_dict(),
            "seconds": round(seconds, 1),
            "next": next_commands,
        }
        click.echo(dumps(values), nl=False)


def _make_folder() -> tuple[Path, ClipRecord]:
    """Creates the demo's folder from scratch; returns the clip and its record with the true answers.

    Raises:
        UsageError: the folder exists and is not the demo's.
    """
    if _FOLDER.exists() or _FOLDER.is_symlink():
        if _FOLDER.is_symlink() or not (_FOLDER / _MARK).is_file():
            raise UsageError(f"{_FOLDER} exists and is not the demo's; move it away, or run the demo elsewhere")
        shutil.rmtree(_FOLDER)
    check_writable(_FOLDER)
    _FOLDER.mkdir()
    (_FOLDER / _MARK).touch()
    clip = example_clip()
    return (write_default_clip(_FOLDER) if clip is None else Path(shorter(clip))), default_film()


def _questions(record: ClipRecord) -> list[AskedQuestion]:
    return [next(item for item in record.questions if item.kind == kind) for kind in _KINDS]


def _export(models: Path | None, say: Say) -> None:
    source = [] if models is None else ["-m", str(models / f"tiny-{_ROW.encoder}")]
    arguments = ["export", "--encoder", _ROW.encoder, "--precision", DEFAULT_PRECISION, *source, "-o", str(_BUNDLE)]
    say(f"$ {command_line(*arguments)}")
    made = json.loads(_run(_COMMAND_LINE, [*arguments, "--json"], quiet=is_quiet()))
    say(made_line(made["output"], made["size_bytes"], made["seconds"], made["peak_rss_bytes"]))


def _ask(clip: Path, record: ClipRecord, say: Say) -> list[CheckedAnswer]:
    say(f"{clip}: {format_duration(record.duration_s)}, {record.num_frames} frames, {record.width}x{record.height}")
    say(f"it shows: {record.caption}")
    answers = []
    for item in _questions(record):
        arguments = ["ask", str(clip), item.question, "-m", str(_BUNDLE)]
        say(f"$ {command_line(*arguments)}")
        values = json.loads(_run(_WITHOUT_TORCH, [*arguments, "--json"], quiet=True))
        answer = CheckedAnswer(
            question=item.question,
            answer=values["text"],
            true_answer=item.answer,
            right=values["text"].strip() == item.answer,
            frames=values["frames"],
        )
        say(_verdict(answer))
        answers.append(answer)
    frames = ", ".join(format_frame(frame["index"], frame["time_s"]) for frame in answers[0].frames)
    say(f"frames that the model saw: {frames}")
    return answers


def _verdict(answer: CheckedAnswer) -> str:
    if answer.right:
        return f"  \N{CHECK MARK} {answer.answer} (correct)"
    return f"  \N{BALLOT X} {answer.answer} (wrong; the true answer is: {answer.true_answer})"


def _bench(clip: Path, models: Path | None, say: Say, console: Console) -> BenchReport:
    others = tuple(row for row in ROWS if row != _ROW)
    made = default_bundles(_FOLDER, models=models, rows=others, progress=say)
    paths = dict(zip(others, made, strict=True)) | {_ROW: _BUNDLE}
    say(f"{format_count(_REPETITIONS, 'turn')} after {format_count(_WARMUP, 'turn')} of warm-up")
    report = run_bench([paths[row] for row in ROWS], clip, warmup=_WARMUP, repetitions=_REPETITIONS)
    print_throughput(report, console)
    (_FOLDER / "bench.json").write_text(dumps(report.to_dict()), "utf-8")
    return report


def _run(code: str, arguments: Sequence[str], *, quiet: bool = False) -> str:
    """Runs the command line in its own process and returns its stdout.

    Its stderr goes to ours; with ``quiet`` only if it fails. A process that fails ends the demo with its exit code.
    """
    sys.stdout.flush()
    done = subprocess.run(
        [sys.executable, *code_arguments(code, *arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        env=child_environment(),
        check=False,
    )
    if done.returncode:
        click.echo(done.stderr or "", nl=False, err=True)
        raise StepFailed(arguments[0], done.returncode)
    return done.stdout


def _next_commands(clip: Path, record: ClipRecord) -> list[str]:
    bundle = str(_BUNDLE)
    return [
        command_line("ask", str(clip), record.questions[0].question, "-m", bundle, "--stream"),
        command_line("inspect", bundle),
        command_line("export", "--help"),
    ]


def _score(answers: Sequence[CheckedAnswer]) -> str:
    return f"{sum(answer.right for answer in answers)} of {len(answers)} answers correct"


def _heading(say: Say, step: int, text: str) -> None:
    say(f"\n[{step}/3] {text}")


def _close(say: Say, seconds: float, answers: Sequence[CheckedAnswer], next_commands: Sequence[str]) -> None:
    say(f"\ndone in {format_duration(seconds)}: {_score(answers)}, every graph checked against PyTorch")
    say(f"bundle: {_BUNDLE}")
    say(f"parity: {_BUNDLE / PARITY}")
    say(f"measurements of all stages: {_FOLDER / 'bench.json'}")
    say("next:")
    for line in next_commands:
        say(f"  {line}")
