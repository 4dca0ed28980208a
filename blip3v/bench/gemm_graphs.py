"""ONNX graphs of one matrix product, as bytes: what an engine's GEMM rate is measured with.

Written without the package onnx, which only exporting needs. The products have the form of an exported graph's: float,
static int8 (``QuantizeLinear``, ``DequantizeLinear``), and blocks (``MatMulNBits``); see
``export/quantized_formats.py``. Field numbers are those of onnx.proto.
"""

# Shapes: M rows, K inputs, N outputs, g groups, S group size.

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["GEMM_KINDS", "INPUT", "KIND_NAMES", "GemmKind", "gemm_graph"]

GemmKind = Literal["float32", "int8", "int8-block", "int4-block"]
GEMM_KINDS: tuple[GemmKind, ...] = ("float32", "int8", "int8-block", "int4-block")
KIND_NAMES: dict[GemmKind, str] = {
    "float32": "fp32",
    "int8": "int8",
    "int8-block": "int8 blocks",
    "int4-block": "int4 blocks",
}
INPUT = "x"

_IR_VERSION, _OPSET = 10, 21
_DTYPES = {"float32": 1, "uint8": 2, "int8": 3}
_INT_ATTRIBUTE = 2
_GROUP_SIZE = 128
_SCALE = np.float32(2.0**-7)


def gemm_graph(kind: GemmKind, m: int, k: int, n: int) -> bytes:
    """A model that multiplies ``x`` (m, k) fp32 by a constant (k, n) stored as ``kind``; k is a multiple of 128."""
    nodes, weights = _BUILDERS[kind](k, n)
    graph = b"".join(
        [
            *(_message(1, node) for node in nodes),
            _text(2, "gemm"),
            *(_message(5, _tensor(name, values)) for name, values in weights.items()),
            _message(11, _value(INPUT, (m, k))),
            _message(12, _value("y", (m, n))),
        ]
    )
    opsets = [_varint(2, _OPSET), _text(1, "com.microsoft") + _varint(2, 1)]
    return _varint(1, _IR_VERSION) + _message(7, graph) + b"".join(_message(8, opset) for opset in opsets)


_Parts = tuple[list[bytes], dict[str, NDArray[np.generic]]]


def _float(k: int, n: int) -> _Parts:
    return [_node("MatMul", [INPUT, "w"], "y")], {"w": _values(k, n)}


def _static_int8(k: int, n: int) -> _Parts:
    nodes = [
        _node("QuantizeLinear", [INPUT, "scale", "zero"], "rounded"),
        _node("DequantizeLinear", ["rounded", "scale", "zero"], "widened"),
        _node("DequantizeLinear", ["w", "scales_N"], "weight", {"axis": 1}),
        _node("MatMul", ["widened", "weight"], "y"),
    ]
    weights = {"w": _integers(k, n), "scales_N": np.full(n, _SCALE), "scale": np.array(_SCALE), "zero": np.int8(0)}
    return nodes, {name: np.asarray(values) for name, values in weights.items()}


def _blocks(bits: int, k: int, n: int) -> _Parts:
    attributes = {"K": k, "N": n, "bits": bits, "block_size": _GROUP_SIZE, "accuracy_level": 4}
    groups = k // _GROUP_SIZE
    values = np.random.default_rng(0).integers(0, 256, (n, groups, _GROUP_SIZE * bits // 8), np.uint8)
    nodes = [_node("MatMulNBits", [INPUT, "w", "scales"], "y", attributes, domain="com.microsoft")]
    return nodes, {"w": values, "scales": np.full(n * groups, _SCALE)}


_BUILDERS: dict[GemmKind, Callable[[int, int], _Parts]] = {
    "float32": _float,
    "int8": _static_int8,
    "int8-block": partial(_blocks, 8),
    "int4-block": partial(_blocks, 4),
}


def _values(k: int, n: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.02, (k, n)).astype(np.float32)


def _integers(k: int, n: int) -> NDArray[np.int8]:
    return np.random.default_rng(0).integers(-127, 128, (k, n), np.int8)


def _node(
    kind: str, inputs: Sequence[str], output: str, attributes: Mapping[str, int] | None = None, *, domain: str = ""
) -> bytes:
    ints = (
        _text(1, name) + _varint(3, value) + _varint(20, _INT_ATTRIBUTE) for name, value in (attributes or {}).items()
    )
    parts = [
        *(_text(1, name) for name in inputs),
        _text(2, output),
        _text(4, kind),
        *(_message(5, one) for one in ints),
    ]
    return b"".join(parts) + (_text(7, domain) if domain else b"")


def _tensor(name: str, values: NDArray[np.generic]) -> bytes:
    dims = b"".join(_varint(1, size) for size in values.shape)
    return dims + _varint(2, _DTYPES[values.dtype.name]) + _text(8, name) + _message(9, values.tobytes())


def _value(name: str, shape: Sequence[int]) -> bytes:
    dims = b"".join(_message(1, _varint(1, size)) for size in shape)
    tensor = _varint(1, _DTYPES["float32"]) + _message(2, dims)
    return _text(1, name) + _message(2, _message(1, tensor))


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _message(field: int, content: bytes) -> bytes:
    return _base128(field << 3 | 2) + _base128(len(content)) + content


def _varint(field: int, value: int) -> bytes:
    return _base128(field << 3) + _base128(value)


def _base128(value: int) -> bytes:
    groups = []
    while True:
        value, group = value >> 7, value & 0x7F
        groups.append(group | (0x80 if value else 0))
        if not value:
            return struct.pack(f"{len(groups)}B", *groups)
