"""Small rewrites of an exported graph with onnx-ir, each doing one thing.

    torch.onnx                         after the passes
    node_MatMul_14 (x, val_15)         /layers.3/qkv_proj/MatMul (x, layers.3.qkv_proj.weight)
    outputs: tokens, stage.vision ..   outputs: tokens     (stage.vision still names a value inside)
    metadata: paths, stack traces      none

Not here: what the graph computes, which the modules define (``decoder_graph.py``, ``video_encoder_graph.py``).
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir
from onnx_ir.passes import common

import blip3v
from blip3v.bundle.graph_io import GraphIO, TensorSpec
from blip3v.bundle.manifest import WeightCount
from blip3v.errors import ExportError

__all__ = [
    "BLOCK_INT8",
    "PACKED_INT4",
    "TRANSPOSED",
    "clean",
    "fit_io",
    "fold_transposes",
    "hide_outputs",
    "name_by_module",
    "weight_counts",
]

# Ends of the names of initializers that MatMulNBits reads: both uint8 in the graph, signed values plus an offset.
PACKED_INT4 = ".int4_blocks"  # two values a byte
BLOCK_INT8 = ".int8_blocks"
_BLOCK_DTYPES = {PACKED_INT4: "int4", BLOCK_INT8: "int8"}
TRANSPOSED = "blip3v.transposed"  # marks an initializer as the transpose of the parameter that it is named after

_SCOPES = "pkg.torch.onnx.name_scopes"
_FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"
_IR_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "int8": ir.DataType.INT8,
}


def name_by_module(model: ir.Model) -> None:
    """Names nodes after their module and matrices after their parameter, so that reports point at code."""
    used: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        path = _module_path(node) if node.graph is model.graph else "scan"
        name = "/".join(("", *([path] if path else []), node.op_type))
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name] - 1}"
    for value in list(model.graph.initializers.values()):
        _name_matrix(model.graph, value)


def fold_transposes(model: ir.Model) -> None:
    """Stores matrices that are only read transposed as their transposes.

    Torch does so for a matrix with one reader; the steps of an unrolled recurrence all read the same ones.
    """
    for matrix in list(model.graph.initializers.values()):
        readers = [node for node, _ in matrix.uses()]
        if not readers or any(not _swaps_axes(node) for node in readers):
            continue
        assert matrix.const_value is not None, "an initializer has a value"
        turned = matrix.const_value.numpy().T
        matrix.const_value = ir.tensor(turned, dtype=matrix.const_value.dtype, name=matrix.name)
        matrix.shape = ir.Shape(turned.shape)
        matrix.metadata_props[TRANSPOSED] = "1"
        for node in readers:
            ir.convenience.replace_all_uses_with(node.outputs[0], matrix)
            model.graph.remove(node, safe=True)


def _swaps_axes(node: ir.Node) -> bool:
    perm = node.attributes.get_ints("perm", ())
    return node.op_type == "Transpose" and list(perm) == [1, 0] and not node.outputs[0].is_graph_output()


def hide_outputs(model: ir.Model, prefix: str) -> None:
    """Removes the graph outputs whose names begin with ``prefix``; they remain values inside the graph."""
    kept = [value for value in model.graph.outputs if not (value.name or "").startswith(prefix)]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)


def clean(model: ir.Model) -> None:
    """Drops what nothing reads: dead nodes, metadata and doc strings, and with them every path of this machine."""
    sequence = ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    )
    sequence(model)
    model.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    model.producer_name, model.producer_version = "blip3v", blip3v.__version__
    model.graph.name = None


def fit_io(model: ir.Model, io: GraphIO) -> None:
    """Checks inputs and outputs against the table, and names their free axes as it does.

    Args:
        model: the graph.
        io: the table's rows, with resolved dtypes.

    Raises:
        ExportError: another count, order, dtype or rank, or a fixed axis that should be free.
    """
    graph = model.graph
    for side, specs, values in (("input", io.inputs, graph.inputs), ("output", io.outputs, graph.outputs)):
        found, wanted = [value.name for value in values], [spec.name for spec in specs]
        if found != wanted:
            raise ExportError(f"the exported graph's {side}s are {found}; expected {wanted}; report this as a bug")
        for spec, value in zip(specs, values, strict=True):
            _fit(spec, value, may_be_fixed=side == "output")


def weight_counts(model: ir.Model) -> dict[str, WeightCount]:
    """Counts the stored weights by dtype, the largest share first: the precision histogram."""
    tensors: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None, "an initializer has a value"
        packed = (dtype for end, dtype in _BLOCK_DTYPES.items() if str(value.name).endswith(end))
        name = next(packed, tensor.dtype.name.lower())
        tensors[name] += 1
        elements[name] += tensor.size * 2 if tensor.dtype == ir.DataType.UINT8 and name == "int4" else tensor.size
        sizes[name] += tensor.nbytes
    names = {"float": "float32"}
    return {
        names.get(name, name): WeightCount(
            num_tensors=tensors[name], num_elements=elements[name], size_bytes=sizes[name]
        )
        for name, _ in sizes.most_common()
    }


def _module_path(node: ir.Node) -> str:
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    # The last scope is torch's own name for the call; the first is the root or one of torch's markers.
    return scopes[-2] if len(scopes) > 2 else ""


def _name_matrix(graph: ir.Graph, matrix: ir.Value) -> None:
    """Torch transposes the matrix of a linear layer, and records which parameter it was."""
    sources = ast.literal_eval(matrix.metadata_props.get(_FOLDED_FROM, "[]"))
    in_products = all(node.op_type == "MatMul" and index == 1 for node, index in matrix.uses())
    if len(sources) != 1 or not in_products:
        return
    known = graph.initializers.get(sources[0])
    if known is not None:
        if TRANSPOSED in known.metadata_props:  # of another step of an unrolled recurrence
            ir.convenience.replace_all_uses_with(matrix, known)
            del graph.initializers[str(matrix.name)]
        return
    matrix.name = sources[0]
    matrix.metadata_props[TRANSPOSED] = "1"


def _fit(spec: TensorSpec, value: ir.Value, *, may_be_fixed: bool) -> None:
    dtype = _IR_DTYPES[spec.dtype]
    axes = [] if value.shape is None else list(value.shape.dims)
    if value.dtype != dtype or len(axes) != len(spec.axes):
        raise ExportError(f"{spec.name} was exported as {value.dtype} {axes}; expected {dtype} {list(spec.axes)}")
    for wanted, axis in zip(spec.axes, axes, strict=True):
        fixed = isinstance(axis, int)
        if (fixed and isinstance(wanted, str) and not may_be_fixed) or (isinstance(wanted, int) and axis != wanted):
            raise ExportError(f"{spec.name} was exported with the axes {axes}; expected {list(spec.axes)}")
    value.shape = ir.Shape(spec.axes)
