"""A decoder whose weights are in blocks, rewritten to read prompts: int8 by int8 with a scale for each output channel.

    x ------------------------------> MatMulNBits -> y       x rounded inside, a scale for each row and block
    values, block scales ------------/

    x -> Abs -> ReduceMax -> Mul -> Max = row scales                                 a scale for each row
    x / row scales -> QuantizeLinear -> MatMulIntegerToFloat -> Mul by row scales -> y
    int8 values, channel scales -------/

A step waits for weights, of which MatMulNBits reads few bytes; a prompt waits for arithmetic, which goes several times
as fast in int8 products of whole matrices. Each row has a scale of its own, since a token with massive activations
would leave the others a few integers only. Matrices that the graph stores in another form (the head, what was kept in
floating point, what ``mixed`` raised) stay as they are. Torch is not needed. Not here: publishing the result
(``packed_graphs.py``) and opening it (``runtime/prompt_weights.py``).
"""

# Shapes: N outputs, K inputs, g groups.

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from blip3v.bundle.precision import GraphPrecision
from blip3v.errors import ArtifactError
from blip3v.export.block_values import channel_scales, int8_values

__all__ = ["pack_blocks_when_opened", "with_int8_products", "write_for_prompts"]

_BITS = {"int4-block": 4, "int8-block": 8}  # of the values, by format
_CONTRIB = "com.microsoft"
# Shared by all products. ONNX Runtime's kernels take unsigned inputs on x86, so 0 is stored as 128.
_CONSTANTS: dict[str, NDArray[Any]] = {
    "prompts.last_axis": np.array([-1]),
    "prompts.step": np.array(1 / 127, np.float32),
    "prompts.least": np.array(1e-30, np.float32),  # scale of a row of zeros
    "prompts.one": np.array(1, np.float32),
    "prompts.zero_input": np.array(128, np.uint8),
    "prompts.zero_weight": np.array(0, np.int8),
}


def write_for_prompts(source: Path, precision: GraphPrecision, path: Path) -> None:
    """Writes the graph as ``path``, and its weights beside it as ``<stem>.data``; each is made and written in turn.

    Args:
        source: the decoder's .onnx file, with weights in blocks.
        precision: the decoder's.
        path: in a folder that exists.

    Raises:
        ArtifactError: the graph reads weights from elsewhere than beside it.
        OSError: the file system reports an error.
    """
    model = ir.load(source)
    _read_plainly(model, source)
    with_int8_products(model, precision)
    ir.save(model, path, external_data=f"{path.stem}.data")


def with_int8_products(model: ir.Model, precision: GraphPrecision) -> int:
    """Rewrites every product of blocks in the graph's own format, and returns how many there were.

    Args:
        model: a decoder, changed in place; its new weights are computed when they are read.
        precision: the decoder's, which has a group size.
    """
    bits = _BITS[precision.weights]
    blocks = [
        node
        for node in model.graph.all_nodes()
        if node.op_type == "MatMulNBits" and node.attributes["bits"].as_int() == bits
    ]
    shared = {name: _constant(model.graph, name, number) for name, number in _CONSTANTS.items()}
    for node in blocks:
        _rewrite(model.graph, node, shared)
    return len(blocks)


def pack_blocks_when_opened(path: Path) -> None:
    """Has ONNX Runtime pack the blocks of a graph that it wrote with packed weights when it opens the graph.

    It writes the packed values of MatMulNBits without the scales that belong to them, and then computes nonsense.

    Args:
        path: the .onnx file, which is replaced.

    Raises:
        OSError: the file system reports an error.
    """
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in list(tensor.external_data):
            if entry.key.startswith("prepacked") and entry.value.startswith("MatMulNBits"):
                tensor.external_data.remove(entry)
    path.write_bytes(model.SerializeToString())


def _rewrite(graph: ir.Graph, node: ir.Node, shared: dict[str, ir.Value]) -> None:
    value, values, scales = node.inputs
    assert value is not None
    assert values is not None
    assert scales is not None
    weights, channels = _int8_weight(graph, node, values, scales)
    name = str(node.name)
    axis, step, least, one = (shared[f"prompts.{each}"] for each in ("last_axis", "step", "least", "one"))
    zeros = shared["prompts.zero_input"], shared["prompts.zero_weight"]
    sizes = ir.node("Abs", [value], name=f"{name}.sizes")
    largest = ir.node("ReduceMax", [sizes.outputs[0], axis], name=f"{name}.largest")
    steps = ir.node("Mul", [largest.outputs[0], step], name=f"{name}.steps")
    rows = ir.node("Max", [steps.outputs[0], least], name=f"{name}.row_scales")
    scaled = ir.node("Div", [value, rows.outputs[0]], name=f"{name}.scaled")
    rounded = ir.node("QuantizeLinear", [scaled.outputs[0], one, zeros[0]], name=f"{name}.rounded")
    product = ir.node(
        "MatMulIntegerToFloat",
        [rounded.outputs[0], weights, one, channels, *zeros],
        domain=_CONTRIB,
        name=f"{name}.int8",
    )
    result = ir.node("Mul", [product.outputs[0], rows.outputs[0]], name=name)
    first, last = node.outputs[0], result.outputs[0]
    last.name, last.shape, last.type = first.name, first.shape, first.type
    graph.insert_before(node, [sizes, largest, steps, rows, scaled, rounded, product, result])
    ir.convenience.replace_all_uses_with(first, last, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for old in (values, scales):
        if not old.uses():
            del graph.initializers[str(old.name)]


def _int8_weight(graph: ir.Graph, node: ir.Node, values: ir.Value, scales: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Int8 values (K, N), read when they are written, and the scales of the channels."""
    bits, num_inputs, num_outputs = (node.attributes[name].as_int() for name in ("bits", "K", "N"))
    stored, groups = values.const_value, scales.const_value
    assert stored is not None
    assert groups is not None
    channels_N = channel_scales(stored.numpy(), groups.numpy(), bits)

    def read(name: str) -> ir.TensorProtocol:
        return ir.tensor(int8_values(stored.numpy(), groups.numpy(), bits, channels_N, num_inputs), name=name)

    name = f"{node.name}.values"
    shape = ir.Shape((num_inputs, num_outputs))
    lazy = ir.LazyTensor(functools.partial(read, name), dtype=ir.DataType.INT8, shape=shape, name=name)
    found = ir.val(name, const_value=lazy)
    graph.register_initializer(found)
    return found, _constant(graph, f"{node.name}.channel_scales", channels_N)


def _read_plainly(model: ir.Model, source: Path) -> None:
    """Has stored weights read from their file by numpy: onnx_ir takes none with several names, as a hub's cache has."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            if Path(tensor.location).name != str(tensor.location):
                raise ArtifactError(
                    f"{source} reads weights from {tensor.location}, which is not beside it; export again"
                )
            read = functools.partial(_external, source.parent, tensor)
            value.const_value = ir.LazyTensor(read, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)


def _external(folder: Path, tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    shape = tuple(tensor.shape.numpy())
    array: NDArray[Any] = np.memmap(
        folder / tensor.location, tensor.dtype.numpy(), mode="r", offset=tensor.offset or 0, shape=shape
    )
    return ir.tensor(array, dtype=tensor.dtype, name=tensor.name)


def _constant(graph: ir.Graph, name: str, number: NDArray[Any]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(number, name=name))
    graph.register_initializer(value)
    return value
