"""What an export does besides when a graph is quantised: calibration, the plan, and the proof of what was written.

calibration (given, or made on films) -> plan -> graphs -> every layer stored as asked -> errors of the layers
-> answers against PyTorch -> within the budget, or no bundle
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from blip3v.bundle.layout import graph_file
from blip3v.bundle.precision import Precision
from blip3v.bundle.targets import DEFAULT_TARGET, Target, is_tensorrt
from blip3v.calibration.collect import calibrate
from blip3v.calibration.data import default_counts, film_clips
from blip3v.calibration.layers import HEAD, LinearLayer, linear_layers
from blip3v.calibration.mixed import resolve_mixed
from blip3v.calibration.options import DEFAULT_MAX_KL, RecipeOptions
from blip3v.calibration.plan import Plan, make_plan
from blip3v.calibration.statistics import Calibration
from blip3v.errors import ExportError, UsageError
from blip3v.export.accuracy import AccuracyReport, LayerCounts, LayerError
from blip3v.export.accuracy_data import own_videos
from blip3v.export.accuracy_run import AccuracyOptions, measure_accuracy, runnable_backends
from blip3v.export.cache_scales import cache_scales
from blip3v.export.decoder_graph import CacheScales
from blip3v.export.layer_errors import layer_errors
from blip3v.export.layer_formats import computed_in
from blip3v.export.source import ExportSource
from blip3v.export.stored_layers import INTEGER_FORMATS, StoredLayer, check_quantized, read_layers
from blip3v.export.tensorrt_rules import check_tensorrt_rules
from blip3v.export.to_onnx import layer_names
from blip3v.runtime.backends import GRAPHS

__all__ = ["Quantization", "QuantizationOptions", "open_quantization"]


_FEW_QUESTIONS = 24  # show that the graphs run
_FEW_FILMS = 2, 4


class _Progress(Protocol):
    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions:
    """How to quantise, and what may be lost."""

    calibration: Path | None = None  # folder of ``blip3v calibrate``; None: one is made on films, and not kept
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    max_kl: float = DEFAULT_MAX_KL  # nats, that the formats of ``mixed`` may cost
    accuracy: AccuracyOptions = field(default_factory=AccuracyOptions)
    films: tuple[int, int] | None = None  # number and prompts about each, where calibration is None; None: by the model

    @staticmethod
    def for_speed_alone() -> QuantizationOptions:
        """The quickest that there are, for a bundle that is only to be timed: speed does not depend on scales."""
        return QuantizationOptions(
            recipe=RecipeOptions(smoothing=False, rounding="nearest", ranges="minmax"),
            accuracy=AccuracyOptions(num_questions=_FEW_QUESTIONS, max_drop=100),
            films=_FEW_FILMS,
        )


@dataclass(frozen=True)
class Quantization:
    """An export's quantisation, once its model has been calibrated.

    ``precision`` is final: the formats of ``mixed`` have been chosen.
    """

    source: ExportSource
    precision: Precision
    options: QuantizationOptions
    calibration: Calibration
    plan: Plan
    progress: _Progress
    target: Target = DEFAULT_TARGET

    @cached_property
    def _names(self) -> dict[str, dict[str, str]]:
        return layer_names(self.source.config)

    @cached_property
    def _linear_layers(self) -> dict[str, LinearLayer]:
        return linear_layers(self.source.config)

    def choose_scales(self, graph: str) -> None:
        """Chooses the static scales of a graph, which takes a while at full size; the plan keeps them."""
        static = [layer for layer, form in self._wanted(graph).items() if form == "int8"]
        for index, layer in enumerate(static):
            self.plan.activation_scale(layer)
            self.progress(f"choose the scales of the {graph.replace('_', ' ')}", index + 1, len(static))

    def check_layers(self, folder: Path) -> dict[str, list[StoredLayer]]:
        """Reads the written graphs; returns the layers of each.

        Raises:
            ExportError: a layer is not stored as it was asked for, or a graph of Q/DQ breaks a rule of TensorRT.
        """
        found = {}
        for graph, spec in self.precision.graphs.items():
            path = folder / graph_file(graph)
            found[graph] = read_layers(path, self._names[graph])
            if spec.is_quantized:
                check_quantized(found[graph], self._wanted(graph, found[graph]))
                if not is_tensorrt(self.target):  # whose graphs are checked node by node when they are written
                    _check_portable(path, found[graph])
        return found

    def accuracy(self, folder: Path, stored: dict[str, list[StoredLayer]]) -> AccuracyReport:
        """Measures what the graphs in ``folder`` lose.

        Args:
            folder: the bundle that is being written, complete but for its manifest.
            stored: the layers of its graphs.

        Raises:
            ProviderError: no back end can run them.
        """
        wanted = [form for graph, layers in stored.items() for form in self._wanted(graph, layers).values()]
        asked = sum(form in INTEGER_FORMATS for form in wanted)
        quantized = sum(layer.is_quantized for layers in stored.values() for layer in layers)
        return measure_accuracy(
            self.source,
            folder,
            self.precision,
            self.options.accuracy,
            target=self.target,
            layer_errors=list(self._layer_errors(stored)),
            layers=LayerCounts(asked=asked, quantized=quantized, kept=len(wanted) - asked),
            stored=stored,
            progress=self.progress,
        )

    def cache_scales(self) -> CacheScales | None:
        """Returns the scales of a cache in int8; None for any other cache."""
        if self.precision.decoder.cache != "int8":
            return None
        return cache_scales(self._cache_absmax, self.source.config.text)

    def _cache_absmax(self, name: str) -> Tensor:
        """The largest values of a cache in the model of the plan, whose values are smoothed."""
        absmax_E = self.calibration.absmax(name)
        if not name.endswith(".value_cache"):
            return absmax_E
        # o_proj sees averages of values, divided by the same factors.
        text, layer = self.source.config.text, f"{name.removesuffix('.value_cache')}.self_attn.o_proj"
        before_E, after_E = (
            rows.abs().amax(dim=0).view(text.num_kv_heads, -1, text.head_dim).amax(dim=1).flatten()
            for rows in (self.calibration.layer(layer).rows_NK, self.plan.rows(layer))
        )
        return torch.where(before_E > 0, absmax_E * after_E / before_E, absmax_E)

    def record(self) -> dict[str, Any]:
        """Returns what the manifest says about it."""
        calibrated = self.calibration.record
        return {
            "data": dataclasses.asdict(calibrated.data),
            "settings": dataclasses.asdict(calibrated.settings),
            "recipe": dataclasses.asdict(self.options.recipe),
        }

    def _wanted(self, graph: str, found: Sequence[StoredLayer] = ()) -> dict[str, str]:
        """The format of every layer of a graph, from the model and the precision; ``found`` gives names of nodes."""
        spec = self.precision.graphs[graph]
        parameters: defaultdict[str, list[str]] = defaultdict(list)
        for name, layer in self._names[graph].items():
            parameters[layer].append(name)
        nodes: defaultdict[str, list[str]] = defaultdict(list)
        for stored in found:
            nodes[stored.layer].append(stored.node)
        layers = [layer for layer in self._linear_layers.values() if layer.graph == graph]
        return {layer.name: spec.format_of(_weights(layer.name, parameters), nodes[layer.name]) for layer in layers}

    def _layer_errors(self, stored: dict[str, list[StoredLayer]]) -> Iterator[LayerError]:
        backends = runnable_backends(self.options.accuracy.backends, self.target)
        specs = self.precision.graphs
        for graph in GRAPHS:
            spec = specs[graph]
            if spec.is_quantized:
                engines = {name: chosen[graph] for name, chosen in backends.items()}
                stage = partial(self.progress, f"measure the layers of the {graph.replace('_', ' ')}")
                yield from layer_errors(
                    stored[graph],
                    graph,
                    self.plan,
                    self.calibration.record.layers,
                    self.source.config.text,
                    partial(computed_in, spec, engines),
                    stage,
                )


def _check_portable(path: Path, layers: list[StoredLayer]) -> None:
    """A graph without blocks, which are for ONNX Runtime and OpenVINO alone, must suit every engine that reads Q/DQ."""
    if any(layer.weights.endswith("-block") for layer in layers):
        return
    violations = check_tensorrt_rules(path).violations
    if violations:
        raise ExportError(f"{path.name} breaks rules of TensorRT: {violations[0]}; report this as a bug")


@contextmanager
def open_quantization(
    source: ExportSource,
    precision: Precision,
    options: QuantizationOptions,
    progress: _Progress,
    target: Target = DEFAULT_TARGET,
) -> Iterator[Quantization]:
    """Calibrates the model if no calibration is given, and makes the plan.

    Args:
        source: the model.
        precision: of which at least one graph is quantised.
        options: how.
        progress: called at each stage.
        target: the form of the graphs.

    Raises:
        UsageError: a graph is mixed and no calibration is given, or a cache in int8 is asked for with a rotation, after
            which nothing is known of its values.
        CalibrationError: the calibration is broken, of another model, or of videos that the accuracy is measured on; or
            none can be made; or a graph is mixed and the calibration has no sensitivity table.
        OutOfMemoryError: calibrating would need more memory than is free.
    """
    if options.recipe.rotation and precision.decoder.cache == "int8":
        raise UsageError("an int8 cache cannot be combined with `rotation=True`; leave one of them out")
    own = None if options.accuracy.data is None else own_videos(source, options.accuracy.data).record
    recipe = dataclasses.asdict(options.recipe)
    precision = resolve_mixed(precision, options.calibration, recipe=recipe, max_kl=options.max_kl)
    with tempfile.TemporaryDirectory(prefix="blip3v-calibration-") as temporary:
        calibration = _calibration(source, options, Path(temporary), progress)
        if own is not None:
            calibration.check_held_apart(own)
        plan = make_plan(source.weights, source.config, calibration, precision, options.recipe)
        yield Quantization(source, precision, options, calibration, plan, progress, target)


def _calibration(source: ExportSource, options: QuantizationOptions, folder: Path, progress: _Progress) -> Calibration:
    provenance = source.hashed_provenance()
    if options.calibration is not None:
        calibration = Calibration.load(options.calibration)
        calibration.check_model(provenance, source.config)
        return calibration
    num_clips, prompts_per_clip = options.films or default_counts(source.config)
    samples = film_clips(source, num_clips=num_clips, prompts_per_clip=prompts_per_clip)
    return calibrate(folder / "calibration", source, provenance, samples, progress=progress)


def _weights(layer: str, parameters: Mapping[str, list[str]]) -> list[str]:
    """Names of a layer's weight in its graph; the head's is joined from several tensors."""
    return ["lm_head"] if layer == HEAD else [name for name in parameters[layer] if name.endswith(".weight")]
