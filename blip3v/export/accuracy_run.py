"""Measures the accuracy of a bundle's graphs against the fp32 PyTorch model, in every back end that is asked for.

A back end and the reference take turns, so that only one of them needs memory at a time: the graphs draft answers, the
reference checks all of them in one pass over its layers (``accuracy_reference.py``), the graphs continue from its
corrections. What the reference answers does not depend on who drafts, so it is computed once for all back ends.
"""

# Shapes: V logits, D width.

from __future__ import annotations

import functools
import hashlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

import blip3v
from blip3v.bundle import layout
from blip3v.bundle.embeddings import open_embeddings
from blip3v.bundle.precision import Precision
from blip3v.bundle.scan import scan
from blip3v.bundle.targets import DEFAULT_TARGET, Target
from blip3v.calibration.data import ClipSet
from blip3v.config import ModelConfig
from blip3v.errors import BackendError, UsageError
from blip3v.export.accuracy import (
    MAX_ACCURACY_DROP,
    AccuracyReport,
    Budget,
    EngineAccuracy,
    FilmScore,
    LayerCounts,
    LayerError,
    Sizes,
    VideoScore,
    worst_layers,
)
from blip3v.export.accuracy_answers import Answers, answer_score, compare_answers
from blip3v.export.accuracy_data import FEW_QUESTIONS, FILM_QUESTIONS, held_out_films, own_videos
from blip3v.export.accuracy_graphs import Graphs
from blip3v.export.accuracy_measures import paired_difference, rotation_between, token_cosines
from blip3v.export.accuracy_reference import (
    AnswerRules,
    ClipPrompt,
    Reference,
    clip_batches,
    reference_video_tokens,
)
from blip3v.export.estimate import estimate
from blip3v.export.layer_formats import layer_formats, read_quantized
from blip3v.export.source import ExportSource
from blip3v.export.stored_layers import StoredLayer
from blip3v.export.tensorrt_rules import check_tensorrt_rules
from blip3v.model.language import embedding_table
from blip3v.runtime.backends import (
    GRAPHS,
    Backend,
    GraphName,
    backend_names,
    choose_backend,
    get_backend,
    parse_backends,
)
from blip3v.text.tokenizer import Tokenizer

__all__ = ["AccuracyOptions", "measure_accuracy", "runnable_backends"]

FloatArray = NDArray[np.float32]
# Tokens of an answer: films need fewer, and the answers of a large model are compared far enough by then.
_MAX_ANSWER_TOKENS = 64
_KEPT_PIXELS = 2**28  # bytes of clips that are kept between passes; more are read again


class _Progress(Protocol):
    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


def _silent(stage: str, done: int = 0, total: int = 0) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions:
    """What to measure, and what may be lost."""

    max_drop: float = MAX_ACCURACY_DROP  # points of exact match, or of tokens that differ
    backends: tuple[str, ...] | None = (
        None  # as ``parse_backends`` takes each; None: every one that is installed and runs on a CPU
    )
    data: Path | None = None  # folder of own videos with questions; None: films
    num_questions: int | None = None  # about films, from the first; None: 2000 to a model of films, 32 to another
    command: str | None = None  # what the report says it was made with

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise UsageError(f"max_accuracy_drop is {self.max_drop:g} points; 0 to 100 is allowed")
        if self.data is not None and self.num_questions is not None:
            raise UsageError("num_questions is for films, and data names videos of your own; leave one out")


def measure_accuracy(
    source: ExportSource,
    folder: Path,
    precision: Precision,
    options: AccuracyOptions,
    *,
    target: Target = DEFAULT_TARGET,
    layer_errors: Sequence[LayerError] = (),
    layers: LayerCounts | None = None,
    stored: Mapping[str, Sequence[StoredLayer]] | None = None,
    progress: _Progress = _silent,
) -> AccuracyReport:
    """Runs the graphs and the reference on the same questions.

    Args:
        source: the original model.
        folder: the bundle, or one that is being written and has its graphs and embeddings.
        precision: of its graphs.
        options: what to measure.
        target: the form of the graphs.
        layer_errors: of every layer that was quantised, in any order.
        layers: how many those are.
        stored: the layers of each graph; None: they are read.
        progress: called at each stage.

    Raises:
        UsageError: an unknown back end.
        CalibrationError, ConfigError: the folder of own videos cannot be used.
        ProviderError: a back end that was asked for, or all of them, cannot run.
        ParityError: a graph returns values that are not finite.
    """
    job = _Job(source, folder, precision, target, options, progress)
    chosen = runnable_backends(options.backends, target)
    engines, unavailable = job.engines(chosen)
    measured = {engine.backend: chosen[engine.backend] for engine in engines}
    if stored is None:
        stored = read_quantized(folder, source.config, precision)
    return AccuracyReport(
        precision=precision.name,
        reference=source.provenance.name,
        budget=_budget(source, options),
        max_accuracy_drop=options.max_drop,
        sizes=_sizes(source, folder),
        tensorrt=_tensorrt(folder, precision),
        layers=layers,
        formats=layer_formats(stored, source.config, precision, measured),
        worst_layers=worst_layers(layer_errors),
        engines=engines,
        unavailable=unavailable,
    )


def _tensorrt(folder: Path, precision: Precision) -> dict[str, bool]:
    quantized = [graph for graph, spec in precision.graphs.items() if spec.is_quantized]
    return {graph: check_tensorrt_rules(folder / layout.graph_file(graph)).passed for graph in quantized}


def runnable_backends(
    names: Sequence[str] | None, target: Target = DEFAULT_TARGET
) -> dict[str, dict[GraphName, Backend]]:
    """Returns the back end of each graph, by the text that names them.

    Args:
        names: the texts; None: each back end that is installed, runs on a CPU and runs both graphs.
        target: the form of the graphs.

    Raises:
        UsageError: an unknown name.
        ProviderError: one of the names is not installed; for None, none is.
    """
    texts = names
    if texts is None:
        on_cpu = [each for each in map(get_backend, backend_names()) if "cpu" in each.devices and each.is_installed()]
        texts = [each.name for each in on_cpu if target in each.targets] or ["auto"]
    return {
        text: {graph: choose_backend(name, graph, target=target) for graph, name in parse_backends(text).items()}
        for text in texts
    }


def _clip_bytes(config: ModelConfig) -> int:
    return 4 * config.num_frames * 3 * config.vision.image_size**2


class _Job:
    """One measurement; what is the same for all back ends is computed once."""

    def __init__(
        self,
        source: ExportSource,
        folder: Path,
        precision: Precision,
        target: Target,
        options: AccuracyOptions,
        progress: _Progress,
    ) -> None:
        self._source, self._folder, self._precision, self._target = source, folder, precision, target
        self._options, self._progress = options, progress
        self._tokenizer = Tokenizer.parse(source.tokenizer_json)
        self._data = _data(source, options)
        self._asked = [asked for clip in self._data.clips for asked in clip.prompts]
        self._prompts = [
            ClipPrompt(number, asked.prompt) for number, clip in enumerate(self._data.clips) for asked in clip.prompts
        ]
        self._loads = [clip.load for clip in self._data.clips]
        if len(self._loads) * _clip_bytes(source.config) <= _KEPT_PIXELS:
            self._loads = [functools.cache(load) for load in self._loads]
        self._rules = self._answer_rules()

    def engines(
        self, chosen: Mapping[str, Mapping[GraphName, Backend]]
    ) -> tuple[tuple[EngineAccuracy, ...], dict[str, str]]:
        """Measures each back end; returns their results, and why others could not run."""
        self._progress("accuracy: the reference's video tokens")
        digest = hashlib.sha256(repr([(asked.question, asked.answer) for asked in self._asked]).encode())
        video = reference_video_tokens(self._source.config, self._source.weights, _hashed(self._clips(), digest))
        reference = Reference(
            self._source.config,
            self._source.weights,
            self._prompts,
            video,
            self._rules,
            functools.partial(self._progress, "accuracy: layers of the reference"),
        )
        results: list[EngineAccuracy] = []
        unavailable: dict[str, str] = {}
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
        config, precision = self._source.config, self._precision
        with closing(Graphs(self._folder, config, precision, backends, self._rules, self._target)) as graphs:
            video = graphs.video_tokens(self._clips())
            answers = compare_answers(graphs, reference, self._prompts, video)
        executions = {graph: backends[graph].execution(self._precision.graphs[graph]) for graph in GRAPHS}
        engines = {execution.backend: execution.version or "" for execution in executions.values()}
        return EngineAccuracy(
            backend=name,
            computed={graph: str(execution) for graph, execution in executions.items()},
            video=self._video_score(video, expected),
            answers=answer_score(answers, reference),
            films=self._film_score(answers, reference),
            data=self._data.record,
            data_sha256=data_sha256,
            max_answer_tokens=self._rules.max_new_tokens,
            command=self._options.command,
            versions={
                "blip3v": blip3v.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                **engines,
            },
            seconds=round(time.perf_counter() - started, 1),
        )

    def _clips(self) -> Iterator[FloatArray]:
        return clip_batches(self._source.config, self._loads)

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
        # The recipe may have rotated everything that the decoder takes.
        table_VD = embedding_table(self._source.weights, self._source.config.text).numpy()
        turn = rotation_between(table_VD, open_embeddings(self._folder / layout.EMBEDDINGS))
        pairs = [
            (theirs if turn is None else theirs @ turn, ours) for theirs, ours in zip(expected, video, strict=True)
        ]
        cosines = np.concatenate([token_cosines(theirs, ours) for theirs, ours in pairs])
        return VideoScore(num_tokens=len(cosines), cosine_mean=float(cosines.mean()), cosine_min=float(cosines.min()))

    def _film_score(self, answers: Answers, reference: Reference) -> FilmScore | None:
        if not _is_about_films(self._source, self._options):
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
        return np.array([text.strip() == asked.answer for text, asked in zip(texts, self._asked, strict=True)])


def _data(source: ExportSource, options: AccuracyOptions) -> ClipSet:
    if options.data is not None:
        return own_videos(source, options.data)
    default = FILM_QUESTIONS if source.answers_films else FEW_QUESTIONS
    return held_out_films(source, num_questions=options.num_questions or default)


def _is_about_films(source: ExportSource, options: AccuracyOptions) -> bool:
    """Whether the questions are those that the model was trained for, so that exact match means something."""
    return source.answers_films and options.data is None


def _budget(source: ExportSource, options: AccuracyOptions) -> Budget | None:
    if source.provenance.random_init or not source.provenance.trained:
        return None
    return "exact match" if _is_about_films(source, options) else "tokens"


def _sizes(source: ExportSource, folder: Path) -> Sizes:
    counts = estimate(source.config, Precision.parse("fp32"), check=False).num_weights
    listed = {name: size for name, size in scan(folder).items() if layout.is_hashed(name)}
    graphs: dict[str, int] = {
        graph: sum(listed[name] for name in layout.graph_files(graph, listed)) for graph in GRAPHS
    }
    others = sum(listed.values()) - sum(graphs.values()) - listed[layout.EMBEDDINGS]
    return Sizes(
        graphs=graphs,
        bundle=sum(listed.values()),
        fp32_graphs={graph: 4 * counts[graph] for graph in GRAPHS},
        fp32_bundle=4 * sum(counts.values()) + others,
    )


def _hashed(batches: Iterator[FloatArray], digest: hashlib._Hash) -> Iterator[FloatArray]:
    """Passes the clips on and adds them to ``digest``."""
    for batch in batches:
        digest.update(batch.tobytes())
        yield batch
