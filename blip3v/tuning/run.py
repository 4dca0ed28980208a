"""The whole of tuning: a bundle in, the fastest way to run each graph on this machine out, in the bundle.

For each graph first the engines and their settings, then other numbers of threads for the best of them. Every
candidate takes turns with the default; what is faster, and computes otherwise than the bundle's reports know, is
compared with the default's results.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from blip3v.bench.environment import describe_environment
from blip3v.bench.measure import NEW_TOKENS, QUESTION_TOKENS
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.bundle.tuning import Machine, TunedGraph, Tuning
from blip3v.errors import ArtifactError, RequestError, UsageError
from blip3v.runtime.backends import GRAPHS, GraphName
from blip3v.runtime.machine import this_machine
from blip3v.runtime.opening import graph_hash
from blip3v.tuning.accuracy import budget_of
from blip3v.tuning.graph import Asked, Progress, Tuner
from blip3v.tuning.inputs import MAX_QUESTIONS, make_inputs, prompt_tokens
from blip3v.tuning.worker import PIXELS, PROMPTS

__all__ = ["SECONDS", "TuneResult", "run_tune"]

SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """A tuning in its place."""

    path: Path  # of the file
    tuning: Tuning
    seconds: float


def run_tune(
    path: Path,
    *,
    seconds: float = SECONDS,
    question_tokens: int = QUESTION_TOKENS,
    new_tokens: int = NEW_TOKENS,
    num_questions: int = MAX_QUESTIONS,
    command: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> TuneResult:
    """Measures what is at hand for each graph of a bundle and writes the fastest to ``tuning/`` in the bundle.

    What was found for the video encoder is kept if tuning the decoder is interrupted or fails.

    Args:
        path: the bundle's folder.
        seconds: that this should take, at least 1; three turns of the engines are taken however long they are.
        question_tokens: of the questions that the decoder is to be fast for, at least 1.
        new_tokens: of their answers, at least 2.
        num_questions: that results are compared on, at least 1; fewer if they take a tenth of the time.
        command: that was typed, for the file.
        progress: told what is measured, and how many of the samples are taken.

    Raises:
        UsageError: an argument out of its range.
        ArtifactError: not a bundle, one that has changed, or one that cannot be written to.
        ProviderError: nothing installed runs a graph.
        RequestError: prompt and answer do not fit the context.
        OutOfMemoryError: there is no memory for two processes with a graph each.
        BackendError: the default engine failed.
    """
    _check_counts(seconds=seconds, question_tokens=question_tokens, num_questions=num_questions)
    _check_counts(least=2, new_tokens=new_tokens)
    started = time.perf_counter()
    bundle, machine = open_bundle(path), this_machine()
    Tuning.check_writable(bundle.path, machine)
    asked = Asked(
        question_tokens=question_tokens,
        new_tokens=new_tokens,
        prompt_tokens=_fitting_prompt(bundle, question_tokens, new_tokens),
        seconds=seconds,
    )
    found: dict[GraphName, TunedGraph] = {}
    budget = budget_of(bundle)
    publish = partial(_publish, bundle, machine, asked, str(budget), command)
    with tempfile.TemporaryDirectory(prefix="blip3v-tune-") as folder:
        _save_inputs(bundle, num_questions, Path(folder))
        tuner = Tuner(bundle, budget, asked, Path(folder), progress)
        try:
            for graph in GRAPHS:
                found[graph] = tuner.tune(graph)
        except BaseException:
            if found:
                publish(found)
            raise
    written, tuning = publish(found)
    return TuneResult(path=written, tuning=tuning, seconds=time.perf_counter() - started)


def _check_counts(least: int = 1, **counts: float) -> None:
    for name, value in counts.items():
        if not value >= least:
            raise UsageError(f"{name} is {value:g}; at least {least} is needed")


def _fitting_prompt(bundle: Bundle, question_tokens: int, new_tokens: int) -> int:
    num_tokens = prompt_tokens(bundle, question_tokens)
    if num_tokens + new_tokens > bundle.config.text.max_context:
        raise RequestError(
            f"a prompt of {num_tokens} tokens and {new_tokens} new ones do not fit the context of "
            f"{bundle.config.text.max_context}; tune for shorter questions or answers"
        )
    return num_tokens


def _save_inputs(bundle: Bundle, num_questions: int, folder: Path) -> None:
    inputs = make_inputs(bundle, num_questions)
    np.save(folder / PIXELS, inputs.pixels_NF3SS)
    (folder / PROMPTS).write_text(json.dumps([asdict(prompt) for prompt in inputs.prompts]), "utf-8")


def _publish(
    bundle: Bundle,
    machine: Machine,
    asked: Asked,
    budget: str,
    command: str | None,
    found: Mapping[GraphName, TunedGraph],
) -> tuple[Path, Tuning]:
    """Writes what was found; what an earlier tuning has for another graph is kept if it still holds."""
    tuning = Tuning(
        machine=machine,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        graphs=_earlier(bundle, machine) | {str(graph): tuned for graph, tuned in found.items()},
        question_tokens=asked.question_tokens,
        new_tokens=asked.new_tokens,
        budget=budget,
        command=command,
        environment=describe_environment(),
    )
    return tuning.save(bundle.path), tuning


def _earlier(bundle: Bundle, machine: Machine) -> dict[str, TunedGraph]:
    path = Tuning.path(bundle.path, machine)
    try:
        tuning = Tuning.load(path)
    except ArtifactError:  # there is none, or a damaged one, which is about to be replaced
        return {}
    return {graph: tuning.graphs[graph] for graph in GRAPHS if tuning.stale(graph, graph_hash(bundle, graph)) is None}
