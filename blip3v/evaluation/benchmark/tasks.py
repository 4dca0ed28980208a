"""The benchmarks by name: which data set and split each asks, how it is scored, and its place in the paper's tables."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from blip3v.data.records import ClipSample
from blip3v.errors import UsageError
from blip3v.evaluation.benchmark.choices import asked_choice

__all__ = ["BENCHMARKS", "Benchmark", "Form", "asked_question", "benchmark", "form_of", "right_answers"]

Form = Literal["open", "caption", "choice"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark."""

    name: str
    data_set: str  # the name of its reader
    split: str  # that is asked unless another is chosen
    form: Form
    table: int | None = None  # of the paper
    column: str = ""  # in that table


_ALL = (
    Benchmark(name="msvd-qa", data_set="msvd-qa", split="test", form="open", table=1, column="MSVD-QA"),
    Benchmark(name="msrvtt-qa", data_set="msrvtt-qa", split="test", form="open", table=1, column="MSRVTT-QA"),
    Benchmark(
        name="activitynet-qa", data_set="activitynet-qa", split="test", form="open", table=1, column="ActivityNet-QA"
    ),
    # Papers that report the judge's accuracy on TGIF-QA ask the questions of its task FrameQA.
    Benchmark(name="tgif-qa", data_set="tgif-qa", split="test-frameqa", form="open", table=1, column="TGIF-QA"),
    # The paper does not say which split; its rivals report the questions of val.
    Benchmark(name="nextqa", data_set="nextqa", split="val", form="choice", table=2, column="NExT-QA"),
    Benchmark(name="nextqa-open", data_set="nextqa-open", split="test", form="open"),
    Benchmark(name="msvd-caption", data_set="msvd-caption", split="test", form="caption", table=6, column="MSVD-Cap"),
    Benchmark(
        name="msrvtt-caption", data_set="msrvtt-caption", split="test", form="caption", table=6, column="MSRVTT-Cap"
    ),
    Benchmark(name="miradata", data_set="miradata", split="test", form="caption", table=6, column="Mira-Cap"),
    Benchmark(name="huggingface", data_set="huggingface", split="test", form="open"),  # a folder of one's own
)

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in _ALL}


def benchmark(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        UsageError: there is none; the message says the nearest one, or all.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(BENCHMARKS)}"
    raise UsageError(f"benchmark {name!r} is unknown; {hint}")


def form_of(task: Benchmark, samples: Sequence[ClipSample]) -> Form:
    """How samples are scored: as a choice if they have options, else as the benchmark is.

    Raises:
        UsageError: some have options and some have none.
    """
    with_options = sum(bool(one.options) for one in samples)
    if 0 < with_options < len(samples):
        raise UsageError(
            f"{with_options} of {len(samples)} questions have options, the others none; they are scored apart: choose "
            "another split"
        )
    return "choice" if with_options else task.form


def asked_question(sample: ClipSample) -> str:
    """What the model is asked: the sample's last question, with the options if it has any."""
    question = sample.turns[-1].question
    return asked_choice(question, sample.options) if sample.options else question


def right_answers(sample: ClipSample) -> tuple[str, ...]:
    """All right answers to the last question: the first is the one that a judge is given. Of a choice, the option."""
    if sample.options:
        return (sample.turns[-1].answer,)
    return sample.references or (sample.turns[-1].answer,)
