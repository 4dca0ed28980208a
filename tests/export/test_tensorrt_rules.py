"""TensorRT's rules of quantisation, each broken once in a graph of one product.

NVIDIA's own parser and builder (TensorRT-RTX 1.7.1, on a machine without a GPU) take every graph of ``GOOD``. Of those
of ``BAD`` they refuse zero points other than 0, scales that are not above 0, uint8 weights, a shorter last block, and
all operators but QuantizeLinear of ONNX Runtime. They take the rest without a word, even uint8 activations and
infinite scales: that is what the check is for. ConvInteger, MatMulInteger and QLinearMatMul fail at their uint8 inputs
already; MatMulNBits fails at its blocks of 16, and that parser has a form of it for blocks of 32, 64 and 128.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blip3v.export.tensorrt_rules import RULES, check_tensorrt_rules

K, N = 64, 32  # inputs and outputs of the weight
FLOAT, INT8, UINT8, INT4 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4


class Graph:
    """A graph under construction: x (batch, K) to y, with one quantised product."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", FLOAT, [8, K])]

    def constant(self, name: str, values: Any, dtype: int = FLOAT) -> str:
        array = np.asarray(values)
        if dtype in (INT4, TensorProto.UINT4):
            tensor = helper.make_tensor(name, dtype, array.shape, array.ravel().tolist())
        else:
            tensor = numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(dtype)), name)
        self.constants.append(tensor)
        return name

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"/{output}/{kind}", domain=domain, **attributes))
        return output

    def save(self, path: Path) -> Path:
        outputs = [helper.make_tensor_value_info("y", FLOAT, None)]
        graph = helper.make_graph(self.nodes, "g", self.inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path


def activation(
    graph: Graph,
    *,
    scale: Any = 0.05,
    back: Any = None,
    zero: int | None = 0,
    dtype: int = INT8,
    known: bool = True,
) -> str:
    """x through a pair; ``known``: whether its scale is a constant."""
    one = graph.constant("x_scale", scale) if known else run_time_scale(graph)
    two = one if back is None else graph.constant("x_scale_back", back)
    points = [] if zero is None else [graph.constant("x_zero", np.full(np.shape(scale), zero), dtype)]
    graph.node("QuantizeLinear", ["x", one, *points], "x_q", axis=1)
    return graph.node("DequantizeLinear", ["x_q", two, *points], "x_dq", axis=1)


def run_time_scale(graph: Graph) -> str:
    graph.inputs.append(helper.make_tensor_value_info("x_scale", FLOAT, []))
    return "x_scale"


def weight(
    graph: Graph,
    *,
    scale: Any = None,
    shape: tuple[int, int] = (K, N),
    dtype: int = INT8,
    axis: int = 1,
    block: int = 0,
    zero: int | None = None,
) -> str:
    """A weight through DequantizeLinear."""
    values = np.random.default_rng(0).integers(0, 7, shape)
    scales = np.full(shape[axis], 0.01) if scale is None else scale
    points = [] if zero is None else [graph.constant("w_zero", np.full(np.shape(scales), zero), dtype)]
    names = [graph.constant("w", values, dtype), graph.constant("w_scale", scales), *points]
    attributes: dict[str, Any] = {"block_size": block} if block else {}
    return graph.node("DequantizeLinear", names, "w_dq", axis=axis, **attributes)


def product(x: dict[str, Any] | None, w: dict[str, Any]) -> Graph:
    """x @ w, with x in floats if it is None."""
    graph = Graph()
    left = "x" if x is None else activation(graph, **x)
    graph.node("MatMul", [left, weight(graph, **w)], "y")
    return graph


def blocks(size: int, count: int | None = None) -> dict[str, Any]:
    count = K // size if count is None else count
    return {"dtype": INT4, "axis": 0, "block": size, "scale": np.full((count, N), 0.1)}


def gemm(**w: Any) -> Graph:
    graph = Graph()
    graph.node("Gemm", [activation(graph), weight(graph, shape=(N, K), **w)], "y", transB=1)
    return graph


GOOD = {
    "int8": lambda: product({}, {}),
    "int8 with zero points": lambda: product({"zero": 0}, {"zero": 0}),
    "int8, one scale": lambda: product({}, {"scale": 0.01}),
    "int8 weight only": lambda: product(None, {}),
    "int8 in Gemm": lambda: gemm(axis=0),
    "int4 in blocks": lambda: product(None, blocks(16)),
    "int8 in blocks, weight only": lambda: product(None, {**blocks(16), "dtype": INT8}),
    "int4, a scale for each output": lambda: product(None, {"dtype": INT4}),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_tensorrt_takes_passes(name: str, tmp_path: Path) -> None:
    report = check_tensorrt_rules(GOOD[name]().save(tmp_path / "graph.onnx"))
    assert report.violations == ()
    assert report.passed


def operator(kind: str, domain: str = "") -> Graph:
    graph = Graph()
    graph.constant("w8", np.ones((K, N)), UINT8)
    if kind == "DynamicQuantizeLinear":
        graph.nodes.append(helper.make_node(kind, ["x"], ["x8", "s", "z"], "/x/DynamicQuantizeLinear"))
        graph.node("Cast", ["x8"], "y", to=FLOAT)
    elif kind == "MatMulInteger":
        graph.node("Cast", ["x"], "x8", to=UINT8)
        graph.node(kind, ["x8", "w8"], "y32")
        graph.node("Cast", ["y32"], "y", to=FLOAT)
    elif kind == "QLinearMatMul":
        names = [graph.constant("s", 0.1), graph.constant("z", 0, UINT8)]
        graph.node("Cast", ["x"], "x8", to=UINT8)
        graph.node(kind, ["x8", *names, "w8", *names, *names], "y8")
        graph.node("Cast", ["y8"], "y", to=FLOAT)
    elif kind == "ConvInteger":
        graph.constant("k", np.ones((1, 1, 3)), UINT8)
        graph.node("Cast", ["x"], "x8", to=UINT8)
        graph.node("Unsqueeze", ["x8", graph.constant("at", [1], TensorProto.INT64)], "x3")
        graph.node(kind, ["x3", "k"], "y32")
        graph.node("Cast", ["y32"], "y", to=FLOAT)
    elif kind == "MatMulNBits":
        graph.constant("packed", np.ones((N, K // 16, 8)), UINT8)
        graph.constant("s", np.full(N * K // 16, 0.1))
        graph.node(kind, ["x", "packed", "s"], "y", domain=domain, K=K, N=N, bits=4, block_size=16)
    else:
        names = [graph.constant("s", 0.1), graph.constant("z", 0, INT8)]
        graph.node(kind, ["x", *names], "x8", domain=domain)
        graph.node("Cast", ["x8"], "y", to=FLOAT)
    return graph


def dequantized_then(kind: str) -> Graph:
    graph = Graph()
    graph.node(kind, [weight(graph, shape=(N, K), axis=0)], "w_t")
    graph.node("MatMul", ["x", "w_t"], "y")
    return graph


def quantized_then_cast() -> Graph:
    graph = Graph()
    names = [graph.constant("s", 0.1), graph.constant("z", 0, INT8)]
    graph.node("QuantizeLinear", ["x", *names], "x8")
    graph.node("Cast", ["x8"], "y", to=FLOAT)
    return graph


BAD = {
    "DynamicQuantizeLinear": ("operator", lambda: operator("DynamicQuantizeLinear")),
    "MatMulInteger": ("operator", lambda: operator("MatMulInteger")),
    "QLinearMatMul": ("operator", lambda: operator("QLinearMatMul")),
    "ConvInteger": ("operator", lambda: operator("ConvInteger")),
    "MatMulNBits": ("operator", lambda: operator("MatMulNBits", "com.microsoft")),
    "QuantizeLinear of ONNX Runtime": ("operator", lambda: operator("QuantizeLinear", "com.microsoft")),
    "uint8 activation": ("type", lambda: product({"dtype": UINT8}, {})),
    "uint8 by default": ("type", lambda: product({"zero": None}, {})),
    "uint8 weight": ("type", lambda: product({}, {"dtype": UINT8})),
    "int4 activation": ("type", lambda: product({"dtype": INT4}, {})),
    "shifted activation": ("symmetric", lambda: product({"zero": 3}, {})),
    "shifted weight": ("symmetric", lambda: product({}, {"zero": 3})),
    "scale of 0": ("scale", lambda: product({"scale": 0.0}, {})),
    "negative scale": ("scale", lambda: product({}, {"scale": np.linspace(-1, 1, N)})),
    "infinite scale": ("scale", lambda: product({}, {"scale": np.full(N, np.inf)})),
    "computed scale": ("scale", lambda: product({"known": False}, {})),
    "activation by channel": ("activation", lambda: product({"scale": np.full(K, 0.05)}, {})),
    "weight by input": ("weight", lambda: product({}, {"axis": 0})),
    "weight by input in Gemm": ("weight", lambda: gemm(axis=1)),
    "int8 in blocks": ("weight", lambda: product({}, {**blocks(16), "dtype": INT8})),
    "int4 by input": ("weight", lambda: product(None, {"dtype": INT4, "axis": 0})),
    "blocks along the outputs": (
        "block",
        lambda: product(None, {"dtype": INT4, "axis": 1, "block": 16, "scale": np.full((K, N // 16), 0.1)}),
    ),
    "a last block that is shorter": ("block", lambda: product(None, blocks(24, 3))),
    "int4 with an int8 activation": ("weight only", lambda: product({}, blocks(16))),
    "another scale back": ("pair", lambda: product({"back": 0.06}, {})),
    "no way back": ("pair", quantized_then_cast),
    "transposed after it": ("placement", lambda: dequantized_then("Transpose")),
}


@pytest.mark.parametrize("name", BAD)
def test_each_rule_is_found_broken_and_its_node_is_named(name: str, tmp_path: Path) -> None:
    rule, make = BAD[name]
    graph = make()
    report = check_tensorrt_rules(graph.save(tmp_path / "graph.onnx"))
    assert not report.passed
    assert {violation.rule for violation in report.violations} == {rule}
    for violation in report.violations:
        assert violation.node in {node.name for node in graph.nodes}
        assert f"{violation.node}: " in str(violation)
        assert RULES[rule].source in str(violation)


def test_every_rule_is_broken_once() -> None:
    assert {rule for rule, _ in BAD.values()} == set(RULES)


def test_operators_of_other_domains_are_counted_apart(tmp_path: Path) -> None:
    """Today's decoder is for ONNX Runtime: its attention is no fault of the quantisation."""
    graph = product({}, {})
    graph.node("GroupQueryAttention", ["y"], "z", domain="com.microsoft")
    report = check_tensorrt_rules(graph.save(tmp_path / "graph.onnx"))
    assert report.passed
    assert report.other_operators == {"com.microsoft::GroupQueryAttention": 1}


def test_weights_are_not_read(tmp_path: Path) -> None:
    """At full size they are gigabytes: the check works without the file that holds them."""
    path = product({}, {}).save(tmp_path / "graph.onnx")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=K * N)
    (tmp_path / "weights.data").unlink()
    assert check_tensorrt_rules(path).passed
