"""From an ONNX file to TensorRT's network, and whether that is what the file says.

    decoder.onnx, capacity symbolic -> proto, capacity a number -> parser -> network -> compared with the bundle's table

A parse that succeeds is no proof: the parser drops inputs of a node that it does not know, such as Attention's
``nonpad_kv_seqlen``. So what the file reads has to be read in the network too, inputs and outputs have to be those that
the bundle promises, and the layers of the precision that was asked for. Weights stay in their files, which the parser
maps. Not here: profiles and the build (``engine_builder.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip3v.bundle.graph_io import DType, TensorSpec
from blip3v.bundle.manifest import GraphEntry
from blip3v.bundle.precision import GraphPrecision
from blip3v.errors import BackendError
from blip3v.runtime.engine_errors import path_for_engine
from blip3v.runtime.tensorrt_library import TensorRT
from blip3v.runtime.tensorrt_log import TensorRTLog, tensorrt_log

if TYPE_CHECKING:
    import onnx

__all__ = ["LayerPrecisions", "Network", "check_precision", "layer_precisions", "parse_graph"]

LayerPrecisions = dict[str, dict[str, int]]  # kind of layer -> dtype -> how many

CAPACITY = "capacity"  # the axis of the KV cache that TensorRT wants as a number
_DTYPES: dict[DType, str] = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
}
# They may read a shape that the parser knows from elsewhere.
_SHAPE_READERS = frozenset({"ConstantOfShape", "Expand", "Range", "Reshape", "Slice", "Tile"})
_MAX_ERRORS = 4  # that a message lists
_AGAIN = "run `blip3v export` again"


@dataclass(frozen=True)
class Network:
    """A parsed graph, with what has to live as long as it does."""

    definition: Any  # INetworkDefinition
    builder: Any  # Builder
    num_quantized: int  # DequantizeLinear nodes of the file
    parser: Any  # OnnxParser; the network reads the weights that it has mapped


def parse_graph(tensorrt: TensorRT, path: Path, entry: GraphEntry, *, capacity: int | None) -> Network:
    """Parses a graph into a strongly typed network.

    Args:
        tensorrt: the library.
        path: the .onnx file; its weights lie beside it and stay there.
        entry: its inputs and outputs, as the manifest lists them.
        capacity: tokens of the KV cache; None: the graph has no cache.

    Raises:
        BackendError: the parser refuses the graph, or leaves out an input or output, or changes its dtype or axes.
    """
    import onnx  # heavy, and needed only here

    name, trt, log = path.stem, tensorrt.module, tensorrt_log(tensorrt.module)
    model = onnx.load(path_for_engine(path), load_external_data=False)
    if capacity is not None:
        _set_capacity(model, (*entry.inputs, *entry.outputs), capacity)
    log.forget()
    builder = trt.Builder(log.logger)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, log.logger)
    if not parser.parse(model.SerializeToString(), path_for_engine(path)):
        raise BackendError(f"{tensorrt.name} cannot parse the {name}: {_parser_errors(parser, log)}; {_AGAIN}")
    _check_tensors(tensorrt, name, entry.inputs, _inputs(definition), capacity)
    _check_tensors(tensorrt, name, entry.outputs, _outputs(definition), capacity)
    _check_reads(tensorrt, name, model, definition)
    num_quantized = sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
    return Network(definition, builder, num_quantized, parser)


def layer_precisions(definition: Any) -> LayerPrecisions:
    """What the layers of a network compute in: kind of layer -> dtype -> count, both as TensorRT names them.

    The dtype is that of a layer's first input: what DEQUANTIZE reads, and what MATRIX_MULTIPLY multiplies. Of a layer
    without inputs (CONSTANT) and of QUANTIZE it is that of the output.
    """
    counts: dict[str, Counter[str]] = {}
    for index in range(definition.num_layers):
        layer = definition.get_layer(index)
        kind = layer.type.name
        from_output = kind == "QUANTIZE" or layer.num_inputs == 0
        tensor = layer.get_output(0) if from_output else layer.get_input(0)
        if tensor is not None:
            counts.setdefault(kind, Counter())[tensor.dtype.name] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def check_precision(tensorrt: TensorRT, name: str, network: Network, precision: GraphPrecision) -> LayerPrecisions:
    """Checks that a network computes in the precision that was asked for, and returns what its layers compute in.

    Raises:
        BackendError: it does not; says what was found.
    """
    found = layer_precisions(network.definition)
    integers = sum(found.get("DEQUANTIZE", {}).get(dtype, 0) for dtype in ("INT8", "INT4"))
    if integers != network.num_quantized:
        raise BackendError(
            f"{tensorrt.name} reads {integers} quantised values of the {name}; its graph has {network.num_quantized}; "
            f"{_AGAIN}"
        )
    products = found.get("MATRIX_MULTIPLY", {})
    if precision.weights.startswith(("int8", "int4")):
        as_asked = integers > 0
    else:
        as_asked = products.get(_DTYPES[precision.io], 0) > 0 or not products
    if not as_asked:
        counts = ", ".join(f"{count} in {dtype}" for dtype, count in products.items()) or "none"
        raise BackendError(
            f"{tensorrt.name} would not compute the {name} in {precision.name}: matrix products: {counts}; {_AGAIN}"
        )
    return found


def _set_capacity(model: onnx.ModelProto, specs: Sequence[TensorSpec], capacity: int) -> None:
    """Replaces the symbolic length of the KV cache by a number in the inputs and outputs of the graph."""
    axes = {spec.name: spec.axes.index(CAPACITY) for spec in specs if CAPACITY in spec.axes}
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name in axes and axes[value.name] < len(dims):
            dims[axes[value.name]].dim_value = capacity  # a oneof: the symbol goes


def _inputs(definition: Any) -> list[Any]:
    return [definition.get_input(index) for index in range(definition.num_inputs)]


def _outputs(definition: Any) -> list[Any]:
    return [definition.get_output(index) for index in range(definition.num_outputs)]


def _check_tensors(
    tensorrt: TensorRT, name: str, specs: Sequence[TensorSpec], tensors: Sequence[Any], capacity: int | None
) -> None:
    found = {tensor.name: tensor for tensor in tensors}
    dropped = [spec.name for spec in specs if spec.name not in found]
    if dropped:
        raise BackendError(
            f"{tensorrt.name} leaves {', '.join(dropped)} out of the {name} without an error, so that the engine would "
            f"compute something else; {_AGAIN}"
        )
    unknown = sorted(set(found) - {spec.name for spec in specs})
    if unknown:
        raise BackendError(f"the {name} has {', '.join(unknown)}, which its manifest does not list; {_AGAIN}")
    for spec in specs:
        tensor = found[spec.name]
        axes = tuple(tensor.shape)
        if tensor.dtype.name != _DTYPES[spec.dtype] or not _fits(spec, axes, capacity):
            raise BackendError(
                f"{tensorrt.name} makes {spec.name} of the {name} {tensor.dtype.name} {axes}; "
                f"{_DTYPES[spec.dtype]} {spec.axes} is expected; {_AGAIN}"
            )


def _check_reads(tensorrt: TensorRT, name: str, model: onnx.ModelProto, definition: Any) -> None:
    """Raises if the network does not read what the graph's nodes, or no nodes, read."""
    layers = [definition.get_layer(index) for index in range(definition.num_layers)]
    inputs = [layer.get_input(index) for layer in layers for index in range(layer.num_inputs)]
    read = {tensor.name for tensor in (*inputs, *_outputs(definition)) if tensor is not None}
    made = {layer.get_output(index).name for layer in layers for index in range(layer.num_outputs)}
    unread = {tensor.name for tensor in _inputs(definition)} - read
    if unread:
        raise BackendError(
            f"{tensorrt.name} does not read {', '.join(sorted(unread))} of the {name}, so that the engine would "
            f"compute something else; {_AGAIN}"
        )
    for node in model.graph.node:
        dropped = [value for value in node.input if value in made and value not in read]
        if dropped and node.op_type not in _SHAPE_READERS:
            raise BackendError(
                f"{tensorrt.name} drops {', '.join(dropped)}, an input of {node.name or 'a node'} ({node.op_type}) of "
                f"the {name}, without an error, so that the engine would compute something else; {_AGAIN}"
            )


def _fits(spec: TensorSpec, axes: tuple[int, ...], capacity: int | None) -> bool:
    """Whether a tensor has the axes of the table: free ones may be fixed in the file, the capacity has to be."""
    expected = [capacity if axis == CAPACITY else axis for axis in spec.axes]
    return len(axes) == len(expected) and all(
        isinstance(wanted, str) or wanted == found for wanted, found in zip(expected, axes, strict=True)
    )


def _parser_errors(parser: Any, log: TensorRTLog) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    texts = [f"{error.node_name() or 'the graph'} ({error.node_operator()}): {error.desc()}" for error in errors]
    texts = list(dict.fromkeys(" ".join(text.split()) for text in texts)) or [log.reasons()]
    more = f", and {len(texts) - _MAX_ERRORS} more" if len(texts) > _MAX_ERRORS else ""
    return "; ".join(texts[:_MAX_ERRORS]) + more
