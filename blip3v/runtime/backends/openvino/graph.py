"""The decoder graph rewritten as it opens: its KV cache becomes OpenVINO's state, its attention one fused node a layer.

    qkv --------- GroupQueryAttention -> o_proj      qkv -> split -> RoPE -> q ----------- SDPA -> o_proj
    past.i.key ---^                  `-> present           |     `-> RoPE -> Concat -> k -^  ^
    past.i.value -^                                        `---------------> Concat -> v ----'
                                                     ReadValue -> Gather --^   `-> Assign      mask

OpenVINO's CPU plugin makes one node of ReadValue, Gather, Concat, ScaledDotProductAttention and Assign, and one of the
rotation. Both fusions look for just these forms; ``tests/runtime/test_openvino_graph.py`` sees that they fire.

Letters: t new tokens, S slots, P rotation positions, D width, H heads, G KV heads, K head width, V logits.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
import openvino.opset16 as ops
from openvino.frontend.onnx import ConversionExtension
from openvino.op.util import Variable, VariableInfo

from blip3v.errors import ArtifactError
from blip3v.runtime.backends import FoundTensor, GraphFile, check_io

__all__ = ["StatefulDecoder", "read_model", "read_stateful_decoder"]


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


@dataclass(frozen=True)
class StatefulDecoder:
    """A decoder whose KV cache is OpenVINO's state, for one packed sequence of slots.

    Inputs: ``inputs_embeds`` (1,t,D), ``positions`` int32 (1,t), ``mask`` bool (1,1,t,S) with S the slots after the
    call, ``beam_idx`` int32 (1,), always [0], and ``logits_index`` int64 (B,) in [0,t).
    Output: ``logits`` float32 (B,V).
    """

    model: Any  # openvino.Model
    window: int  # a token sees this many tokens, itself included; -1: all


def read_model(core: Any, graph: GraphFile) -> Any:
    """The model of a file as it is.

    Raises:
        ArtifactError: its inputs or outputs are not those of ``graph.io``.
    """
    model = core.read_model(graph.path)
    inputs = _found(model.inputs, {spec.name for spec in graph.io.inputs})
    outputs = _found(model.outputs, {spec.name for spec in graph.io.outputs})
    check_io(inputs, outputs, graph)
    return model


def read_stateful_decoder(core: Any, graph: GraphFile) -> StatefulDecoder:
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
    _make_stateful(model, found, graph)
    return StatefulDecoder(model, found[0].window)


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
    past = node.get_input(3)
    width = past.get_partial_shape()[3].get_length()
    split = ops.variadic_split(node.get_input(0), -1, [heads * width, kv_heads * width, kv_heads * width])
    window = node.get_attribute("local_window_size", -1)
    found.append(_Attention(split, heads, kv_heads, width, window, node.get_input(7), node.get_input(8)))
    # Of one part each, so that an input does not become an output, whose name it would take.
    presents = [ops.concat([node.get_input(index)], 2).output(0) for index in (3, 4)]
    return [split.output(0), *presents]


def _make_stateful(model: Any, found: list[_Attention], graph: GraphFile) -> None:
    dtype = found[0].split.get_output_element_type(0)
    positions = _parameter("positions", [1, -1], openvino.Type.i32)
    mask = _parameter("mask", [1, 1, -1, -1], openvino.Type.boolean)
    beam = _parameter("beam_idx", [1], openvino.Type.i32)
    rotation = tuple(_rotation(table, positions, dtype) for table in (found[0].cos, found[0].sin))
    variables: list[Any] = []
    sinks: list[Any] = []
    for layer, attention in enumerate(found):
        consumers = attention.split.output(0).get_target_inputs()
        q, k, v = _split_heads(attention)
        caches = []
        for kind, new in (("key", _rotate(k, *rotation)), ("value", v)):
            shape = [1, attention.num_kv_heads, -1, attention.head_dim]
            variables.append(_variable(f"past.{layer}.{kind}", shape, dtype))
            empty = ops.constant(np.zeros((1, attention.num_kv_heads, 0, attention.head_dim), dtype.to_dtype()))
            past = ops.gather(ops.read_value(empty, variables[-1]), beam, np.int32(0))
            present = ops.concat([past, new], 2)
            sinks.append(ops.assign(present, variables[-1]))
            caches.append(_repeat_heads(present, attention))
        mixed = ops.scaled_dot_product_attention(_rotate(q, *rotation), *caches, mask)
        width = attention.num_heads * attention.head_dim
        joined = ops.reshape(ops.transpose(mixed, np.array([0, 2, 1, 3])), np.array([0, 0, width]), True)
        for consumer in consumers:
            consumer.replace_source_output(joined.output(0))
    for result in [result for result in model.get_results() if "logits" not in result.output(0).get_names()]:
        model.remove_result(result)
    _gather_packed(model, graph)
    kept = {"inputs_embeds", "logits_index"}
    for parameter in [each for each in model.get_parameters() if not each.output(0).get_names() & kept]:
        model.remove_parameter(parameter)
    model.add_parameters([positions, mask, beam])
    model.add_variables(variables)
    model.add_sinks(sinks)
    model.reshape({"inputs_embeds": [1, -1, model.input("inputs_embeds").get_partial_shape()[2]]})


def _parameter(name: str, shape: list[int], dtype: Any) -> Any:
    parameter = ops.parameter(shape, dtype, name=name)
    parameter.output(0).set_names({name})
    return parameter


def _variable(name: str, shape: list[int], dtype: Any) -> Any:
    info = VariableInfo()
    info.variable_id = name
    info.data_shape = openvino.PartialShape(shape)
    info.data_type = dtype
    return Variable(info)


def _rotation(table: Any, positions: Any, dtype: Any) -> Any:
    """Rows ``positions`` of the table, (1,1,t,K): the kernel of ONNX Runtime takes half of it, OpenVINO all."""
    half_PK = table.get_node().get_data()
    whole_PK = ops.constant(np.concatenate([half_PK, half_PK], axis=1).astype(dtype.to_dtype()))
    return ops.unsqueeze(ops.gather(whole_PK, positions, np.int32(0)), np.int32(1))


def _split_heads(attention: _Attention) -> list[Any]:
    """Queries, keys and values, each (1,heads,t,K)."""
    target = np.array([0, 0, -1, attention.head_dim])
    parts = (ops.reshape(attention.split.output(index), target, True) for index in range(3))
    return [ops.transpose(part, np.array([0, 2, 1, 3])) for part in parts]


def _rotate(x_1HtK: Any, cos: Any, sin: Any) -> Any:
    half = x_1HtK.get_output_partial_shape(0)[3].get_length() // 2
    # The fusion looks for just this: axis 3 and not -1, and -1 as a factor.
    parts = ops.variadic_split(x_1HtK, np.int64(3), [half, half])
    minus = ops.constant(np.array(-1, x_1HtK.get_output_element_type(0).to_dtype()))
    turned = ops.concat([ops.multiply(parts.output(1), minus), parts.output(0)], -1)
    return ops.add(ops.multiply(x_1HtK, cos), ops.multiply(turned, sin))


def _repeat_heads(cache_1GSK: Any, attention: _Attention) -> Any:
    """(1,H,S,K) from (1,G,S,K); fused too, so that nothing is copied."""
    if attention.num_kv_heads == attention.num_heads:
        return cache_1GSK
    repeats = np.array([1, 1, attention.num_heads // attention.num_kv_heads, 1, 1])
    repeated = ops.broadcast(ops.unsqueeze(cache_1GSK, np.int32(2)), repeats, broadcast_spec="BIDIRECTIONAL")
    return ops.reshape(repeated, np.array([0, attention.num_heads, -1, attention.head_dim]), True)


def _gather_packed(model: Any, graph: GraphFile) -> None:
    """The graph selects one position of each row; packed, it selects several of the only sequence."""
    picks = [node for node in model.get_ordered_ops() if node.get_type_name() == "GatherElements"]
    if len(picks) != 1:
        raise ArtifactError(f"{graph.path} selects its logits {len(picks)} times, expected once; export it again")
    index = model.input("logits_index").get_node()
    picked_1BD = ops.gather(picks[0].input_value(0), index, np.int32(1))
    picks[0].output(0).replace(ops.transpose(picked_1BD, np.array([1, 0, 2])).output(0))
