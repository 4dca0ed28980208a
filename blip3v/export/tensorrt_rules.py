"""Checks that the quantisation of a graph obeys TensorRT's rules, without TensorRT and without reading the weights.

    x -> QuantizeLinear -> DequantizeLinear \\
                                             MatMul, Gemm or Conv     int8: one scale for x, one per output of w
    w (initializer) ----> DequantizeLinear /                          blocks: x as it is, a scale for a few inputs of w

TensorRT reads a graph's precision from these pairs (explicit quantisation). What it cannot match it refuses, or accepts
without a word and does not compute as meant: its parser takes a uint8 activation, for one. Not here: operators that it
lacks for other reasons, which are only counted (``tensorrt_operators`` checks them).
"""

# Shapes: K inputs and N outputs of a weight.

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["RULES", "Rule", "TensorRTReport", "Violation", "check_tensorrt_rules"]

_DOCS = "https://docs.nvidia.com/deeplearning/tensorrt/latest"
_LAYERS = "https://docs.nvidia.com/deeplearning/tensorrt/api/c_api/classnvinfer1_1_1_i_dequantize_layer.html"
_EXPLICIT = f"{_DOCS}/inference-library/quantized-types-explicit-quantization.html"
_TYPES = f"{_DOCS}/inference-library/work-with-quantized-types.html"
_QUANTIZE = f"{_DOCS}/_static/operators/Quantize.html"
_OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"


@dataclass(frozen=True)
class Rule:
    """A rule of TensorRT."""

    text: str
    source: str  # where TensorRT says so


RULES = {
    "operator": Rule("quantisation is QuantizeLinear and DequantizeLinear of ONNX, and nothing else", _OPERATORS),
    "type": Rule("quantised values are int8, or int4 for weights", _TYPES),
    "symmetric": Rule("zero points are absent, or constants that are 0", _LAYERS),
    "scale": Rule("scales are constants, finite and above 0", f"{_QUANTIZE}, {_LAYERS}"),
    "activation": Rule("an activation has one scale", "https://github.com/NVIDIA/TensorRT/issues/1040"),
    "weight": Rule(
        "a weight has one scale, or one for each output channel, or blocks beside inputs in floats", _QUANTIZE
    ),
    "block": Rule("blocks lie along the inputs of a weight, and all have the same size", f"{_QUANTIZE}, {_LAYERS}"),
    "weight only": Rule("the other input of a product with an int4 weight is not quantised", _TYPES),
    "pair": Rule("QuantizeLinear is followed by DequantizeLinear with the same scale", _EXPLICIT),
    "placement": Rule("DequantizeLinear is followed by a matrix product or a convolution", _EXPLICIT),
}


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A place that breaks a rule."""

    node: str  # its name in the graph
    rule: str  # a key of ``RULES``, or of ``tensorrt_operators.operator_rules``
    found: str  # what is there
    requirement: Rule  # what that key stands for

    def __str__(self) -> str:
        return f"{self.node}: {self.found}; {self.requirement.text} ({self.requirement.source})"


@dataclass(frozen=True, kw_only=True)
class TensorRTReport:
    """What TensorRT would think of a graph."""

    violations: tuple[Violation, ...]
    other_operators: dict[str, int]  # operators outside the ONNX domain that quantise nothing, and how often they occur

    @property
    def passed(self) -> bool:
        """Whether all rules that were checked are obeyed; the other operators do not count."""
        return not self.violations


# Operators that compute in integers, or hide the scales in themselves.
_FORBIDDEN = frozenset(
    {
        *("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"),
        *("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
        *("DynamicQuantizeLSTM", "QAttention", "QGemm", "QEmbedLayerNormalization", "QMoE"),
    }
)
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
_INT8, _INT4 = ir.DataType.INT8, ir.DataType.INT4


def check_tensorrt_rules(path: Path) -> TensorRTReport:
    """Checks the quantisation of the graph in ``path``; of its weights only scales and zero points are read."""
    model = ir.load(path)
    violations: list[Violation] = []
    others: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        if node.op_type in _FORBIDDEN or (node.domain and node.op_type in _PAIR):
            violations.append(_violation(node, "operator", f"is {_operator(node)}"))
        elif node.domain:
            others[_operator(node)] += 1
        elif node.op_type == "QuantizeLinear":
            violations += _check_quantize(node)
        elif node.op_type == "DequantizeLinear":
            violations += _check_dequantize(node)
        elif node.op_type in _PRODUCTS:
            violations += _check_product(node)
    return TensorRTReport(violations=tuple(violations), other_operators=dict(others))


def _check_quantize(node: ir.Node) -> Iterator[Violation]:
    yield from _check_numbers(node)
    data = node.inputs[0]
    dtype = _quantized_type(node)
    if dtype not in (_INT8, _INT4) or (dtype == _INT4 and not _is_constant(data)):
        yield _violation(node, "type", f"makes {dtype.name.lower()}")
    if not _is_constant(data) and not _is_single(node.inputs[1]):
        yield _violation(node, "activation", f"has scales of shape {_shape(node.inputs[1])}")
    uses = list(node.outputs[0].uses())
    if not uses or any(use.node.op_type != "DequantizeLinear" for use in uses) or node.outputs[0].is_graph_output():
        found = ", ".join(sorted({use.node.op_type for use in uses})) or "nothing"
        yield _violation(node, "pair", f"is followed by {found}")


def _check_dequantize(node: ir.Node) -> Iterator[Violation]:
    yield from _check_numbers(node)
    data = node.inputs[0]
    assert data is not None, "the input is required"
    if data.dtype is not None and data.dtype not in (_INT8, _INT4):
        yield _violation(node, "type", f"reads {data.dtype.name.lower()}")
    source = data.producer()
    if source is not None and source.op_type == "QuantizeLinear":
        if not _same_scale(source.inputs[1], node.inputs[1]):
            yield _violation(node, "pair", f"has another scale than {source.name}")
    elif not _is_constant(data):
        yield _violation(node, "pair", f"reads the output of {source.op_type if source else 'no node'}")
    uses = list(node.outputs[0].uses())
    wrong = sorted({use.node.op_type for use in uses if use.node.op_type not in _PRODUCTS})
    if wrong or not uses:
        yield _violation(node, "placement", f"is followed by {', '.join(wrong) or 'nothing'}")


def _check_numbers(node: ir.Node) -> Iterator[Violation]:
    """Scale and zero point of either operator."""
    scale = node.inputs[1]
    values = _constant(scale)
    if values is None:
        yield _violation(node, "scale", "has a scale that the graph computes")
    elif not (np.isfinite(values).all() and (values > 0).all()):
        bad = values[~(np.isfinite(values) & (values > 0))]
        yield _violation(node, "scale", f"has the scale {bad.flat[0]:g}")
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None:
        points = _constant(zero)
        if points is None or points.any():
            yield _violation(node, "symmetric", "has a zero point that is computed" if points is None else "is shifted")


def _check_product(node: ir.Node) -> Iterator[Violation]:
    """The weight of a product, and what its other input may be."""
    pairs = [_dequantize_of(value) for value in node.inputs[:2]]
    weights = [(index, pair) for index, pair in enumerate(pairs) if pair is not None and _is_weight(pair)]
    for index, weight in weights:
        size, beside = weight.attributes.get_int("block_size", 0), pairs[1 - index] is not None
        if size:
            yield from _check_blocks(node, index, weight, size)
        else:
            yield from _check_channels(node, index, weight)
        if beside and _stored_type(weight) == _INT4:
            yield _violation(node, "weight only", "has both inputs quantised")
        elif beside and size:
            yield _violation(weight, "weight", "has blocks beside a quantised input")


def _check_channels(node: ir.Node, index: int, weight: ir.Node) -> Iterator[Violation]:
    scale = weight.inputs[1]
    assert scale is not None, "the scale is required"
    if _is_single(scale):
        return
    axis, wanted = _axis(weight), _output_axis(node, index, _rank(weight.inputs[0]))
    if _rank(scale) != 1:
        yield _violation(weight, "weight", f"has scales of shape {_shape(scale)}")
    elif axis != wanted:
        yield _violation(weight, "weight", f"has scales along axis {axis}; the outputs are axis {wanted}")


def _check_blocks(node: ir.Node, index: int, weight: ir.Node, size: int) -> Iterator[Violation]:
    data_shape, scale_shape, axis = _shape(weight.inputs[0]), _shape(weight.inputs[1]), _axis(weight)
    if axis == _output_axis(node, index, len(data_shape)):
        yield _violation(weight, "block", f"has blocks along axis {axis}, its outputs")
    elif len(scale_shape) != len(data_shape) or scale_shape[axis] * size != data_shape[axis]:
        yield _violation(weight, "block", f"has {data_shape[axis]} inputs in blocks of {size}")


def _output_axis(product: ir.Node, index: int, rank: int) -> int:
    """The axis of a weight that holds its output channels: N of (K, N) on the right of a product."""
    if product.op_type == "Conv":
        return 0
    if product.op_type == "ConvTranspose":
        return 1
    flipped = product.op_type == "Gemm" and product.attributes.get_int("transB" if index else "transA", 0) != 0
    return rank - 1 if (index == 1) != flipped else rank - 2


def _axis(node: ir.Node) -> int:
    axis = node.attributes.get_int("axis", 1)
    return axis if axis >= 0 else axis + _rank(node.inputs[0])


def _dequantize_of(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" and not node.domain else None


def _is_weight(dequantize: ir.Node) -> bool:
    """Whether it reads a constant, or the quantised form of one."""
    data = dequantize.inputs[0]
    source = None if data is None else data.producer()
    quantized = source is not None and source.op_type == "QuantizeLinear"
    return _is_constant(source.inputs[0] if source is not None and quantized else data)


def _stored_type(dequantize: ir.Node) -> ir.DataType | None:
    data = dequantize.inputs[0]
    source = None if data is None else data.producer()
    if source is not None and source.op_type == "QuantizeLinear":
        return _quantized_type(source)
    return None if data is None else data.dtype


def _quantized_type(quantize: ir.Node) -> ir.DataType:
    """What ``QuantizeLinear`` makes: uint8 unless its attribute or its zero point says otherwise."""
    zero = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    return ir.DataType(quantize.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)


def _same_scale(first: ir.Value | None, second: ir.Value | None) -> bool:
    if first is second:
        return True
    ours, theirs = _constant(first), _constant(second)
    return ours is not None and theirs is not None and np.array_equal(ours.ravel(), theirs.ravel())


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and ir.convenience.get_const_tensor(value) is not None


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    array: NDArray[Any] | None = None if tensor is None else tensor.numpy()
    return array


def _is_single(value: ir.Value | None) -> bool:
    return math.prod(_shape(value)) == 1 and len(_shape(value)) <= 1


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    shape = tensor.shape if tensor is not None else value.shape if value is not None else None
    return () if shape is None else tuple(int(size) if isinstance(size, int) else -1 for size in shape)


def _rank(value: ir.Value | None) -> int:
    return len(_shape(value))


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _violation(node: ir.Node, rule: str, found: str) -> Violation:
    return Violation(node=node.name or node.op_type, rule=rule, found=found, requirement=RULES[rule])
