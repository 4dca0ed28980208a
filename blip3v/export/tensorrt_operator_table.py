"""What TensorRT's ONNX parser documents of the operators that our graphs and their like are made of.

The parser's documentation has a table of operators, types and restrictions for each release. Of that table this holds
the rows that an exported graph of ours may need, with the types that ONNX does not allow left out, and with the
restrictions as data:

    Row("T4 T4 I -> T4", ...)       TensorScatter: two values of rank 4, integers; one value of rank 4

    T   a value of one of the row's types; all T of a node have the same one
    U   a value of one of the row's types, whatever the others have
    M   a mask: bool, or the type of T
    B   bool        I   int32 or int64      L   int64       Q   int8 or int4
    4   (a digit) of that rank      !   a constant      *   any number of them

An input or output after the last in its signature is none that the parser computes. Not here: the check itself
(``tensorrt_operators``) and the rules of quantisation (``tensorrt_rules``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from blip3v.bundle.targets import Target

__all__ = ["BODIES", "TABLES", "Row", "Table"]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_NUMBERS = _FLOATS | _INTEGERS
_ANY = _NUMBERS | {ir.DataType.BOOL}


@dataclass(frozen=True)
class Row:
    """An operator of the table."""

    signature: str
    types: frozenset[ir.DataType] = _FLOATS
    attributes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # the values allowed of those restricted

    @property
    def inputs(self) -> list[str]:
        """The kinds of its inputs."""
        return self.signature.partition("->")[0].split()

    @property
    def outputs(self) -> list[str]:
        """The kinds of its outputs."""
        return self.signature.partition("->")[2].split()


@dataclass(frozen=True, kw_only=True)
class Table:
    """The operators of a release of TensorRT."""

    release: str
    source: str  # the documentation, at a commit
    opsets: tuple[int, int]  # of ONNX, the first and the last
    rows: Mapping[str, Row]  # by operator, all of the ONNX domain


def _rows(signature: str, types: frozenset[ir.DataType], *operators: str) -> dict[str, Row]:
    return dict.fromkeys(operators, Row(signature, types))


# Rows that are the same in all the releases below.
_COMMON = {
    **_rows("T T -> T", _NUMBERS, "Add", "Sub", "Mul", "Div", "Mod"),
    **_rows("T T -> B", _NUMBERS, "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
    **_rows("T* -> T", _NUMBERS, "Max", "Min"),
    **_rows("T -> T", _NUMBERS, "Abs", "Neg", "Relu"),
    **_rows("T -> T", _FLOATS, "Ceil", "Cos", "Erf", "Exp", "Floor", "Gelu", "Log", "Reciprocal"),
    **_rows("T -> T", _FLOATS, "Round", "Sigmoid", "Sin", "Softmax", "Softplus", "Sqrt", "Tanh"),
    **_rows("B B -> B", _ANY, "And", "Or", "Xor"),
    **_rows("T L! -> T", _NUMBERS, "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
    **_rows("T T T -> T", _FLOATS, "Clip", "Conv", "Gemm", "LayerNormalization"),
    **_rows("T -> T", _ANY, "Flatten", "Identity", "Transpose"),
    **_rows("T -> L", _ANY, "Shape", "Size"),
    **_rows("T L -> T", _ANY, "Expand", "GatherND", "Reshape", "Tile", "Trilu"),
    **_rows("T L! -> T", _ANY, "Squeeze", "Unsqueeze"),
    **_rows("T I -> T", _ANY, "Gather", "GatherElements"),
    "ArgMax": Row("T -> L", _NUMBERS),
    "Cast": Row("U -> U", _ANY | {ir.DataType.UINT8}),
    "Concat": Row("T* -> T", _ANY),
    "Constant": Row("-> T", _ANY),
    "ConstantOfShape": Row("L -> T", _ANY),
    "CumSum": Row("T I! -> T"),
    "DequantizeLinear": Row("Q T Q -> T"),
    "IsInf": Row("T -> B"),
    "IsNaN": Row("T -> B"),
    "MatMul": Row("T T -> T"),
    "Not": Row("B -> B"),
    "QuantizeLinear": Row("T T Q -> Q"),
    "Range": Row("T T T -> T", _NUMBERS),
    "ScatterElements": Row("T I T -> T", _NUMBERS),
    "ScatterND": Row("T L T -> T", _NUMBERS, {"reduction": ("none",)}),
    "Split": Row("T L -> T*", _ANY),
    "Where": Row("B T T -> T", _ANY),
}

# Restricted further than the table says by what the parser of TensorRT-RTX 1.7.1 refuses: softmax_precision of
# Attention, and caches of int32 and the other mode of TensorScatter.
_CURRENT = {
    **_COMMON,
    "Attention": Row(
        "T4 T4 T4 M4 -> T4",
        attributes={
            "qk_matmul_output_mode": (0,),
            "softcap": (0.0,),
            "softmax_precision": (),
            "TRT_decomposable": (0, 1),
        },
    ),
    "Pow": Row("T T -> T", _NUMBERS),
    "RMSNormalization": Row("T T -> T"),
    "RotaryEmbedding": Row("T T T L -> T"),
    "Slice": Row("T I I I I -> T", _ANY),
    "TensorScatter": Row("T4 T4 I -> T4", _FLOATS, {"axis": (-2,), "mode": ("linear",)}),
}
_LEGACY = {
    **_COMMON,
    "Pow": Row("T T -> T"),
    "Slice": Row("T I I I! I -> T", _ANY),
}


def _documentation(commit: str) -> str:
    return f"https://github.com/onnx/onnx-tensorrt/blob/{commit}/docs/operators.md"


# The table of 11.1 (commit 7c51a63a7191) has these rows without a change.
_TENSORRT_10_15 = Table(
    release="TensorRT 10.15",
    source=_documentation("fa5aa9f61e77"),
    opsets=(9, 24),
    rows=_CURRENT,
)
# The nearest release before 10.3 whose table could be read. Until 10.3, TensorRT's change log names no operator that
# was taken away, and one restriction that was lifted: that of the axes of Slice.
_TENSORRT_10_1 = Table(
    release="TensorRT 10.1",
    source=_documentation("96e781103cfc"),
    opsets=(9, 20),
    rows=_LEGACY,
)
TABLES: Mapping[Target, Table] = {
    "tensorrt": _TENSORRT_10_15,
    "tensorrt-rtx": _TENSORRT_10_15,
    "tensorrt-legacy": _TENSORRT_10_1,
}

# Operators that hold graphs. The tables have them; ``tensorrt_operators`` says why they are not taken.
BODIES = frozenset({"If", "Loop", "Scan"})
