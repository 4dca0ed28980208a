"""What ONNX Runtime's CPU provider makes of stored weights: what it computes in, and what that costs in memory.

x86 has no fp16 matrix product, so the provider widens fp16 weights into an fp32 copy. Weights of large fp32 graphs stay
in their mapped file, which the system can drop from memory when it needs room; the price is a slower prefill.
"""

from __future__ import annotations

from blip3v.bundle.manifest import Manifest
from blip3v.bundle.precision import GraphPrecision, Precision

__all__ = ["COMPUTED", "bundle_resident_bytes", "resident_bytes", "stored_and_computed", "use_mmap", "widened_bytes"]

COMPUTED = "fp32 on ONNX Runtime CPU"

_WIDENED = {"float16": 2}  # format of weights that are widened -> size of the copy, in units of the stored bytes
_MAPPABLE = frozenset({"float32"})  # formats of weights that can be used as they lie in their file
_MAPPED_ABOVE_BYTES = 2**30


def use_mmap(weights_bytes: int, precision: GraphPrecision) -> bool:
    """Whether a graph is opened so that its weights stay in their mapped file."""
    return precision.weights in _MAPPABLE and weights_bytes > _MAPPED_ABOVE_BYTES


def resident_bytes(weights_bytes: int, precision: GraphPrecision) -> int:
    """Memory that the weights of an opened graph take and no file stands behind."""
    return 0 if use_mmap(weights_bytes, precision) else weights_bytes * _WIDENED.get(precision.weights, 1)


def widened_bytes(weights_bytes: int, precision: GraphPrecision) -> int:
    """How many of a graph's stored bytes must be widened when it is opened, which takes time."""
    return weights_bytes if precision.weights in _WIDENED else 0


def bundle_resident_bytes(manifest: Manifest) -> int:
    """Memory that both opened graphs take, without KV cache."""
    graphs = manifest.precision.graphs.items()
    return sum(resident_bytes(manifest.weights_bytes(name), spec) for name, spec in graphs)


def stored_and_computed(precision: Precision) -> str:
    """How weights are stored and in what they are computed, as people must be told."""
    return f"stored {precision.name}, computed {COMPUTED}"
