"""Precision as a spec: formats of the weights, inputs, outputs and cache of each graph; and the table of named ones.

``PRECISIONS`` is the only place that knows the names. A new precision is a new entry here and, if it stores weights in
a new way, a new entry in ``export/weight_formats.WEIGHT_FORMATS``; anything else that differs between precisions is a
field or a property below. Not here: what a graph is computed in, which depends on the back end that runs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from blip3v.errors import ConfigError, UsageError

__all__ = [
    "CACHE_DTYPES",
    "CACHE_ITEM_BYTES",
    "DEFAULT_PRECISION",
    "GROUP_SIZES",
    "ITEM_BYTES",
    "PRECISIONS",
    "CacheDType",
    "FloatDType",
    "GraphPrecision",
    "Island",
    "NamedPrecision",
    "Precision",
    "Tolerance",
]

# What GPUs and NPUs compute in, at half the size on disk; parity stays inside its tolerance.
DEFAULT_PRECISION = "fp16"

FloatDType = Literal["float32", "float16"]
ITEM_BYTES: dict[FloatDType, int] = {"float32": 4, "float16": 2}

GROUP_SIZES = (16, 32, 64, 128, 256)  # that MatMulNBits takes

CacheDType = Literal["float32", "float16", "int8"]
CACHE_ITEM_BYTES: dict[CacheDType, int] = {"float32": 4, "float16": 2, "int8": 1}
# Caches that any decoder can have instead of its own; integers have a scale per channel of a KV head in the graph.
CACHE_DTYPES: tuple[CacheDType, ...] = ("int8",)
_CACHE_MARK = "+kv-"  # in a name, before the cache that was chosen: fp16+kv-int8

# The largest value of each dtype that activations can overflow. A CPU computes fp16 graphs in fp32, hiding an overflow.
_LIMITS: dict[FloatDType, float] = {"float16": 65504.0}


@dataclass(frozen=True, kw_only=True)
class Island:
    """Weights stored in a different format from the rest of their graph.

    Raises:
        ConfigError: an island without a pattern.
    """

    name: str
    parameters: tuple[str, ...] = ()  # patterns of parameter names, with the wildcards * and ?
    nodes: tuple[str, ...] = ()  # patterns of the names of the graph's matrix products, as in ``/layers.3.*/MatMul``
    weights: str  # their format

    def __post_init__(self) -> None:
        if not self.parameters and not self.nodes:
            raise ConfigError(f"precision: the island {self.name} has no pattern; give parameters or nodes")


@dataclass(frozen=True, kw_only=True)
class GraphPrecision:
    """The precision of one graph, as far as its file determines it."""

    name: str  # of its entry in ``PRECISIONS``
    weights: str  # format of the matrices, a key of ``export/weight_formats.WEIGHT_FORMATS``
    activations: str  # what the graph gives to matrix products: float32, float16, or int8 with a scale per tensor
    io: FloatDType  # of inputs and outputs that ``graph_io`` marks ``compute``, and of values between nodes
    cache: CacheDType | None  # of keys and values; None: the graph has no cache
    islands: tuple[Island, ...] = ()  # the first that matches a parameter or its matrix product applies
    group_size: int | None = None  # weights of an output channel that share a scale in block formats; None: none are

    @property
    def activation_limit(self) -> float | None:
        """Absolute value that activations must be shown not to exceed; None: nothing to show."""
        return _LIMITS.get(self.io)

    @property
    def tolerance(self) -> Tolerance:
        """How far the graph, which is not quantised, may deviate from the fp32 PyTorch reference."""
        tolerance = _INT8_CACHE_TOLERANCE if self.cache == "int8" else PRECISIONS[self.name].tolerance
        assert tolerance is not None, "a quantised graph has an accuracy report instead"
        return tolerance

    @property
    def is_quantized(self) -> bool:
        """Whether an accuracy report takes the place of a tolerance, and calibration comes before the export."""
        return PRECISIONS[self.name].tolerance is None

    @property
    def embeddings(self) -> FloatDType:
        """Dtype of a decoder's embedding table, whose rows become ``io`` when they are read."""
        return "float16" if self.is_quantized else self.io

    @property
    def needs_sensitivity(self) -> bool:
        """Whether the formats of its blocks are chosen from a sensitivity table (``calibration/mixed.py``)."""
        return PRECISIONS[self.name].needs_sensitivity

    def format_of(self, names: Iterable[str], nodes: Iterable[str] = ()) -> str:
        """The format of a weight.

        Args:
            names: every name of the parameter; a weight shared by two modules has two.
            nodes: names of the matrix products that take it.
        """
        known, products = list(names), list(nodes)
        for island in self.islands:
            by_name = any(fnmatchcase(name, pattern) for name in known for pattern in island.parameters)
            if by_name or any(fnmatchcase(name, pattern) for name in products for pattern in island.nodes):
                return island.weights
        return self.weights

    def __str__(self) -> str:
        islands = "".join(f" ({island.name} {island.weights})" for island in self.islands)
        cache = "" if self.cache is None else f", cache {self.cache}"
        return f"weights {self.weights}{islands}, activations {self.activations}, inputs and outputs {self.io}{cache}"


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The precision of a bundle: a spec for each graph.

    Raises:
        ConfigError: a name that is not in the table, or cache dtypes that do not suit the graphs.
    """

    video_encoder: GraphPrecision
    decoder: GraphPrecision

    def __post_init__(self) -> None:
        for graph, spec in self.graphs.items():
            if spec.name not in PRECISIONS:
                raise ConfigError(f"precision of the {graph} is {spec.name!r}; allowed: {', '.join(PRECISIONS)}")
        if self.video_encoder.cache is not None or self.decoder.cache is None:
            raise ConfigError("precision: the decoder must have a cache dtype and the video encoder must have none")

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Parses a name from the table (``fp16``), or one for each graph (``video_encoder=fp16,decoder=fp32``).

        ``+kv-int8`` at the end chooses another cache than the decoder's own, as ``with_cache`` does.

        Raises:
            UsageError: the text has neither form, names no entry of the table, or asks for a graph in a precision that
                is for the other: int4 for the video encoder.
        """
        graphs = tuple(field.name for field in dataclasses.fields(cls))
        names, mark, cache = text.partition(_CACHE_MARK)
        pairs = (
            [part.partition("=")[::2] for part in names.split(",")] if "=" in names else [(g, names) for g in graphs]
        )
        chosen = {graph.strip(): name.strip() for graph, name in pairs}
        if (
            len(pairs) != len(graphs)
            or set(chosen) != set(graphs)
            or not set(chosen.values()) <= set(PRECISIONS)
            or (mark and cache not in CACHE_DTYPES)
        ):
            raise UsageError(
                f"precision {text!r} is unknown; allowed: {', '.join(PRECISIONS)}, or one for each graph, as in "
                f"{','.join(f'{graph}={name}' for graph, name in zip(graphs, PRECISIONS, strict=False))}, "
                f"and {_CACHE_MARK}{f' or {_CACHE_MARK}'.join(CACHE_DTYPES)} after it for another cache"
            )
        if "=" in names:
            _check_own(chosen)
        precision = cls(**{graph: getattr(PRECISIONS[name], graph) for graph, name in chosen.items()})
        return precision.with_cache(cache) if mark else precision

    def with_cache(self, dtype: str) -> Precision:
        """Returns a copy whose decoder has another cache.

        Args:
            dtype: one of ``CACHE_DTYPES``.

        Raises:
            UsageError: another dtype.
        """
        for known in CACHE_DTYPES:
            if dtype == known:
                return dataclasses.replace(self, decoder=dataclasses.replace(self.decoder, cache=known))
        raise UsageError(f"the cache dtype {dtype!r} is unknown; allowed: {', '.join(CACHE_DTYPES)}")

    def with_group_size(self, group_size: int) -> Precision:
        """Returns a copy whose blocks of weights have another size.

        Raises:
            UsageError: a size that no engine takes, or no graph has blocks.
        """
        if group_size not in GROUP_SIZES:
            raise UsageError(f"group_size is {group_size}; allowed: {', '.join(map(str, GROUP_SIZES))}")
        if all(spec.group_size is None for spec in self.graphs.values()):
            raise UsageError(f"group_size has no effect: precision {self.name} stores no weights in blocks")
        return Precision(
            **{
                graph: spec if spec.group_size is None else dataclasses.replace(spec, group_size=group_size)
                for graph, spec in self.graphs.items()
            }
        )

    def with_nodes(self, *, keep: Iterable[str] = (), quantize: Iterable[str] = ()) -> Precision:
        """Returns a copy in which some matrix products are kept in floating point, or quantised nevertheless.

        Args:
            keep: ``GRAPH:PATTERN``, the graph and a pattern of its node names: stored in half precision.
            quantize: likewise: stored as most weights of the graph. ``keep`` comes first.

        Raises:
            UsageError: a text of another form, or a graph that is not quantised.
        """
        specs = self.graphs
        for name, weights, texts in (("quantized", None, quantize), ("kept", "float16-stored", keep)):
            for text in texts:
                graph, colon, pattern = text.partition(":")
                if not colon or not pattern or graph not in specs:
                    raise UsageError(
                        f"the pattern {text!r} is not understood; expected GRAPH:PATTERN with one of "
                        f"{' and '.join(specs)}, for example 'decoder:/layers.0.*'"
                    )
                spec = specs[graph]
                if not spec.is_quantized:
                    raise UsageError(f"the pattern {text!r} has no effect: the {graph} is {spec.name}, not quantised")
                island = Island(name=name, nodes=(pattern,), weights=weights or spec.weights)
                specs[graph] = dataclasses.replace(spec, islands=(island, *spec.islands))
        return Precision(**specs)

    @property
    def is_quantized(self) -> bool:
        """Whether a graph is."""
        return any(spec.is_quantized for spec in self.graphs.values())

    @property
    def graphs(self) -> dict[str, GraphPrecision]:
        """The spec of each graph, by the graph's name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def needs_sensitivity(self) -> bool:
        """Whether a graph's formats are chosen from a sensitivity table."""
        return any(spec.needs_sensitivity for spec in self.graphs.values())

    @property
    def name(self) -> str:
        """``fp16``, or ``video_encoder=fp16,decoder=fp32`` if the graphs differ; ``parse`` reads both.

        Both end in ``+kv-int8`` if the decoder has that cache and its precision has another.
        """
        own_cache, cache = PRECISIONS[self.decoder.name].decoder.cache, ""
        if self.decoder.cache in CACHE_DTYPES and self.decoder.cache != own_cache:
            cache = f"{_CACHE_MARK}{self.decoder.cache}"
        own = {graph: spec.name for graph, spec in self.graphs.items()}
        for name, entry in PRECISIONS.items():
            if own == {"video_encoder": entry.video_encoder.name, "decoder": entry.decoder.name}:
                return name + cache
        return ",".join(f"{graph}={name}" for graph, name in own.items()) + cache

    @property
    def file_name(self) -> str:
        """``name`` in letters, digits, ``_`` and ``-`` only."""
        return self.name.replace("=", "-").replace(",", "-").replace("+", "-")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a graph may deviate from the fp32 PyTorch reference."""

    relative_error: float  # largest absolute difference over the largest absolute value of the reference
    cosine: float  # the minimum, over all values of a comparison
    reason: str


@dataclass(frozen=True, kw_only=True)
class NamedPrecision:
    """An entry of the table: the spec of each graph, and the tolerance that every graph of this precision must meet."""

    video_encoder: GraphPrecision
    decoder: GraphPrecision
    tolerance: Tolerance | None  # None: the accuracy report decides
    needs_sensitivity: bool = False  # the formats are those to begin with; sensitive blocks are stored in higher ones


_INT8_CACHE_TOLERANCE = Tolerance(
    relative_error=6e-2,
    cosine=0.998,
    reason="keys and values have 8 bits, in ranges with room for larger ones than calibration has seen",
)

# A recurrence runs in an ONNX Scan, where ONNX Runtime's CPU provider would widen fp16 weights again for every frame.
_SCAN = Island(name="scan", parameters=("temporal.encoder.*",), weights="float32")
# Small, or sensitive, or both: half precision, widened when the graph opens. OpenVINO cannot widen what a Scan takes.
_HALF = (
    _SCAN,
    Island(name="resampler attention", parameters=("vision_tokenizer.layers.*.0.*",), weights="float16-stored"),
    Island(name="temporal encoder", parameters=("temporal.*",), weights="float16-stored"),
    Island(name="projection", parameters=("vision_tokenizer.projection.*",), weights="float16-stored"),
)
_HEAD = Island(name="head", parameters=("lm_head",), weights="int8-block")
# Turns the inputs into the basis of a rotated residual stream; applied once, and exact.
_ROTATION = Island(name="rotation", parameters=("rotation",), weights="float32")
# Half precision is too coarse for the bias of the largest logits.
_LOGITS_BIAS = Island(name="logits_bias", parameters=("lm_head_bias",), weights="float32")

PRECISIONS: dict[str, NamedPrecision] = {
    "fp32": NamedPrecision(
        video_encoder=GraphPrecision(name="fp32", weights="float32", activations="float32", io="float32", cache=None),
        decoder=GraphPrecision(name="fp32", weights="float32", activations="float32", io="float32", cache="float32"),
        tolerance=Tolerance(
            relative_error=1e-3,
            cosine=0.9999,
            reason="the same sums in another order: about 1e-6 per layer, which accumulates over a deep model",
        ),
    ),
    "fp16": NamedPrecision(
        video_encoder=GraphPrecision(
            name="fp16", weights="float16", activations="float16", io="float16", cache=None, islands=(_SCAN,)
        ),
        decoder=GraphPrecision(
            name="fp16",
            weights="float16",
            activations="float16",
            io="float16",
            cache="float16",
            islands=(_LOGITS_BIAS,),
        ),
        tolerance=Tolerance(
            relative_error=2e-2,
            cosine=0.999,
            reason="weights and activations have 11 bits: 5e-4 per rounding, which accumulates over the layers",
        ),
    ),
    "int8": NamedPrecision(
        video_encoder=GraphPrecision(
            name="int8", weights="int8", activations="int8", io="float32", cache=None, islands=_HALF
        ),
        decoder=GraphPrecision(
            name="int8", weights="int8", activations="int8", io="float32", cache="float32", islands=(_ROTATION,)
        ),
        tolerance=None,
    ),
    "int8-weight": NamedPrecision(
        video_encoder=GraphPrecision(
            name="int8-weight",
            weights="int8-block",
            activations="float32",
            io="float32",
            cache=None,
            islands=_HALF,
            group_size=128,
        ),
        decoder=GraphPrecision(
            name="int8-weight",
            weights="int8-block",
            activations="float32",
            io="float32",
            cache="float32",
            islands=(_ROTATION,),
            group_size=128,
        ),
        tolerance=None,
    ),
    # 4-bit weights gain nothing in the video encoder, whose time goes into arithmetic: it is int8.
    "int4": NamedPrecision(
        video_encoder=GraphPrecision(
            name="int8", weights="int8", activations="int8", io="float32", cache=None, islands=_HALF
        ),
        decoder=GraphPrecision(
            name="int4",
            weights="int4-block",
            activations="float32",
            io="float32",
            cache="float32",
            islands=(_ROTATION, _HEAD),
            group_size=128,
        ),
        tolerance=None,
    ),
    "mixed": NamedPrecision(
        video_encoder=GraphPrecision(
            name="mixed", weights="int8", activations="int8", io="float32", cache=None, islands=_HALF
        ),
        decoder=GraphPrecision(
            name="mixed",
            weights="int4-block",
            activations="float32",
            io="float32",
            cache="float32",
            islands=(_ROTATION, _HEAD),
            group_size=128,
        ),
        tolerance=None,
        needs_sensitivity=True,
    ),
}


def _check_own(chosen: dict[str, str]) -> None:
    """Checks that each graph has a spec of the precision that is named for it alone."""
    for graph, name in chosen.items():
        if getattr(PRECISIONS[name], graph).name != name:
            own = [other for other, entry in PRECISIONS.items() if getattr(entry, graph).name == other]
            raise UsageError(f"the {graph} has no precision {name}; allowed for it: {', '.join(own)}")
