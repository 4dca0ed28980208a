"""A benchmark from its data to its result: what has to be known before the model is opened, and what follows."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import blip3v
from blip3v.bundle import layout
from blip3v.bundle.reader import open_bundle
from blip3v.bundle.scan import hash_file
from blip3v.config import ModelConfig
from blip3v.data.digests import digest_of_samples
from blip3v.data.readers import data_set
from blip3v.data.records import ClipSample
from blip3v.endpoint import Client
from blip3v.errors import UsageError
from blip3v.evaluation.benchmark.comparing import Outcome
from blip3v.evaluation.benchmark.judge import Judgement, JudgePrompt, judge
from blip3v.evaluation.benchmark.predicting import ChooseBy
from blip3v.evaluation.benchmark.predictions import Header, Prediction, predictions_digest
from blip3v.evaluation.benchmark.results import JudgeRecord, Result, Score, Unread
from blip3v.evaluation.benchmark.scoring import judge_scores, judged_of, measure, scored
from blip3v.evaluation.benchmark.tasks import Benchmark, asked_question, form_of
from blip3v.folders import MODEL_FILES, kind_of
from blip3v.hub import model_name

__all__ = ["Asked", "ask_of", "header_of", "judged", "score", "with_verdicts_of"]

_JUDGE_SCORES = ("judge accuracy", "judge score")


@dataclass(frozen=True)
class Asked:
    """The questions of a benchmark."""

    benchmark: Benchmark
    form: str
    split: str
    samples: tuple[ClipSample, ...]
    num_available: int  # in the folder; samples may be the first of them
    missing: dict[str, int]


def ask_of(benchmark: Benchmark, root: Path, *, split: str | None = None, limit: int | None = None) -> Asked:
    """Reads the questions.

    Args:
        benchmark: whose.
        root: the folder of its data.
        split: None: the benchmark's own.
        limit: only so many, from the first; None: all.

    Raises:
        UsageError: the data is not there, or none of its clips; captions without the packages that score them.
        ConfigError: an annotation file is not in the published form.
    """
    split = split or benchmark.split
    reader = data_set(benchmark.data_set)
    found = reader.read(root, split)
    if not found.samples:
        lacking = f"{root} has none of the {len(found.missing)} clips of {benchmark.name}, split {split}"
        raise UsageError(f"{lacking}; {reader.about.how_to_get(split)}")
    samples = found.samples[:limit]
    form = form_of(benchmark, samples)
    if form == "caption":
        _check_caption_packages()
    return Asked(benchmark, form, split, samples, len(found.samples), dict(found.missing))


def header_of(asked: Asked, model: Path, choose_by: ChooseBy) -> Header:
    """The header of a run, but for what an opened model tells: ``computed`` is empty."""
    is_bundle = kind_of(model) == "bundle"
    if is_bundle:
        manifest = open_bundle(model).manifest
        precision, num_tokens = str(manifest.precision), manifest.num_video_tokens
        digest = hash_file(model / layout.MANIFEST)  # which holds the hashes of all files
    else:
        precision, num_tokens = "fp32", ModelConfig.load(model / layout.CONFIG).num_video_tokens
        files = "".join(f"{name} {hash_file(model / name)}\n" for name in MODEL_FILES)
        digest = hashlib.sha256(files.encode()).hexdigest()
    example = ClipSample(Path(), asked.samples[0].turns[-1:], options=("...",) if asked.form == "choice" else ())
    question = example.turns[-1].question
    return Header(
        benchmark=asked.benchmark.name,
        data_set=asked.benchmark.data_set,
        split=asked.split,
        form=asked.form,
        num_samples=len(asked.samples),
        num_available=asked.num_available,
        data_digest=digest_of_samples(asked.samples),
        missing=asked.missing,
        model=model_name(model if model.name != "model" else model.parent),
        model_kind="bundle" if is_bundle else "model folder",
        model_digest=digest,
        num_video_tokens=num_tokens,
        precision=precision,
        computed="",
        question_prompt=asked_question(example).replace(question, "{question}"),
        decoding={"temperature": 0, "max_new_tokens": "the model's own", "choose_by": choose_by},
        versions={"blip3v": blip3v.__version__, "python": platform.python_version()},
    )


def score(header: Header, predictions: Sequence[Prediction], path: Path) -> Result:
    """Scores predictions with everything that needs no judge.

    Args:
        header: of their file.
        predictions: one for each question.
        path: their file.
    """
    measured, settings = measure(header.form, scored(predictions))
    return Result(
        header=header,
        predictions=path.name,
        predictions_digest=predictions_digest(predictions),
        scores=tuple(one.score for one in measured),
        unread=tuple(
            Unread(index=one.index, key=one.key, video=one.video, error=one.error or "")
            for one in predictions
            if one.prediction is None
        ),
        judge=None,
        settings=settings,
        blip3v=blip3v.__version__,
    )


def judged(
    result: Result,
    predictions: Sequence[Prediction],
    client: Client,
    prompt: JudgePrompt,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """The result with the judge's scores, and the verdicts.

    Raises:
        EndpointError, ConfigError, OSError: as ``judge``.
    """
    answered, before, cost_before = scored(predictions), client.usage, client.cost  # it may have judged others
    judgement: Judgement = judge(client, prompt, judged_of(answered), progress=progress)
    usage, cost = client.usage.since(before), client.cost
    record = JudgeRecord(
        url=client.endpoint.url,
        model=client.endpoint.model,
        answered_by=judgement.models,
        prompt=prompt.name,
        prompt_digest=prompt.digest,
        num_judged=len(answered),
        num_unparsable=sum(verdict is None for verdict in judgement.verdicts),
        num_requests=usage.num_requests,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cost=None if cost is None else cost - (cost_before or 0.0),
    )
    scores = (*(one.score for one in judge_scores(answered, judgement)), *result.scores)
    return Outcome(result=replace(result, scores=scores, judge=record), predictions=predictions, judgement=judgement)


def with_verdicts_of(result: Result, before: Result | None) -> Result:
    """The result with the verdicts that an earlier one has about the same predictions, if it has any."""
    if before is None or before.judge is None or before.predictions_digest != result.predictions_digest:
        return result
    verdicts: list[Score] = [one for one in before.scores if one.name in _JUDGE_SCORES]
    return replace(result, scores=(*verdicts, *result.scores), judge=before.judge)


def _check_caption_packages() -> None:
    """Before hours of captioning, not after them."""
    for name in ("sacrebleu", "rouge_score"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
