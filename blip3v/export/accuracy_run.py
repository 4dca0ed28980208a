"""Measures the accuracy of a bundle's graphs against the fp32 PyTorch model, in every back end that is asked for.

A back end and the reference take turns, so that only one of them needs memory at a time: the graphs draft answers, the
reference checks all of them in one pass over its layers (``accuracy_reference.py``), the graphs continue from its
corrections. What the reference answers does not depend on who drafts, so it is computed once for all back ends.
"""

# Shapes: M video tokens, N positions, D width, V logits.

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

import blip3v
from blip3v.bundle import layout
from blip3v.bundle.precision import Precision
from blip3v.bundle.scan import scan
from blip3v.errors import BackendError, UsageError
from blip3v.export.accuracy import (
    MAX_ACCURACY_DROP,
    AccuracyReport,
    AnswerScore,
    Budget,
    EngineAccuracy,
    FilmScore,
    LayerCounts,
    LayerError,
    Sizes,
    VideoScore,
    worst_layers,
)
from blip3v.export.accuracy_data import FEW_QUESTIONS, FILM_QUESTIONS, AccuracyData, film_data, own_data
from blip3v.export.accuracy_graphs import Graphs
from blip3v.export.accuracy_measures import kl_divergence, paired_difference, token_cosines
from blip3v.export.accuracy_reference import (
    AnswerRules,
    ClipPrompt,
    Reference,
    clip_batches,
    reference_video_tokens,
)
from blip3v.export.estimate import estimate
from blip3v.export.source import ExportSource
from blip3v.runtime.backends import (
    GRAPHS,
    Backend,
    GraphName,
    backend_names,
    choose_backend,
    get_backend,
    parse_backends,
)
from blip3v.text.prompt import build_prompt
from blip3v.text.template import Message
from blip3v.text.tokenizer import Tokenizer

__all__ = ["AccuracyOptions", "Answers", "compare_answers", "measure_accuracy", "runnable_backends"]

FloatArray = NDArray[np.float32]
# Tokens of an answer: films need fewer, and the answers of a large model are compared far enough by then.
_MAX_ANSWER_TOKENS = 64


class _Progress(Protocol):
    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


def _silent(stage: str, done: int = 0, total: int = 0) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions:
    """What to measure, and what may be lost."""

    max_drop: float = MAX_ACCURACY_DROP  # points of exact match, or of tokens that differ
    backends: tuple[str, ...] | None = None  # as ``parse_backends`` takes each; None: every one that is installed
    data: Path | None = None  # JSON list of own clips; None: films
    num_questions: int | None = None  # about films, from the first; None: 2000 to a model of films, 32 to another
    command: str | None = None  # what the report says it was made with

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise UsageError(f"max_accuracy_drop is {self.max_drop:g} points; 0 to 100 is allowed")
        if self.data is not None and self.num_questions is not None:
            raise UsageError("the number of questions is for films; own clips are all asked about")


@dataclass
class Answers:
    """What one back end answered, next to the reference."""

    own: list[list[int]]  # greedy answers of the graph, each with the token that ends it
    kl: list[FloatArray] = field(default_factory=list)  # at the positions of the reference's answers, in any order
    agreeing: int = 0  # of these positions


def measure_accuracy(
    source: ExportSource,
    folder: Path,
    precision: Precision,
    options: AccuracyOptions,
    *,
    layer_errors: Sequence[LayerError] = (),
    layers: LayerCounts | None = None,
    input_rotation_DD: FloatArray | None = None,
    progress: _Progress = _silent,
) -> AccuracyReport:
    """Runs the graphs and the reference on the same questions.

    Args:
        source: the original model.
        folder: the bundle, or one that is being written and has its graphs and embeddings.
        precision: of its graphs.
        options: what to measure.
        layer_errors: of every layer that was quantised, in any order.
        layers: how many those are.
        input_rotation_DD: by which the graphs' video tokens were multiplied from the right; None: they were not.
        progress: called at each stage.

    Raises:
        UsageError: an unknown back end.
        ConfigError: the list of own clips cannot be used.
        ProviderError: a back end that was asked for, or all of them, cannot run.
        ParityError: a graph returns values that are not finite.
    """
    job = _Job(source, folder, precision, options, input_rotation_DD, progress)
    engines, unavailable = job.engines()
    config = source.config
    return AccuracyReport(
        precision=precision.name,
        reference=source.provenance.name,
        budget=_budget(source, job.data),
        max_accuracy_drop=options.max_drop,
        sizes=_sizes(source, folder),
        layers=layers,
        worst_layers=worst_layers(layer_errors),
        engines=engines,
        unavailable=unavailable,
    )


def runnable_backends(names: Sequence[str] | None) -> dict[str, dict[GraphName, Backend]]:
    """Returns the back end of each graph, by the text that names them; None: each that is installed, for both graphs.

    Raises:
        UsageError: an unknown name.
        ProviderError: one of the names is not installed; for None, none is.
    """
    texts = names
    if texts is None:
        texts = [name for name in backend_names() if get_backend(name).is_installed()] or ["auto"]
    return {
        text: {graph: choose_backend(name, graph) for graph, name in parse_backends(text).items()} for text in texts
    }


def compare_answers(
    graphs: Graphs,
    reference: Reference,
    prompts: Sequence[ClipPrompt],
    video: Sequence[NDArray[np.floating]],
) -> Answers:
    """Lets the graphs answer, and compares every choice with the reference's after the same tokens.

    Args:
        graphs: what is measured.
        reference: which is asked until all its answers are complete; it keeps them for the next call.
        prompts: the questions, the same as the reference's.
        video: the graphs' own video tokens (M, D) of each clip.
    """
    known: list[list[int]] = [[] for _ in prompts]  # of the reference's answers, as far as the graphs were compared
    result = Answers(own=[])
    pending = list(range(len(prompts)))
    while pending:
        drafts = graphs.draft([prompts[i] for i in pending], video, [known[i] for i in pending])
        if not result.own:
            result.own = [draft.token_ids for draft in drafts]
        graphs.make_room(reference.memory_bytes)
        reference.check({i: [*known[i], *draft.token_ids] for i, draft in zip(pending, drafts, strict=True)})
        for i, draft in zip(pending, drafts, strict=True):
            answer, start = reference.answers[i], len(known[i])
            theirs = answer.token_ids[start : start + len(draft.token_ids)]
            agreeing = next(
                (n for n, pair in enumerate(zip(draft.token_ids, theirs)) if pair[0] != pair[1]), len(theirs)
            )
            count = min(agreeing + 1, len(theirs))
            expected_NV = np.stack(answer.logits[start : start + count])
            result.kl.append(kl_divergence(expected_NV, draft.logits_nV[:count]))
            result.agreeing += agreeing
            known[i] = answer.token_ids[: start + count]
        pending = [i for i in pending if len(known[i]) < len(reference.answers[i].token_ids)]
    return result


class _Job:
    """One measurement; what is the same for all back ends is computed once."""

    def __init__(
        self,
        source: ExportSource,
        folder: Path,
        precision: Precision,
        options: AccuracyOptions,
        input_rotation_DD: FloatArray | None,
        progress: _Progress,
    ) -> None:
        self._source, self._folder, self._precision = source, folder, precision
        self._options, self._rotation_DD, self._progress = options, input_rotation_DD, progress
        self._tokenizer = Tokenizer.parse(source.tokenizer_json)
        self.data = _data(source, options)
        self._questions = [question for clip in self.data.clips for question in clip.questions]
        self._truths = [answer for clip in self.data.clips for answer in clip.answers]
        self._prompts = [
            ClipPrompt(number, self._prompt(question))
            for number, clip in enumerate(self.data.clips)
            for question in clip.questions
        ]
        self._rules = self._answer_rules()

    def engines(self) -> tuple[tuple[EngineAccuracy, ...], dict[str, str]]:
        """Measures each back end; returns their results, and why others could not run."""
        chosen = runnable_backends(self._options.backends)
        self._progress("accuracy: the reference's video tokens")
        digest = hashlib.sha256("\n".join([*self._questions, *self._truths]).encode())
        video = reference_video_tokens(self._source.config, self._source.weights, _hashed(self._clips(), digest))
        reference = Reference(
            self._source.config,
            self._source.weights,
            self._prompts,
            video,
            self._rules,
            partial(self._progress, "accuracy: layers of the reference"),
        )
        results, unavailable = [], {}
        for name, backends in chosen.items():
            try:
                results.append(self._engine(name, backends, reference, video, digest.hexdigest()))
            except BackendError as error:
                if self._options.backends is not None or len(unavailable) + 1 == len(chosen):
                    raise
                unavailable[name] = error.message
        return tuple(results), unavailable

    def _engine(
        self,
        name: str,
        backends: Mapping[GraphName, Backend],
        reference: Reference,
        expected: Sequence[FloatArray],
        data_sha256: str,
    ) -> EngineAccuracy:
        started = time.perf_counter()
        self._progress(f"accuracy: {name}")
        with closing(Graphs(self._folder, self._source.config, self._precision, backends, self._rules)) as graphs:
            video = graphs.video_tokens(self._clips())
            answers = compare_answers(graphs, reference, self._prompts, video)
        executions = {graph: backends[graph].execution(self._precision.graphs[graph]) for graph in GRAPHS}
        engines = {execution.backend: execution.version or "" for execution in executions.values()}
        return EngineAccuracy(
            backend=name,
            computed={graph: str(execution) for graph, execution in executions.items()},
            video=self._video_score(video, expected),
            answers=_answer_score(answers, reference),
            films=self._film_score(answers, reference),
            data={
                **self.data.facts,
                "num_clips": len(self.data.clips),
                "num_questions": len(self._prompts),
                "max_answer_tokens": self._rules.max_new_tokens,
                "sha256": data_sha256,
            },
            command=self._options.command,
            versions={
                "blip3v": blip3v.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                **engines,
            },
            seconds=round(time.perf_counter() - started, 1),
        )

    def _clips(self):  # type: ignore[no-untyped-def]
        pixels = [partial(clip.pixels, self._source.preprocessor) for clip in self.data.clips]
        return clip_batches(self._source.config, pixels)

    def _prompt(self, question: str):  # type: ignore[no-untyped-def]
        source = self._source
        return build_prompt(self._tokenizer, source.chat_template, source.generation, [Message("user", question)])

    def _answer_rules(self) -> AnswerRules:
        config = self._source.config
        longest = max(asked.prompt.length(config.num_video_tokens) for asked in self._prompts)
        room = config.text.max_context - longest
        if room < 1:
            raise UsageError(
                f"the longest question takes {longest} tokens with its video; the context has "
                f"{config.text.max_context}; ask shorter questions"
            )
        wanted = min(self._source.generation.max_new_tokens, _MAX_ANSWER_TOKENS, room)
        return AnswerRules(end_id=self._tokenizer.end_id, max_new_tokens=wanted)

    def _video_score(self, video: Sequence[NDArray[np.floating]], expected: Sequence[FloatArray]) -> VideoScore:
        turn = self._rotation_DD
        pairs = [
            (theirs if turn is None else theirs @ turn, ours) for theirs, ours in zip(expected, video, strict=True)
        ]
        cosines = np.concatenate([token_cosines(theirs, ours) for theirs, ours in pairs])
        return VideoScore(num_tokens=len(cosines), cosine_mean=float(cosines.mean()), cosine_min=float(cosines.min()))

    def _film_score(self, answers: Answers, reference: Reference) -> FilmScore | None:
        if not self.data.has_answers:
            return None
        theirs = self._right([answer.token_ids for answer in reference.answers])
        ours = self._right(answers.own)
        drop = paired_difference(int((theirs & ~ours).sum()), int((ours & ~theirs).sum()), len(theirs))
        return FilmScore(
            num_questions=len(theirs), reference=float(theirs.mean()), graphs=float(ours.mean()), drop=drop
        )

    def _right(self, answers: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
        end_id = self._rules.end_id
        texts = [self._tokenizer.decode(ids[:-1] if ids[-1] == end_id else ids) for ids in answers]
        return np.array([text.strip() == truth for text, truth in zip(texts, self._truths, strict=True)])


def _data(source: ExportSource, options: AccuracyOptions) -> AccuracyData:
    if options.data is not None:
        return own_data(options.data, source.config, source.preprocessor)
    default = FILM_QUESTIONS if source.answers_films else FEW_QUESTIONS
    data = film_data(source.config, source.preprocessor, num_questions=options.num_questions or default)
    return data if source.answers_films else data.without_answers()


def _budget(source: ExportSource, data: AccuracyData) -> Budget | None:
    if source.provenance.random_init or not source.provenance.trained:
        return None
    return "exact match" if data.has_answers else "tokens"


def _sizes(source: ExportSource, folder: Path) -> Sizes:
    fp32 = Precision.parse("fp32")
    whole = estimate(source.config, fp32, check=False)
    listed = {name: size for name, size in scan(folder).items() if layout.is_hashed(name)}
    return Sizes(
        graphs={graph: sum(listed[name] for name in layout.graph_files(graph, listed)) for graph in GRAPHS},
        bundle=sum(listed.values()),
        fp32_graphs={graph: 4 * whole.num_weights[graph] for graph in GRAPHS},
        fp32_bundle=whole.disk_bytes,
    )


def _answer_score(answers: Answers, reference: Reference) -> AnswerScore:
    kl = np.concatenate(answers.kl)
    same = [ours == theirs.token_ids for ours, theirs in zip(answers.own, reference.answers, strict=True)]
    return AnswerScore(
        num_tokens=len(kl),
        tokens_agreeing=answers.agreeing,
        kl_mean=float(kl.mean()),
        kl_p99=float(np.percentile(kl, 99)),
        kl_max=float(kl.max()),
        num_answers=len(same),
        answers_agreeing=sum(same),
    )


def _hashed(batches, digest):  # type: ignore[no-untyped-def]
    for batch in batches:
        digest.update(np.ascontiguousarray(batch).tobytes())
        yield batch
