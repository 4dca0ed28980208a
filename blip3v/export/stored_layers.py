"""Reads from a written graph how each linear layer is stored, so that nothing is believed to be quantised that is not.

The graph is the evidence: every matrix product with a stored weight is traced back to it. What should have been
quantised follows from the model and the precision (``check_quantized``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from blip3v.errors import ExportError
from blip3v.export.passes import BLOCK_INT8, PACKED_INT4
from blip3v.export.quantized_formats import DEQUANTIZED, VALUES
from blip3v.export.weight_formats import HALF

__all__ = ["INTEGER_FORMATS", "StoredLayer", "check_quantized", "read_layers"]

# Suffix of the stored tensor that holds a weight's values -> the format; a plain float has none.
_FORMATS = {
    VALUES: "int8",
    BLOCK_INT8: "int8-block",
    PACKED_INT4: "int4-block",
    DEQUANTIZED[8]: "int8-block",
    DEQUANTIZED[4]: "int4-block",
    HALF: "float16-stored",
}
INTEGER_FORMATS = ("int8", "int8-block", "int4-block")
_PRODUCTS = ("MatMul", "Gemm", "MatMulNBits")


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """A linear layer of a written graph."""

    layer: str  # as ``linear_layers`` names it
    node: str  # its matrix product
    weights: str  # format: a key of ``WEIGHT_FORMATS``
    group_size: int | None  # inputs that share a scale; None: all of an output channel, or a float
    num_inputs: int
    values: ir.TensorProtocol  # as they are stored; read from the file when asked for
    scales: ir.TensorProtocol | None  # None: a float
    input_scale: float | None  # of static int8; None: inputs are floats
    dequantized: bool = False  # whether the weight is a float again in front of the product

    @property
    def is_quantized(self) -> bool:
        """Whether its weight is stored in integers."""
        return self.weights in INTEGER_FORMATS


def read_layers(path: Path, layers: Mapping[str, str]) -> list[StoredLayer]:
    """Reads the linear layers of a graph's file, in the graph's order.

    Args:
        path: the .onnx file, with its weights beside it.
        layers: the layer of each weight by the name that the weight has in the graph.
    """
    graph = ir.load(path).graph
    found = [_stored(node, layers) for node in graph.all_nodes() if node.op_type in _PRODUCTS]
    return [layer for layer in found if layer is not None]


def check_quantized(found: Sequence[StoredLayer], wanted: Mapping[str, str]) -> None:
    """Raises unless every layer has the format that was asked for.

    Args:
        found: the layers of the graph.
        wanted: layer -> format.

    Raises:
        ExportError: layers that are missing, or stored otherwise.
    """
    formats = {layer.layer: layer.weights for layer in found}
    wrong = [
        f"{layer} ({formats.get(layer, 'not in the graph')} instead of {want})"
        for layer, want in wanted.items()
        if formats.get(layer) != want
    ]
    if wrong:
        raise ExportError(
            f"{len(wrong)} of {len(wanted)} layers are not stored as asked for: {', '.join(wrong[:4])}; "
            "report this as a bug"
        )


def _stored(node: ir.Node, layers: Mapping[str, str]) -> StoredLayer | None:
    """The layer of a matrix product; None if neither factor is a stored weight."""
    value = node.inputs[1]
    while value is not None and value.producer() is not None:
        producer = value.producer()
        if producer is None or producer.op_type not in ("DequantizeLinear", "Cast"):
            return None
        value = producer.inputs[0]
    if value is None or value.const_value is None:
        return None
    name = str(value.name)
    suffix = next((suffix for suffix in _FORMATS if name.endswith(suffix)), "")
    weight = name.removesuffix(suffix)
    if weight not in layers:
        return None
    tensor = value.const_value
    producer = None if node.inputs[1] is None else node.inputs[1].producer()
    size = (producer if producer is not None else node).attributes.get_int("block_size", 0) or None
    packed = node.op_type == "MatMulNBits"
    return StoredLayer(
        layer=layers[weight],
        node=str(node.name),
        weights=_FORMATS.get(suffix, {"FLOAT": "float32"}.get(tensor.dtype.name, tensor.dtype.name.lower())),
        group_size=size,
        num_inputs=node.attributes["K"].as_int() if packed else int(tensor.shape[1 if node.op_type == "Gemm" else 0]),  # type: ignore[arg-type]
        values=tensor,
        scales=_scales(node),
        input_scale=_input_scale(node),
        dequantized=size is not None and not packed,
    )


def _scales(node: ir.Node) -> ir.TensorProtocol | None:
    if node.op_type == "MatMulNBits":
        value = node.inputs[2]
    else:
        producer = node.inputs[1].producer() if node.inputs[1] is not None else None
        value = producer.inputs[1] if producer is not None and producer.op_type == "DequantizeLinear" else None
    return None if value is None else value.const_value


def _input_scale(node: ir.Node) -> float | None:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[1] is None:
        return None
    constant = producer.inputs[1].const_value
    return None if constant is None else float(constant.numpy())
