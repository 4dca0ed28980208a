"""Targets: the form of a bundle's graphs, which decides what engines run them.

onnxruntime        GroupQueryAttention, whose cache any length of which may be valid; MatMulNBits
tensorrt           operators of ONNX 24 alone: TensorScatter into a cache of fixed capacity, Attention with a mask;
                   TensorRT 10.15 and later
tensorrt-rtx       the same graphs; the engine is built with TensorRT-RTX
tensorrt-legacy    operators of ONNX 20 alone, for TensorRT 10.3 to 10.14

Not here: how a decoder's inputs differ (``graph_io.decoder_io``), and which back end runs what (``runtime/backends``).
"""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["DEFAULT_TARGET", "TARGETS", "Target", "is_tensorrt"]

Target = Literal["onnxruntime", "tensorrt", "tensorrt-rtx", "tensorrt-legacy"]
TARGETS: tuple[Target, ...] = get_args(Target)
DEFAULT_TARGET: Target = "onnxruntime"


def is_tensorrt(target: Target) -> bool:
    """Whether TensorRT builds engines from graphs of this form."""
    return target != "onnxruntime"
