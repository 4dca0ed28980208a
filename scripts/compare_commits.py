"""Compares exports and answers of two commits bit for bit: graphs, logits, video tokens, token ids, log-probabilities.

    python scripts/compare_commits.py 43cee2d main -o benchmarks/results/compare-commits.json
    python scripts/compare_commits.py HEAD . --models tiny-gttm --precisions fp16 --questions 2

BASE and HEAD are commits, or folders that hold a checkout (``.``, ``../other``), which are used as they are. Each side
exports the shipped models with its own code and answers with its own runtime, in separate processes, about the clips
and questions in this checkout's examples/. The logits come from the decoder graphs, which this script runs itself.

Exit codes: 0 all equal, 1 something differs, 2 nothing was compared (unknown commit, failed command).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.numpy import load_file

from blip3v.bench.environment import describe_environment, load_average

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("tiny-tokenlearner", "tiny-gttm", "tiny-none")
PRECISIONS = ("fp16", "fp32")
PROMPT_LENGTHS = (40, 23)  # two rows, the second padded
NUM_STEPS = 8
_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "safetensors")  # the exports depend on them

Arrays = Mapping[str, NDArray[Any]]


_AXIS_NAME = re.compile(r'dim_param: "[^"]*"')


class CompareError(Exception):
    """Nothing can be compared: an unknown commit, or a failed command."""


@dataclass(frozen=True)
class Side:
    """One of the two checkouts."""

    name: str  # "base" or "head"
    given: str  # as typed
    checkout: Path
    commit: str | None  # None: a folder without git
    changes: tuple[str, ...]  # files below blip3v/ that differ from the commit


@dataclass(frozen=True)
class Row:
    """One kind of output of one bundle, compared."""

    model: str
    precision: str
    what: str
    values: int
    differing: int
    largest_difference: float | None  # None: equal, or not comparable numerically
    first: str | None  # the first case that differs


# --- the two sides


@contextlib.contextmanager
def open_side(name: str, given: str, folder: Path) -> Iterator[Side]:
    """Yields a folder as it is, or a commit in a temporary worktree below ``folder``.

    Raises:
        CompareError: ``given`` is neither a checkout nor a commit.
    """
    if given.startswith(".") or Path(given).is_absolute():
        yield _folder_side(name, given)
        return
    try:
        commit = _git(ROOT, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{given}^{{commit}}")
    except CompareError as error:
        raise CompareError(
            f"{given!r} is not a commit of this repository; give a commit, branch or tag, or a folder that starts "
            "with . or /"
        ) from error
    checkout = folder / name
    _git(ROOT, "worktree", "add", "--quiet", "--detach", str(checkout), commit)
    try:
        yield Side(name, given, checkout, commit, ())
    finally:
        _git(ROOT, "worktree", "remove", "--force", str(checkout))


def _folder_side(name: str, given: str) -> Side:
    checkout = Path(given).resolve()
    if not (checkout / "blip3v" / "__init__.py").is_file():
        raise CompareError(f"{given!r} is not a checkout: it has no blip3v/__init__.py; give its root folder")
    if not (checkout / ".git").exists():
        return Side(name, given, checkout, None, ())
    changed = _git(checkout, "status", "--porcelain", "--", "blip3v").splitlines()
    return Side(name, given, checkout, _git(checkout, "rev-parse", "HEAD"), tuple(line.split()[-1] for line in changed))


def check_reportable(side: Side) -> None:
    """Checks that a report can name the code that ran.

    Raises:
        CompareError: the checkout is not exactly a commit.
    """
    if side.commit is None:
        raise CompareError(f"{side.given!r} is not a git checkout, so a report cannot name its commit; leave out -o")
    if side.changes:
        raise CompareError(
            f"{side.given!r} has uncommitted changes ({', '.join(side.changes[:4])}), so a report would name a commit "
            "that did not run; commit them or leave out -o"
        )


def check_models(sides: Sequence[Side], models: Sequence[str]) -> None:
    """Checks that both sides ship every model.

    Raises:
        CompareError: one does not.
    """
    for side in sides:
        for model in models:
            if not (side.checkout / "blip3v" / "models" / model / "model.safetensors").is_file():
                raise CompareError(f"{side.given} ships no model {model!r} in blip3v/models")


def _git(folder: Path, *words: str) -> str:
    ran = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
    if ran.returncode:
        raise CompareError(f"git {words[0]} failed: {ran.stderr.strip() or f'code {ran.returncode}'}")
    return ran.stdout.rstrip()


# --- the outputs of a side


def outputs_of(side: Side, model: str, precision: str, folder: Path, num_questions: int | None) -> dict[str, Any]:
    """Exports one bundle and runs it; returns arrays by name (``what|case``)."""
    bundle = folder / f"{side.name}-{model}-{precision}"
    archive = bundle.with_suffix(".npz")
    source = side.checkout / "blip3v" / "models" / model
    # The export's own parity check would only read the same files; it changes none of them.
    _run(side, "-m", "blip3v", "export", "-m", source, "--precision", precision, "--no-check", "-o", bundle)
    limit = () if num_questions is None else ("--questions", num_questions)
    _run(side, "-P", ROOT / "scripts" / "checkout_outputs.py", bundle, ROOT / "examples", archive, *limit)
    with np.load(archive) as answers:
        outputs = dict(file_hashes(bundle)) | dict(decoder_logits(bundle)) | dict(answers)
    shutil.rmtree(bundle)
    return outputs


def _run(side: Side, *words: object) -> None:
    """Runs Python with the side's blip3v, on one thread because both sides run at once."""
    command = [sys.executable, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(side.checkout), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=side.checkout, env=environment, capture_output=True, text=True)
    if ran.returncode:
        stderr = "\n".join(ran.stderr.strip().splitlines()[-15:])
        raise CompareError(f"{side.given}: {shlex.join(command)} ended with code {ran.returncode}:\n{stderr}")


def file_hashes(bundle: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields the sha256 of graphs, of graph texts without the names of free axes, of weights and of embeddings."""
    for what, paths in (
        ("graphs", sorted(bundle.glob("onnx/*.onnx"))),
        ("stored weights", [*sorted(bundle.glob("onnx/*.data")), bundle / "embeddings.safetensors"]),
    ):
        for path in paths:
            name = path.relative_to(bundle).as_posix()
            yield f"{what} (sha256)|{name}", _sha256(path.read_bytes())
    for path in sorted(bundle.glob("onnx/*.onnx")):
        graph = str(onnx.load(path, load_external_data=False))
        # Renaming an axis changes the file but not the computation.
        yield f"graphs but for axis names (sha256)|{path.name}", _sha256(_AXIS_NAME.sub("", graph).encode())


def _sha256(content: bytes) -> NDArray[Any]:
    return np.array([hashlib.sha256(content).hexdigest()])


def decoder_logits(bundle: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields the logits of a prefill of two rows and of the steps after it; past and present share their memory."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    path = bundle / "onnx" / "decoder.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {tensor.name: tensor for tensor in session.get_inputs()}
    dtype = np.dtype(np.float16 if inputs["inputs_embeds"].type == "tensor(float16)" else np.float32)
    rows, capacity = len(PROMPT_LENGTHS), max(PROMPT_LENGTHS) + NUM_STEPS
    caches = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(
            np.zeros((rows, tensor.shape[1], capacity, tensor.shape[3]), dtype)
        )
        for name, tensor in inputs.items()
        if name.startswith("past.")
    }
    (table_VD,) = load_file(bundle / "embeddings.safetensors").values()
    ids_BS = np.random.default_rng(0).integers(len(table_VD), size=(rows, capacity))
    embeds_BSD = table_VD[ids_BS].astype(dtype)
    lengths = np.array(PROMPT_LENGTHS)
    start = max(lengths)
    yield "logits: prefill|2 rows", _logits(session, caches, embeds_BSD[:, :start], lengths - 1, lengths)
    for step in range(NUM_STEPS):
        new_B1D = embeds_BSD[:, start + step : start + step + 1]
        last = np.zeros(rows, np.int64)
        yield f"logits: steps|step {step + 1}", _logits(session, caches, new_B1D, last, lengths + step + 1)


def _logits(
    session: Any,
    caches: Mapping[str, Any],
    embeds_BtD: NDArray[Any],
    logits_index: NDArray[Any],
    lengths: NDArray[Any],
) -> NDArray[Any]:
    """Runs the decoder once; ``lengths`` count the valid tokens of each row, including the new ones."""
    binding = session.io_binding()
    inputs = {
        "inputs_embeds": np.ascontiguousarray(embeds_BtD),
        "logits_index": _in_form_of(session, logits_index.astype(np.int64)),
        "seqlens_k": (lengths - 1).astype(np.int32),
        "total_sequence_length": np.array(lengths.max(), np.int32),
    }
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name, cache in caches.items():
        binding.bind_ortvalue_input(name, cache)
        binding.bind_ortvalue_output(name.replace("past.", "present."), cache)
    binding.bind_output("logits")
    session.run_with_iobinding(binding)
    logits: NDArray[Any] = binding.get_outputs()[-1].numpy()  # (B,V), or (B,1,V)
    return logits.reshape(len(lengths), -1)


def _in_form_of(session: Any, index_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """One position of each row, (B,1) where the graph takes several."""
    rank = next(len(node.shape) for node in session.get_inputs() if node.name == "logits_index")
    return index_B if rank == 1 else index_B[:, None]


# --- the comparison


def compare(model: str, precision: str, base: Arrays, head: Arrays) -> list[Row]:
    """Returns one row for each ``what``; an array that only one side has differs in every value."""
    names = sorted(base.keys() | head.keys(), key=[*base, *head].index)
    whats = dict.fromkeys(name.partition("|")[0] for name in names)
    return [
        _row(model, precision, what, [n for n in names if n.partition("|")[0] == what], base, head) for what in whats
    ]


def _row(model: str, precision: str, what: str, names: Sequence[str], base: Arrays, head: Arrays) -> Row:
    found = {name.partition("|")[2]: _difference(base.get(name), head.get(name)) for name in names}
    distances = [distance for _, _, distance in found.values() if distance is not None]
    return Row(
        model=model,
        precision=precision,
        what=what,
        values=sum(values for values, _, _ in found.values()),
        differing=sum(differing for _, differing, _ in found.values()),
        largest_difference=max(distances, default=None),
        first=next((case for case, (_, differing, _) in found.items() if differing), None),
    )


def _difference(base: NDArray[Any] | None, head: NDArray[Any] | None) -> tuple[int, int, float | None]:
    """The number of values, how many differ in any bit, and the largest distance if it is finite."""
    if base is None or head is None:
        size = sum(side.size for side in (base, head) if side is not None)
        return size, max(size, 1), None
    values = max(base.size, head.size)
    if base.shape != head.shape or base.dtype.kind != head.dtype.kind:
        return values, max(values, 1), None
    if base.dtype.kind == "U":  # the width of a text array follows from its text
        return values, int((base != head).sum()), None
    if base.dtype != head.dtype:
        return values, max(values, 1), None
    bits = f"u{base.dtype.itemsize}"
    differing = int((np.ascontiguousarray(base).view(bits) != np.ascontiguousarray(head).view(bits)).sum())
    if not differing or base.dtype.kind != "f":
        return values, differing, None
    with np.errstate(invalid="ignore"):
        distance = float(np.abs(base.astype(np.float64) - head.astype(np.float64)).max())
    return values, differing, distance if math.isfinite(distance) else None


# --- the report


def table_of(rows: Sequence[Row]) -> Table:
    """A table of the rows; equal parts of a scenario share a line."""
    table = Table(box=box.SIMPLE)
    for name in ("model", "precision", "what", "values", ""):
        table.add_column(name, justify="right" if name == "values" else "left", no_wrap=bool(name))
    for (model, precision, what), members in groupby(rows, lambda r: (r.model, r.precision, r.what.partition(":")[0])):
        group = list(members)
        if not any(row.differing for row in group):
            table.add_row(model, precision, what, f"{sum(row.values for row in group):,}", "equal")
            continue
        for row in group:
            table.add_row(model, precision, row.what, f"{row.values:,}", _verdict(row))
    return table


def _verdict(row: Row) -> str:
    if not row.differing:
        return "equal"
    by = "" if row.largest_difference is None else f", by up to {row.largest_difference:.1e}"
    return f"{row.differing:,} DIFFER{by}; first: {row.first}"


def _summary(rows: Sequence[Row]) -> str:
    differing = sum(1 for row in rows if row.differing)
    return f"{differing} of {len(rows)} rows differ" if differing else f"all {len(rows)} rows equal, bit for bit"


def report_of(command: str, base: Side, head: Side, rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """The report as JSON: command, commits, environment, rows."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    environment = describe_environment()
    return {
        "schema_version": 1,
        "command": command,
        "base": {"asked": base.given, "commit": base.commit},
        "head": {"asked": head.given, "commit": head.commit},
        "equal": not any(row.differing for row in rows),
        "seconds": round(seconds, 1),
        "environment": environment | {"packages": environment["packages"] | packages, "load_average": load_average()},
        "rows": [dataclasses.asdict(row) for row in rows],
    }


# --- the command


def run(options: argparse.Namespace) -> list[Row]:
    """Compares, prints the table, and writes the report if one was requested.

    Raises:
        CompareError: nothing can be compared.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blip3v-compare-")))
        sides = [
            stack.enter_context(open_side(name, given, folder))
            for name, given in (("base", options.base), ("head", options.head))
        ]
        check_models(sides, options.models)
        if options.output is not None:
            for side in sides:
                check_reportable(side)
        rows = _compare_all(sides, options, folder)
    Console(width=None if sys.stdout.isatty() else 160).print(table_of(rows))
    if options.output is not None:
        report = report_of(options.command, sides[0], sides[1], rows, time.perf_counter() - started)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return rows


def _compare_all(sides: Sequence[Side], options: argparse.Namespace, folder: Path) -> list[Row]:
    rows: list[Row] = []
    bar = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
    with bar, ThreadPoolExecutor(len(sides)) as pool:  # an export uses one core, so both sides run at once
        task = bar.add_task("", total=len(options.models) * len(options.precisions))
        for model in options.models:
            for precision in options.precisions:
                bar.update(task, description=f"{model} {precision}")
                waiting = [pool.submit(outputs_of, side, model, precision, folder, options.questions) for side in sides]
                base, head = (future.result() for future in waiting)
                found = compare(model, precision, base, head)
                bar.console.print(f"{model} {precision}: {_summary(found)}")
                bar.advance(task)
                rows += found
    return rows


def main(words: Sequence[str]) -> None:
    """Runs the command line and exits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="commit, or a checkout's folder")
    parser.add_argument("head", help="commit, or a checkout's folder")
    parser.add_argument("-o", "--output", type=Path, help="JSON report (default: only the table)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="default: all shipped models")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="default: both")
    parser.add_argument("--questions", type=int, metavar="N", help="questions of each clip (default: all)")
    options = parser.parse_args(words)
    options.command = shlex.join(["python", "scripts/compare_commits.py", *words])
    if options.questions is not None and options.questions < 1:
        parser.error(f"--questions is {options.questions}; at least 1 is needed")
    try:
        rows = run(options)
    except CompareError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(_summary(rows))
    sys.exit(1 if any(row.differing for row in rows) else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktrees are removed
    main(sys.argv[1:])
