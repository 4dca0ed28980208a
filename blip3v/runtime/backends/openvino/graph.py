"""The decoder graph rewritten as it opens: attention in OpenVINO's operators, new keys and values alone as outputs.

    qkv --------- GroupQueryAttention -> o_proj      qkv -> split -> RoPE -> q -> MatMul --> Softmax -> MatMul -> o_proj
    past.i.key ---^                  `-> present           |     `-> RoPE -> new key -^  ^                ^
    past.i.value -^                                        `---------------> new value --|----------------|
                                                     past.i.key, mask -------------------'  past.i.value -'

The scores against the cache and against the new keys are two products, joined for one softmax: nothing of the size of
the cache is copied. With a cache in int8 the products are of integers: its scales go into the queries and into the
mixed values. (OpenVINO's fused attention with the cache as its state computes several new tokens after earlier
ones like single ones, about 8 times slower, and its state is left half-written where a run is interrupted.)

Letters: B rows, t new tokens, S cache capacity, P rotation positions, D width, H heads, G KV heads, K head width,
V logits.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
import openvino.opset16 as ops
from numpy.typing import NDArray
from openvino.frontend.onnx import ConversionExtension

from blip3v.bundle.graph_io import past_key, past_value
from blip3v.errors import ArtifactError
from blip3v.runtime.backends import FoundTensor, GraphFile, check_io
from blip3v.runtime.engine_errors import path_for_engine

__all__ = ["RewrittenDecoder", "compute_in_fp32", "read_decoder", "read_model"]


@dataclass(frozen=True)
class _Attention:
    """One GroupQueryAttention node, with the split of its packed input, whose first part stands for its result."""

    split: Any  # node with outputs q (.., H*K), k (.., G*K), v (.., G*K)
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int  # a token sees this many tokens, itself included; -1: all
    cos: Any  # Output of a Constant (P, K / 2)
    sin: Any
    scales: tuple[NDArray[np.float32], NDArray[np.float32]] | None  # of int8 keys and values, (1,G,1,K)


@dataclass(frozen=True)
class RewrittenDecoder:
    """A decoder that reads a cache and outputs what has to be written to it.

    Inputs: ``inputs_embeds`` (1,B*t,D), ``positions`` int32 (B,t), ``mask`` (B,1,t,S+t), added to the scores,
    ``logits_index`` int64 (N,) in [0,B*t), ``past.i.key`` and ``past.i.value`` (B,G,S,K), S may be 0.
    Outputs: ``logits`` (1,N,V), or (N,V) if the file has the form of earlier versions, then new key and new value
    (B,G,t,K) of each layer. Keys and values are int8 if those of the file are; all else is float32.
    """

    model: Any  # openvino.Model
    window: int  # a token sees this many tokens, itself included; -1: all


def read_model(core: Any, graph: GraphFile) -> Any:
    """The model of a file as it is.

    Raises:
        ArtifactError: its inputs or outputs are not those of ``graph.io``.
    """
    model = core.read_model(path_for_engine(graph.path))
    inputs = _found(model.inputs, {spec.name for spec in graph.io.inputs})
    outputs = _found(model.outputs, {spec.name for spec in graph.io.outputs})
    check_io(inputs, outputs, graph)
    return model


def read_decoder(core: Any, graph: GraphFile) -> RewrittenDecoder:
    """The decoder of a file, rewritten.

    Raises:
        ArtifactError: its inputs or outputs are not those of ``graph.io``, or its attention is not GroupQueryAttention.
    """
    found: list[_Attention] = []
    core.add_extension(
        ConversionExtension("GroupQueryAttention", "com.microsoft", lambda node: _keep_attention(node, found))
    )
    model = read_model(core, graph)
    if not found:
        raise ArtifactError(f"{graph.path} has no GroupQueryAttention; export it again")
    compute_in_fp32(model)
    _rewrite(model, found)
    return RewrittenDecoder(model, found[0].window)


def compute_in_fp32(model: Any) -> None:
    """Makes everything fp32, inputs and outputs too, but the weights of matrix products: they stay fp16 if they are.

    OpenVINO keeps an fp16 constant if a conversion follows that is marked as a decompression; the CPU plugin then
    multiplies fp32 by fp16. Otherwise it would keep two fp32 copies of it, four times the file.
    """
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Parameter" and node.get_element_type() == openvino.Type.f16:
            node.set_element_type(openvino.Type.f32)
        if kind == "Convert" and node.get_output_element_type(0) == openvino.Type.f16:
            node.set_attribute("destination_type", "f32")
        if kind == "Constant" and node.get_element_type() == openvino.Type.f16:
            consumers = node.output(0).get_target_inputs()
            if all(consumer.get_node().get_type_name() == "MatMul" for consumer in consumers):
                wide = ops.convert(node, "f32")
                wide.get_rt_info()["decompression_0"] = ""
            else:
                wide = ops.constant(node.get_data().astype(np.float32))
            for consumer in consumers:
                consumer.replace_source_output(wide.output(0))
    model.validate_nodes_and_infer_types()


def _found(ports: Sequence[Any], wanted: Set[str]) -> list[FoundTensor]:
    """Inputs or outputs of a model; a free axis is None. A tensor may have several names."""
    names = [next(iter(wanted & port.get_names()), port.any_name) for port in ports]
    return [FoundTensor(name, _dtype_name(port), _axes(port)) for name, port in zip(names, ports, strict=True)]


def _dtype_name(port: Any) -> str:
    dtype = port.get_element_type()
    return str(dtype) if dtype.is_dynamic() else str(np.dtype(dtype.to_dtype()))


def _axes(port: Any) -> list[int | None]:
    return [axis.get_length() if axis.is_static else None for axis in port.get_partial_shape()]


def _keep_attention(node: Any, found: list[_Attention]) -> list[Any]:
    # New inputs cannot be made while the model is read: the queries stand for the result until it is.
    heads, kv_heads = node.get_attribute("num_heads"), node.get_attribute("kv_num_heads")
    width = node.get_input(3).get_partial_shape()[3].get_length()
    split = ops.variadic_split(node.get_input(0), -1, [heads * width, kv_heads * width, kv_heads * width])
    window = node.get_attribute("local_window_size", -1)
    in_int8 = node.get_attribute("kv_cache_bit_width", 0) == 8
    found_scales = [_constant(node.get_input(i)).reshape(1, kv_heads, 1, width) for i in (12, 13)] if in_int8 else []
    scales = (found_scales[0], found_scales[1]) if in_int8 else None
    found.append(_Attention(split, heads, kv_heads, width, window, node.get_input(7), node.get_input(8), scales))
    # Of one part each, so that an input does not become an output, whose name it would take.
    presents = [ops.concat([node.get_input(index)], 2).output(0) for index in (3, 4)]
    return [split.output(0), *presents]


def _constant(output: Any) -> NDArray[Any]:
    data: NDArray[Any] = output.get_node().get_data()
    return data


def _rewrite(model: Any, found: list[_Attention]) -> None:
    inputs = {name: port.get_node() for port in model.inputs for name in port.get_names()}
    positions = _parameter("positions", [-1, -1], openvino.Type.i32)
    mask = _parameter("mask", [-1, 1, -1, -1], openvino.Type.f32)
    rotation = tuple(_rotation(table, positions) for table in (found[0].cos, found[0].sin))
    shape_Bt = ops.shape_of(positions)
    kept = [inputs["inputs_embeds"], inputs["logits_index"]]
    written: list[Any] = []
    for layer, attention in enumerate(found):
        consumers = attention.split.output(0).get_target_inputs()
        past = inputs[past_key(layer)], inputs[past_value(layer)]
        q, k, v = _split_heads(attention, shape_Bt)
        q, k = _rotate(q, *rotation), _rotate(k, *rotation)
        new = [k, v]
        if attention.scales is not None:
            new = [_in_steps(x, scale) for x, scale in zip(new, attention.scales, strict=True)]
        joined = _attend(q, new[0], new[1], past[0], past[1], mask, attention)
        for consumer in consumers:
            consumer.replace_source_output(joined.output(0))
        kept += past
        written += [ops.result(each if attention.scales is None else ops.convert(each, "i8")) for each in new]
    for result in [result for result in model.get_results() if "logits" not in result.output(0).get_names()]:
        model.remove_result(result)
    names = {name for parameter in kept for name in parameter.output(0).get_names()}
    for parameter in [each for each in model.get_parameters() if not each.output(0).get_names() & names]:
        model.remove_parameter(parameter)
    model.add_parameters([positions, mask])
    model.add_results(written)
    _gather_flat(model)
    # One flat axis of tokens: rows of different lengths are neighbours on it.
    model.reshape({"inputs_embeds": [1, -1, model.input("inputs_embeds").get_partial_shape()[2]]})


def _gather_flat(model: Any) -> None:
    """The graph selects positions of each row; with all rows in one, it selects them of that."""
    (pick,) = (node for node in model.get_ordered_ops() if node.get_type_name() == "GatherElements")
    index = model.input("logits_index").get_node()
    one_position = index.get_partial_shape().rank.get_length() == 1
    index.set_partial_shape(openvino.PartialShape([-1]))
    picked = ops.gather(pick.input_value(0), index, np.int32(1))  # (1,N,D)
    pick.output(0).replace((ops.transpose(picked, np.array([1, 0, 2])) if one_position else picked).output(0))


def _parameter(name: str, shape: list[int], dtype: Any) -> Any:
    parameter = ops.parameter(shape, dtype, name=name)
    parameter.output(0).set_names({name})
    return parameter


def _rotation(table: Any, positions: Any) -> Any:
    """Rows ``positions`` of the table, (B,1,t,K): the kernel of ONNX Runtime takes half of it, OpenVINO all."""
    half_PK = table.get_node().get_data()
    whole_PK = ops.constant(np.concatenate([half_PK, half_PK], axis=1).astype(np.float32))
    return ops.unsqueeze(ops.gather(whole_PK, positions, np.int32(0)), np.int32(1))


def _split_heads(attention: _Attention, shape_Bt: Any) -> list[Any]:
    """Queries, keys and values, each (B,heads,t,K)."""
    target = ops.concat([shape_Bt, np.array([-1, attention.head_dim])], 0)
    parts = (ops.reshape(attention.split.output(index), target, False) for index in range(3))
    return [ops.transpose(part, np.array([0, 2, 1, 3])) for part in parts]


def _rotate(x_BHtK: Any, cos: Any, sin: Any) -> Any:
    half = x_BHtK.get_output_partial_shape(0)[3].get_length() // 2
    # OpenVINO makes one node of just this form: axis 3 and not -1, and -1 as a factor.
    parts = ops.variadic_split(x_BHtK, np.int64(3), [half, half])
    turned = ops.concat([ops.multiply(parts.output(1), np.float32(-1)), parts.output(0)], -1)
    return ops.add(ops.multiply(x_BHtK, cos), ops.multiply(turned, sin))


def _attend(q: Any, k: Any, v: Any, past_k: Any, past_v: Any, mask: Any, attention: _Attention) -> Any:
    """Mixed values (1,B*t,H*K); keys and values of a cache in int8 are integers, the new ones as floats."""
    heads, kv_heads, width = attention.num_heads, attention.num_kv_heads, attention.head_dim
    # The queries that share a KV head are its rows: (B,G,H/G*t,K).
    q = _reheaded(ops.multiply(q, np.float32(width**-0.5)), kv_heads, width)
    if attention.scales is not None:
        q = ops.multiply(q, attention.scales[0])
        past_k, past_v = ops.convert(past_k, "f32"), ops.convert(past_v, "f32")
    scores = ops.concat([ops.matmul(q, past_k, False, True), ops.matmul(q, k, False, True)], 3)
    weights = _reheaded(ops.softmax(ops.add(_reheaded(scores, heads), mask), -1), kv_heads)
    capacity = ops.slice(ops.shape_of(past_k), np.array([2]), np.array([3]), np.array([1]))
    parts = ops.variadic_split(weights, np.int64(3), ops.concat([capacity, np.array([-1])], 0))
    mixed = ops.add(ops.matmul(parts.output(0), past_v, False, False), ops.matmul(parts.output(1), v, False, False))
    if attention.scales is not None:
        mixed = ops.multiply(mixed, attention.scales[1])
    mixed_BtHK = ops.transpose(_reheaded(mixed, heads, width), np.array([0, 2, 1, 3]))
    return ops.reshape(mixed_BtHK, np.array([1, -1, heads * width]), False)


def _in_steps(x: Any, scale: NDArray[np.float32]) -> Any:
    """The integers that stand for ``x`` in a cache, as floats."""
    return ops.clamp(ops.round(ops.divide(x, scale), "half_to_even"), -128.0, 127.0)


def _reheaded(x: Any, heads: int, width: int = 0) -> Any:
    """(B,heads,n,width) from (B,m,o,width); 0: the width that it has."""
    return ops.reshape(x, np.array([0, heads, -1, width]), True)
