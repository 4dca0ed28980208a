"""What a precision of the table becomes in graphs for TensorRT, which computes every node in the type it finds.

ONNX Runtime computes on the CPU in fp32 whatever is stored, so quantised graphs have fp32 between their products. For
TensorRT all floats of a quantised graph are fp16, as in the precision fp16.
"""

from __future__ import annotations

import dataclasses

from blip3v.bundle.precision import GraphPrecision, Island, Precision
from blip3v.bundle.targets import Target, is_tensorrt
from blip3v.errors import UsageError

__all__ = ["for_target"]

_HALVES = {"float32": "float16", "float16-stored": "float16"}  # format of an island -> the one for TensorRT
# Half precision is too coarse for the bias of the largest logits.
_LOGITS_BIAS = Island(name="logits_bias", parameters=("lm_head_bias",), weights="float32")


def for_target(precision: Precision, target: Target) -> Precision:
    """Returns the precision as graphs of the target have it.

    Raises:
        UsageError: the target's engines cannot compute it.
    """
    if not is_tensorrt(target):
        return precision
    _check(precision, target)
    graphs = {name: _in_half(name, spec) for name, spec in precision.graphs.items()}
    return dataclasses.replace(precision, **graphs)


def _check(precision: Precision, target: Target) -> None:
    for name, spec in precision.graphs.items():
        if spec.cache == "int8":
            raise UsageError(f"the target {target} has no KV cache in int8; leave the cache as the precision has it")
        if spec.name == "fp32" and target != "tensorrt-legacy":
            raise UsageError(
                f"the {name} cannot be fp32 for the target {target}: TensorRT's attention computes in half precision; "
                "choose fp16, int8 or int4, or the target tensorrt-legacy"
            )
        if spec.group_size is not None and target == "tensorrt-legacy":
            raise UsageError(
                f"the {name} cannot be {spec.name} for the target {target}, whose graphs have no weights in blocks; "
                "choose fp16 or int8"
            )


def _in_half(name: str, spec: GraphPrecision) -> GraphPrecision:
    if spec.name == "fp32":
        return spec
    islands = tuple(
        dataclasses.replace(island, weights=_HALVES.get(island.weights, island.weights))
        for island in spec.islands
        if island.name not in ("scan", "logits_bias")
    )
    return dataclasses.replace(
        spec,
        activations="float16" if spec.activations == "float32" else spec.activations,
        io="float16",
        cache=None if spec.cache is None else "float16",
        islands=(*islands, _LOGITS_BIAS) if name == "decoder" else islands,
    )
