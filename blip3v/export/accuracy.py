"""The accuracy report of a quantised model: what it holds, and whether it stays within its budget.

Every measure compares the graphs, as an inference engine runs them, with the fp32 PyTorch model of the original
weights. Not here: how the numbers are obtained (``accuracy_run.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blip3v import strict_json
from blip3v.bundle.layout import ACCURACY
from blip3v.calibration.record import DataRecord
from blip3v.errors import ConfigError, ParityError
from blip3v.export.accuracy_measures import PairedDifference
from blip3v.publishing import cannot_write, write_file
from blip3v.units import format_count

__all__ = [
    "MAX_ACCURACY_DROP",
    "AccuracyReport",
    "AnswerScore",
    "EngineAccuracy",
    "FilmScore",
    "LayerCounts",
    "LayerError",
    "LayerFormats",
    "Sizes",
    "VideoScore",
    "load_report",
    "save_report",
    "worst_layers",
]

SCHEMA_VERSION = 2
MAX_ACCURACY_DROP = 1.0  # points
_NUM_WORST = 10

Budget = Literal["exact match", "tokens"]


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """How far the stored integers move the output of one linear layer, on inputs that it really saw."""

    name: str  # as ``calibration.layers.linear_layers`` names it
    graph: str  # video_encoder or decoder
    node: str  # its matrix product in the graph
    weights: str  # the format that its weights are stored in, a key of ``WEIGHT_FORMATS``
    relative_error: float  # of its outputs, as ``layer_errors.relative_error`` measures it
    computed: dict[str, str]  # back end -> what it computes the layer in

    @property
    def pattern(self) -> str:
        """``GRAPH:NODE``, as ``Precision.with_nodes`` takes it to keep the layer in half precision."""
        return f"{self.graph}:{self.node}"


@dataclass(frozen=True, kw_only=True)
class LayerCounts:
    """How many linear layers were to be quantised, and what became of them."""

    asked: int  # that the precision quantises
    quantized: int
    kept: int  # that the precision keeps in floating point


@dataclass(frozen=True, kw_only=True)
class LayerFormats:
    """The linear layers of a quantised graph that are stored alike."""

    graph: str  # video_encoder or decoder
    weights: str  # the format that their weights are stored in, a key of ``WEIGHT_FORMATS``
    group_size: int | None  # inputs that share a scale; None: all of an output channel, or floats
    padded: bool  # whether zeros fill the last group, as the number of inputs is no multiple of it
    num_layers: int
    computed: dict[str, str]  # back end -> what it computes them in

    @property
    def key(self) -> tuple[str, str, int | None, bool]:
        """What the layers have in common."""
        return self.graph, self.weights, self.group_size, self.padded


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes on disk, beside what the same model would take in fp32."""

    graphs: dict[str, int]  # video_encoder, decoder: the graph with its weights
    bundle: int  # all files that the manifest lists
    fp32_graphs: dict[str, int]  # computed: weights only
    fp32_bundle: int  # computed


@dataclass(frozen=True, kw_only=True)
class VideoScore:
    """Cosine of each video token with the reference's."""

    num_tokens: int
    cosine_mean: float
    cosine_min: float


@dataclass(frozen=True, kw_only=True)
class AnswerScore:
    """The decoder's choices, fed with the tokens of the reference's own greedy answers, and its own greedy answers."""

    num_tokens: int  # of the reference's answers, the token that ends each of them included
    tokens_agreeing: int  # that the graph would have chosen too
    kl_mean: float  # KL(reference || graph) of the distributions after the same tokens, in nats
    kl_p99: float
    kl_max: float
    num_answers: int
    answers_agreeing: int  # greedy answers of the graph that are the reference's, token by token

    @property
    def disagreement(self) -> float:
        """Share of the tokens that the graph would not have chosen, in points."""
        return 100 * (self.num_tokens - self.tokens_agreeing) / self.num_tokens


@dataclass(frozen=True, kw_only=True)
class FilmScore:
    """Exact match on held-out questions about films, answered by both."""

    num_questions: int
    reference: float  # shares in [0, 1]
    graphs: float
    drop: PairedDifference


@dataclass(frozen=True, kw_only=True)
class EngineAccuracy:
    """What one back end makes of the graphs."""

    backend: str  # as ``--backend`` takes it
    computed: dict[str, str]  # graph -> what computes it
    video: VideoScore
    answers: AnswerScore
    films: FilmScore | None  # None: the true answers are not known
    data: DataRecord  # what was asked about
    data_sha256: str  # of the questions, their true answers and the pixels
    max_answer_tokens: int
    command: str | None  # None: called from Python
    versions: dict[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class AccuracyReport:
    """What ``reports/accuracy.json`` holds."""

    precision: str  # as ``Precision.name``
    reference: str  # name of the model that was compared with
    budget: Budget | None  # what ``max_accuracy_drop`` limits; None: random weights, which have no accuracy to lose
    max_accuracy_drop: float  # in points
    sizes: Sizes
    tensorrt: dict[str, bool]  # quantised graph -> whether its quantisation obeys TensorRT's rules
    layers: LayerCounts | None  # None: not known
    formats: tuple[LayerFormats, ...]  # of all linear layers of the quantised graphs, those that stay floats included
    worst_layers: tuple[LayerError, ...]  # by relative error, largest first
    engines: tuple[EngineAccuracy, ...]
    unavailable: dict[str, str]  # installed back end -> why it could not run the graphs
    schema_version: int = SCHEMA_VERSION

    def drop(self, engine: EngineAccuracy) -> float | None:
        """Returns what an engine loses of what the budget limits, in points; None: nothing is limited."""
        if self.budget is None:
            return None
        if self.budget == "exact match" and engine.films is not None:
            return engine.films.drop.points
        return engine.answers.disagreement

    @property
    def passed(self) -> bool:
        """Whether every engine is within the budget."""
        return not self._over()

    def _over(self) -> list[tuple[EngineAccuracy, float]]:
        drops = [(engine, self.drop(engine)) for engine in self.engines]
        return [(engine, drop) for engine, drop in drops if drop is not None and drop > self.max_accuracy_drop]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {**dataclasses.asdict(self), "passed": self.passed}

    def check(self) -> None:
        """Raises unless every engine is within the budget.

        Raises:
            ParityError: one is not; the message says by how much, and names the layers with the largest errors.
        """
        over = self._over()
        if not over:
            return
        texts = [f"{self._drop_text(engine, drop)} on {engine.backend}" for engine, drop in over]
        worst = [f"{layer.pattern} ({layer.weights}, error {layer.relative_error:.1%})" for layer in self.worst_layers]
        raise ParityError(
            f"the {self.precision} graphs lose too much: {'; '.join(texts)}; allowed: {self.max_accuracy_drop:g} points"
            f"{'; worst layers: ' + ', '.join(worst) if worst else ''}; no bundle was written",
            remedy="keep the worst layers in half precision with `keep`, choose another precision such as "
            "`precision='fp16'`, or allow more with `max_accuracy_drop`",
        )

    def _drop_text(self, engine: EngineAccuracy, drop: float) -> str:
        if self.budget == "exact match" and engine.films is not None:
            films = engine.films
            return (
                f"{drop:.2f} points of exact match ({100 * films.reference:.2f} % to {100 * films.graphs:.2f} % of "
                f"{format_count(films.num_questions, 'question')}, 95 % interval {films.drop.low:.2f} to "
                f"{films.drop.high:.2f})"
            )
        return f"{drop:.2f} % of {format_count(engine.answers.num_tokens, 'token')} differ"

    def merged(self, old: AccuracyReport) -> AccuracyReport:
        """Returns this report with the budget and layers of ``old``, and its results of other back ends.

        Results of another reference, precision or size are of other graphs, and are left out.
        """
        same = (old.precision, old.reference, old.sizes.graphs) == (self.precision, self.reference, self.sizes.graphs)
        if not same:
            return self
        own = {engine.backend for engine in self.engines}
        others = tuple(engine for engine in old.engines if engine.backend not in own)
        missing = {name: why for name, why in old.unavailable.items() if name not in own}
        return dataclasses.replace(
            self,
            max_accuracy_drop=old.max_accuracy_drop,
            layers=self.layers or old.layers,
            formats=_merged_formats(self.formats, old.formats),
            worst_layers=self.worst_layers or old.worst_layers,
            engines=(*others, *self.engines),
            unavailable={**missing, **self.unavailable},
        )


def worst_layers(errors: Sequence[LayerError]) -> tuple[LayerError, ...]:
    """Returns the ten with the largest relative errors, largest first."""
    return tuple(sorted(errors, key=lambda layer: -layer.relative_error)[:_NUM_WORST])


def _merged_formats(own: Sequence[LayerFormats], old: Sequence[LayerFormats]) -> tuple[LayerFormats, ...]:
    """The formats of the same graphs, with what the back ends of both compute them in."""
    before = {formats.key: formats.computed for formats in old}
    return tuple(
        dataclasses.replace(formats, computed={**before.get(formats.key, {}), **formats.computed}) for formats in own
    )


def save_report(report: AccuracyReport, bundle: Path) -> Path:
    """Writes ``reports/accuracy.json`` of a bundle, or of one that is being written; returns its path.

    Raises:
        ArtifactError: it cannot be written.
    """
    path = bundle / ACCURACY
    try:
        path.parent.mkdir(exist_ok=True)
        write_file(path, strict_json.dumps(report.to_dict()))
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def load_report(bundle: Path) -> AccuracyReport | None:
    """Reads ``reports/accuracy.json``; None if there is none, or one of another schema version or that is broken.

    The report can be measured again at any time, so an old one is not converted.
    """
    path = bundle / ACCURACY
    if not path.is_file():
        return None
    try:
        values = strict_json.read_json(path)
        if values.get("schema_version") != SCHEMA_VERSION:
            return None
        values.pop("passed", None)
        return strict_json.from_dict(AccuracyReport, values, str(path))
    except ConfigError:  # derived, and about to be written anew
        return None
