"""Weights in integers: static int8 for every engine, and blocks for engines that unpack them inside the product.

    int8         x -> QuantizeLinear -> DequantizeLinear -\\
                                                           MatMul          W8A8: both scales are constants
                 values, scales ------> DequantizeLinear -/
    int8-block,  x ------------------------\\
    int4-block                              com.microsoft::MatMulNBits     x is rounded to int8 inside the product,
                 values, scales -----------/                               with a scale for each row and block

For TensorRT, which has no such operator, blocks are unpacked in front of an ordinary product:

    int8-block,  x -------------------------------------\\
    int4-block                                            MatMul          x stays as it is
                 values, scales ------> DequantizeLinear -/

int8 is symmetric (zero point 0), per tensor for activations and per output channel for weights, which is what TensorRT,
OpenVINO and ONNX Runtime fuse into integer products. A block format has ``accuracy_level`` 4: ONNX Runtime's kernels
for level 1 (fp32) are slower than no quantisation at all.
"""

# Shapes: N outputs, K inputs, g groups, S group size.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.calibration.plan import Plan
from blip3v.calibration.quantized import QuantizedMatrix, group_of, largest_value
from blip3v.errors import ExportError
from blip3v.export.passes import BLOCK_INT8, PACKED_INT4
from blip3v.export.weight_formats import StoredTensor, Weight

__all__ = ["BLOCK_SCALES", "DEQUANTIZED", "SCALES", "VALUES", "BlockFormat", "StaticInt8", "block_format"]

# Suffixes of the stored tensors.
VALUES, SCALES = ".int8", ".scales"
BLOCK_SCALES = ".block_scales"
DEQUANTIZED = {8: ".int8_groups", 4: ".int4_groups"}  # values of blocks that DequantizeLinear unpacks, by bits

_ZERO, _FIRST_AXIS = "int8_zero", "first_axis"  # constants that all static products share
_CONTRIB = "com.microsoft"


class _Quantized:
    """What the formats share: the weight's layer, and the plan that rounds it."""

    def __init__(self, weight: Weight) -> None:
        self._weight = weight

    @property
    def _plan(self) -> Plan:
        if self._weight.plan is None:
            raise ExportError(f"{self._weight.layer} is to be quantised and there is no plan; report this as a bug")
        return self._weight.plan

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Returns (N, K)."""
        first, second = shape
        return (second, first) if self._weight.inputs_first else (first, second)

    def _quantized(self, weight: Tensor, bits: int, group_size: int | None) -> QuantizedMatrix:
        weight_NK = weight.T if self._weight.inputs_first else weight
        return self._plan.quantize(self._weight.layer, weight_NK.contiguous(), bits=bits, group_size=group_size)

    def _stored(self, matrix: QuantizedMatrix, group_size: int | None) -> tuple[Tensor, Tensor]:
        """Returns values (N, K) and scales (N, g) as they are stored; values follow what their scale is rounded to."""
        if self._weight.floats == ir.DataType.FLOAT:
            return matrix.values_NK, matrix.scales_Ng
        halves_Ng = matrix.scales_Ng.half().clamp_min(torch.finfo(torch.float16).smallest_normal)
        ratio_Ng = matrix.scales_Ng / halves_Ng.float()
        ratio_NK = ratio_Ng if group_size is None else ratio_Ng.repeat_interleave(group_size, dim=1)
        largest = largest_value(matrix.bits)
        return (matrix.values_NK * ratio_NK).round().clamp(-largest, largest).to(torch.int8), halves_Ng


class StaticInt8(_Quantized):
    """int8 values with a scale for each output channel; inputs are rounded to int8 with one constant scale."""

    def layout(self, shape: tuple[int, ...]) -> dict[str, StoredTensor]:
        """See ``WeightFormat``. Values are (K, N)."""
        num_outputs, num_inputs = self._sizes(shape)
        return {
            VALUES: StoredTensor(ir.DataType.INT8, (num_inputs, num_outputs)),
            SCALES: StoredTensor(self._weight.floats, (num_outputs,)),
        }

    def store(self, weight: Tensor) -> Mapping[str, NDArray[Any]]:
        """See ``WeightFormat``."""
        values_NK, scales_Ng = self._stored(self._quantized(weight, 8, None), None)
        return {VALUES: values_NK.T.contiguous().numpy(), SCALES: scales_Ng[:, 0].contiguous().numpy()}

    def rewrite(self, graph: ir.Graph, weight: ir.Value, stored: Mapping[str, ir.Value]) -> None:
        """Puts Q/DQ in front of every product that takes the weight."""
        scale = self._plan.activation_scale(self._weight.layer)
        for product, _ in list(weight.uses()):
            assert product.graph is not None, "a node is part of a graph, here of the main one or of a Scan's body"
            widen = _node("DequantizeLinear", [stored[VALUES], stored[SCALES]], f"{product.name}.weight", {"axis": 1})
            product.graph.insert_before(product, widen)
            if product.op_type == "Gemm":
                product = _with_three_axes(graph, product)
            rounded = _rounded_input(graph, product, scale, self._weight.floats)
            _replace_product(product, _node("MatMul", [rounded, widen.outputs[0]], product.name))


class BlockFormat(_Quantized):
    """Values with a scale for every group of inputs of an output channel, in the layout of MatMulNBits."""

    def __init__(self, weight: Weight, bits: int) -> None:
        super().__init__(weight)
        self._bits = bits
        self._values = {8: BLOCK_INT8, 4: PACKED_INT4}[bits]

    def _group_size(self, num_inputs: int) -> int:
        assert self._weight.group_size is not None, "a precision with block formats has a group size"
        return group_of(num_inputs, self._weight.group_size)

    def layout(self, shape: tuple[int, ...]) -> dict[str, StoredTensor]:
        """See ``WeightFormat``. Values are (N, g, S * bits / 8), two 4-bit values a byte, the first in the low half."""
        num_outputs, num_inputs = self._sizes(shape)
        size = self._group_size(num_inputs)
        groups = -(-num_inputs // size)
        return {
            self._values: StoredTensor(ir.DataType.UINT8, (num_outputs, groups, size * self._bits // 8)),
            BLOCK_SCALES: StoredTensor(ir.DataType.FLOAT, (num_outputs, groups)),
        }

    def store(self, weight: Tensor) -> Mapping[str, NDArray[Any]]:
        """See ``WeightFormat``."""
        size = self._group_size(self._sizes(tuple(weight.shape))[1])
        matrix = self._quantized(weight, self._bits, size)
        return {self._values: _packed(matrix, size), BLOCK_SCALES: matrix.scales_Ng.contiguous().numpy()}

    def rewrite(self, graph: ir.Graph, weight: ir.Value, stored: Mapping[str, ir.Value]) -> None:
        """Replaces every product that takes the weight."""
        assert weight.shape is not None, "an initializer has a shape"
        num_outputs, num_inputs = self._sizes(tuple(int(size) for size in weight.shape))  # type: ignore[arg-type]
        attributes = {
            "K": num_inputs,
            "N": num_outputs,
            "bits": self._bits,
            "block_size": self._group_size(num_inputs),
            "accuracy_level": 4,
        }
        graph.opset_imports[_CONTRIB] = 1
        for product, _ in list(weight.uses()):
            inputs = [product.inputs[0], stored[self._values], stored[BLOCK_SCALES]]
            _replace_product(product, _node("MatMulNBits", inputs, product.name, attributes, domain=_CONTRIB))


class DequantizedBlocks(_Quantized):
    """The same values and scales for engines without MatMulNBits: unpacked in front of the product."""

    def __init__(self, weight: Weight, bits: int) -> None:
        super().__init__(weight)
        self._bits = bits

    def _group_size(self, num_inputs: int) -> int:
        assert self._weight.group_size is not None, "a precision with block formats has a group size"
        size = group_of(num_inputs, self._weight.group_size)
        if num_inputs % size:
            raise ExportError(
                f"{self._weight.layer} has {num_inputs} inputs, not a multiple of 16; TensorRT takes whole blocks; "
                "keep it in floating point"
            )
        return size

    def layout(self, shape: tuple[int, ...]) -> dict[str, StoredTensor]:
        """See ``WeightFormat``. Values are (K, N)."""
        num_outputs, num_inputs = self._sizes(shape)
        dtype = {8: ir.DataType.INT8, 4: ir.DataType.INT4}[self._bits]
        groups = num_inputs // self._group_size(num_inputs)
        return {
            DEQUANTIZED[self._bits]: StoredTensor(dtype, (num_inputs, num_outputs)),
            BLOCK_SCALES: StoredTensor(self._weight.floats, (groups, num_outputs)),
        }

    def store(self, weight: Tensor) -> Mapping[str, NDArray[Any]]:
        """See ``WeightFormat``."""
        size = self._group_size(self._sizes(tuple(weight.shape))[1])
        values_NK, scales_Ng = self._stored(self._quantized(weight, self._bits, size), size)
        values_KN = values_NK.T.contiguous().numpy()
        values_KN = values_KN if self._bits == 8 else values_KN.astype(ml_dtypes.int4)
        return {DEQUANTIZED[self._bits]: values_KN, BLOCK_SCALES: scales_Ng.T.contiguous().numpy()}

    def rewrite(self, graph: ir.Graph, weight: ir.Value, stored: Mapping[str, ir.Value]) -> None:
        """Unpacks the weight in front of every product that takes it."""
        assert weight.shape is not None, "an initializer has a shape"
        size = self._group_size(self._sizes(tuple(int(n) for n in weight.shape))[1])  # type: ignore[arg-type]
        inputs: list[ir.Value | None] = [stored[DEQUANTIZED[self._bits]], stored[BLOCK_SCALES]]
        for product, _ in list(weight.uses()):
            assert product.graph is not None, "a node is part of a graph"
            widen = _node("DequantizeLinear", inputs, f"{product.name}.weight", {"axis": 0, "block_size": size})
            product.graph.insert_before(product, widen)
            _replace_product(product, _node("MatMul", [product.inputs[0], widen.outputs[0]], product.name))


def block_format(weight: Weight, bits: int) -> BlockFormat | DequantizedBlocks:
    """Returns the form of a block format that the graph's engines have."""
    return BlockFormat(weight, bits) if weight.contrib else DequantizedBlocks(weight, bits)


def _packed(matrix: QuantizedMatrix, group_size: int) -> NDArray[np.uint8]:
    """(N, K) to (N, g, S * bits / 8), with the offset of unsigned storage."""
    missing = -matrix.values_NK.shape[1] % group_size
    padded_NK = torch.nn.functional.pad(matrix.values_NK, (0, missing))
    unsigned = (padded_NK.to(torch.int16) + 2 ** (matrix.bits - 1)).to(torch.uint8)
    if matrix.bits == 4:
        unsigned = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    num_groups = padded_NK.shape[1] // group_size
    blocks: NDArray[np.uint8] = unsigned.reshape(len(unsigned), num_groups, -1).contiguous().numpy()
    return blocks


def _rounded_input(graph: ir.Graph, product: ir.Node, scale: float, floats: ir.DataType) -> ir.Value:
    """Returns the product's input after a Q/DQ of its own.

    ONNX Runtime merges equal Q nodes, and then fuses none of their products on x86: where several products take one
    input, their scales differ in the last bit; in half precision, which it does not fuse, they are equal.
    """
    value, name, body = product.inputs[0], f"{product.name}.input", product.graph
    assert value is not None, "a product has two inputs"
    assert body is not None, "a node is part of a graph"
    own_scale = floats.numpy().type(scale)
    if floats == ir.DataType.FLOAT:
        for _ in [node for node, _ in value.uses() if node.op_type == "QuantizeLinear"]:
            own_scale = np.nextafter(own_scale, np.float32(np.inf))
    constants = [
        _constant(graph, f"{name}.scale", own_scale),
        graph.initializers.get(_ZERO) or _constant(graph, _ZERO, np.int8(0)),
    ]
    narrow = _node("QuantizeLinear", [value, *constants], f"{name}.int8")
    widen = _node("DequantizeLinear", [narrow.outputs[0], *constants], f"{name}.rounded")
    body.insert_before(product, [narrow, widen])
    return widen.outputs[0]


def _with_three_axes(graph: ir.Graph, gemm: ir.Node) -> ir.Node:
    """Gives the input of a Gemm a third axis: ONNX Runtime joins a product of two axes with a sum instead of fusing."""
    axis = graph.initializers.get(_FIRST_AXIS) or _constant(graph, _FIRST_AXIS, np.array([0]))
    wide = _node("Unsqueeze", [gemm.inputs[0], axis], f"{gemm.name}.unsqueezed")
    product = _node("MatMul", [wide.outputs[0], gemm.inputs[1]], gemm.name)
    narrow = _node("Squeeze", [product.outputs[0], axis], f"{gemm.name}.squeezed")
    product.outputs[0].name = f"{gemm.name}.product"
    assert gemm.graph is not None, "a node is part of a graph"
    gemm.graph.insert_before(gemm, [wide, product])
    _replace_product(gemm, narrow)
    return product


def _constant(graph: ir.Graph, name: str, number: np.generic | NDArray[Any]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(np.array(number), name=name))
    graph.register_initializer(value)
    return value


def _node(
    op: str,
    inputs: list[ir.Value | None],
    name: str | None,
    attributes: Mapping[str, int] | None = None,
    domain: str = "",
) -> ir.Node:
    node = ir.node(op, inputs, attributes=attributes, domain=domain, name=name)
    node.outputs[0].name = name
    return node


def _replace_product(old: ir.Node, new: ir.Node) -> None:
    """Puts ``new`` in the place of a MatMul, or of a Gemm without a bias."""
    if old.op_type == "Gemm" and len([value for value in old.inputs if value is not None]) > 2:
        raise ExportError(f"{old.name} adds a bias inside a Gemm, which is not quantised; report this as a bug")
    result, first = new.outputs[0], old.outputs[0]
    result.name, result.shape, result.type = first.name, first.shape, first.type
    assert old.graph is not None, "a node is part of a graph"
    old.graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(first, result, replace_graph_outputs=True)
    old.graph.remove(old, safe=True)
