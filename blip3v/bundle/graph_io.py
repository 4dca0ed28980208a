"""The names, dtypes and axes of every graph input and output: one table for exporter, runtime and tests.

``compute`` and ``cache`` stand for dtypes that depend on the graph's precision (``GraphIO.resolved``). An axis that is
free at run time is given by name.

Layouts: B batch, F frames, M video tokens, t new tokens, n of their positions, S cache capacity, D width, H KV heads,
K head width, V logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from blip3v.bundle.precision import GraphPrecision
from blip3v.bundle.targets import DEFAULT_TARGET, Target, is_tensorrt
from blip3v.config import ModelConfig

__all__ = [
    "SYMBOLIC_DTYPES",
    "DType",
    "GraphIO",
    "TensorSpec",
    "decoder_io",
    "past_key",
    "past_value",
    "present_key",
    "present_value",
    "takes_one_position",
    "video_encoder_io",
]

DType = Literal["compute", "cache", "float32", "float16", "int64", "int32", "int8"]
SYMBOLIC_DTYPES = ("compute", "cache")  # placeholders for dtypes of the precision


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a str axis is free at run time, an int axis is fixed, () is a scalar."""

    name: str
    dtype: DType
    axes: tuple[str | int, ...]


@dataclass(frozen=True)
class GraphIO:
    """Inputs and outputs of one graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def resolved(self, precision: GraphPrecision) -> GraphIO:
        """Returns a copy in which ``compute`` and ``cache`` are replaced by the dtypes of ``precision``."""
        dtypes: dict[str, DType] = {"compute": precision.io}
        if precision.cache is not None:
            dtypes["cache"] = precision.cache

        def resolve(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(dataclasses.replace(spec, dtype=dtypes.get(spec.dtype, spec.dtype)) for spec in specs)

        return GraphIO(resolve(self.inputs), resolve(self.outputs))


def past_key(layer: int) -> str:
    """Name of the key cache that layer ``layer`` reads."""
    return f"past.{layer}.key"


def past_value(layer: int) -> str:
    """Name of the value cache that layer ``layer`` reads."""
    return f"past.{layer}.value"


def present_key(layer: int) -> str:
    """Name of the key cache that layer ``layer`` writes."""
    return f"present.{layer}.key"


def present_value(layer: int) -> str:
    """Name of the value cache that layer ``layer`` writes."""
    return f"present.{layer}.value"


def video_encoder_io(config: ModelConfig, target: Target = DEFAULT_TARGET) -> GraphIO:
    """Pixels in [-1, 1], (B, F, 3, side, side), to video tokens (B, M, D).

    Any F for ``onnxruntime``; the config's number of frames for the other targets, whose recurrent encoders have one
    copy of their step for each frame.
    """
    side = config.vision.image_size
    num_frames = config.num_frames if is_tensorrt(target) else "num_frames"
    frames = TensorSpec("frames", "compute", ("batch", num_frames, 3, side, side))
    # The axis keeps its first name: it is in the graph, whose hash saved video tokens are bound to.
    tokens = TensorSpec("video_tokens", "compute", ("batch", "num_tokens", config.text.hidden_size))
    return GraphIO((frames,), (tokens,))


def decoder_io(config: ModelConfig, target: Target = DEFAULT_TARGET, *, one_position: bool = False) -> GraphIO:
    """Phi-3 over embeddings, one graph for prefill and decode.

    ``logits_index`` (B,n) are the positions, among the t new tokens of each row, whose logits (B,n,V) are returned.
    Bundles of earlier versions have ``one_position`` in each row: (B,) and (B,V). ``past`` and ``present`` are bound to
    the same memory (shared buffer, capacity S), except for ``tensorrt-legacy``.

    For ``onnxruntime``, ``seqlens_k`` is the number of valid tokens in each row after this call, minus 1, and
    ``total_sequence_length`` the largest number of valid tokens in any row (nothing subtracted), as a scalar. The other
    targets take ``write_indices`` instead: the number of valid tokens in each row before this call, which is where its
    new tokens are written.
    """
    text = config.text
    cache: tuple[str | int, ...] = ("batch", text.num_kv_heads, "capacity", text.head_dim)
    lengths = [TensorSpec("seqlens_k", "int32", ("batch",)), TensorSpec("total_sequence_length", "int32", ())]
    positions = () if one_position else ("num_positions",)
    if is_tensorrt(target):
        lengths = [TensorSpec("write_indices", "int64", ("batch",))]
    inputs = [
        TensorSpec("inputs_embeds", "compute", ("batch", "num_new_tokens", text.hidden_size)),
        TensorSpec("logits_index", "int64", ("batch", *positions)),
        *lengths,
    ]
    outputs = [TensorSpec("logits", "float32", ("batch", *positions, text.num_logits))]
    for layer in range(text.num_layers):
        inputs += [TensorSpec(past_key(layer), "cache", cache), TensorSpec(past_value(layer), "cache", cache)]
        outputs += [
            TensorSpec(present_key(layer), "cache", cache),
            TensorSpec(present_value(layer), "cache", cache),
        ]
    return GraphIO(tuple(inputs), tuple(outputs))


def takes_one_position(inputs: Sequence[TensorSpec]) -> bool:
    """Whether the decoder with these inputs returns the logits of one position of each row, as earlier versions'."""
    return any(spec.name == "logits_index" and len(spec.axes) == 1 for spec in inputs)
