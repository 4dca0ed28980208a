"""Graphs of a node or a few in ONNX's text form: one for each operator of TensorRT's table, and ones that break a rule.

Each is ``(inputs) => (outputs) { nodes }``; the names of symbolic sizes are those of ``SIZES``.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

SIZES = {"B": 2, "T": 3}  # what a symbolic size is when an engine is built


def graph(text: str, opset: int = 24) -> onnx.ModelProto:
    """The model of a graph in text form."""
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    return onnx.parser.parse_model(f"{head} g {text}")


def _each(text: str, *operators: str) -> dict[str, str]:
    return {operator: text.replace("OP", operator) for operator in operators}


_AXIS = "a = Constant<value_ints = [1]>()"
_ATTENTION = "float16[B,4,T,32] q, float16[B,4,64,32] k, float16[B,4,64,32] v"

GRAPHS = {
    **_each(
        "(float16[B,4] x, float16[B,4] z) => (float16[B,4] y) { y = OP(x, z) }",
        *("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"),
    ),
    **_each(
        "(int64[B,4] x, int64[B,4] z) => (bool[B,4] y) { y = OP(x, z) }",
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
    ),
    **_each(
        "(float16[B,4] x) => (float16[B,4] y) { y = OP(x) }",
        *("Abs", "Neg", "Relu", "Ceil", "Cos", "Erf", "Exp", "Floor", "Gelu", "Log", "Reciprocal", "Round"),
        *("Sigmoid", "Sin", "Softmax", "Softplus", "Sqrt", "Tanh", "Flatten", "Identity", "Trilu"),
    ),
    **_each("(float16[B,4] x) => (bool[B,4] y) { y = OP(x) }", "IsInf", "IsNaN"),
    **_each("(bool[B,4] x, bool[B,4] z) => (bool[B,4] y) { y = OP(x, z) }", "And", "Or", "Xor"),
    **_each(
        f"(float16[B,4] x) => (float16[B,1] y) {{ {_AXIS} y = OP(x, a) }}",
        *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
    ),
    "ArgMax": "(float16[B,4] x) => (int64[B,1] y) { y = ArgMax<axis = 1>(x) }",
    "Attention": f"({_ATTENTION}, bool[B,1,T,64] m) => (float16[B,4,T,32] y) {{ y = Attention(q, k, v, m) }}",
    "Cast": "(float16[B,4] x) => (float[B,4] y) { y = Cast<to = 1>(x) }",
    "Clip": "(float16[B,4] x, float16 a, float16 b) => (float16[B,4] y) { y = Clip(x, a, b) }",
    "Concat": "(float16[B,4] x, float16[B,4] z) => (float16[B,8] y) { y = Concat<axis = 1>(x, z) }",
    "Constant": "(float[B,4] x) => (float[B,4] y) { c = Constant<value_float = 0.5>() y = Mul(x, c) }",
    "ConstantOfShape": "(float[B,4] x) => (float[B,4] y) { s = Shape(x) c = ConstantOfShape(s) y = Add(x, c) }",
    "Conv": "(float16[B,3,8,8] x, float16[4,3,8,8] w, float16[4] b) => (float16[B,4,1,1] y) { y = Conv(x, w, b) }",
    "CumSum": "(float16[B,4] x) => (float16[B,4] y) { a = Constant<value_int = 1>() y = CumSum(x, a) }",
    "Expand": "(float16[B,1] x, float16[B,4] z) => (float16[B,4] y) { s = Shape(z) y = Expand(x, s) }",
    "Gather": "(float16[8,4] x, int64[B] i) => (float16[B,4] y) { y = Gather(x, i) }",
    "GatherElements": "(float16[B,4] x, int64[B,2] i) => (float16[B,2] y) { y = GatherElements<axis = 1>(x, i) }",
    "GatherND": "(float16[8,4] x, int64[B,1] i) => (float16[B,4] y) { y = GatherND(x, i) }",
    "Gemm": "(float16[B,4] x, float16[8,4] w, float16[8] b) => (float16[B,8] y) { y = Gemm<transB = 1>(x, w, b) }",
    "LayerNormalization": (
        "(float16[B,4] x, float16[4] w, float16[4] b) => (float16[B,4] y) { y = LayerNormalization(x, w, b) }"
    ),
    "MatMul": "(float16[B,4] x, float16[4,8] w) => (float16[B,8] y) { y = MatMul(x, w) }",
    "Mod": "(int64[B,4] x, int64[B,4] z) => (int64[B,4] y) { y = Mod(x, z) }",
    "Not": "(bool[B,4] x) => (bool[B,4] y) { y = Not(x) }",
    "QuantizeLinear": (
        "(float[B,64] x, float[64,32] w) => (float[B,32] y) <float s = {0.05}, int8 z = {0}>"
        " { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w) }"
    ),
    "Range": (
        "(float16[B,4] x) => (int64[n] y) <int64 zero = {0}, int64 one = {1}>"
        " { s = Shape<start = 0, end = 1>(x) c = Squeeze(s) y = Range(zero, c, one) }"
    ),
    "RMSNormalization": "(float16[B,4] x, float16[4] w) => (float16[B,4] y) { y = RMSNormalization(x, w) }",
    "Reshape": "(float16[B,4] x) => (float16[n,2] y) { s = Constant<value_ints = [-1, 2]>() y = Reshape(x, s) }",
    "RotaryEmbedding": (
        "(float16[B,4,T,32] x, float16[64,16] c, float16[64,16] s, int64[B,T] i) => (float16[B,4,T,32] y)"
        " { y = RotaryEmbedding(x, c, s, i) }"
    ),
    "ScatterElements": (
        "(float16[B,4] x, int64[B,2] i, float16[B,2] u) => (float16[B,4] y) { y = ScatterElements<axis = 1>(x, i, u) }"
    ),
    "ScatterND": "(float16[8,4] x, int64[B,1] i, float16[B,4] u) => (float16[8,4] y) { y = ScatterND(x, i, u) }",
    "Shape": "(float16[B,4] x) => (int64[2] y) { y = Shape(x) }",
    "Size": "(float16[B,4] x) => (int64 y) { y = Size(x) }",
    "Slice": (
        "(float16[B,4] x) => (float16[B,2] y) <int64[1] first = {1}, int64[1] last = {3}>"
        " { y = Slice(x, first, last, first, first) }"
    ),
    "Split": "(float16[B,4] x) => (float16[B,2] y, float16[B,2] z) { y, z = Split<axis = 1, num_outputs = 2>(x) }",
    "Squeeze": f"(float16[B,1] x) => (float16[B] y) {{ {_AXIS} y = Squeeze(x, a) }}",
    "TensorScatter": (
        "(float16[B,4,64,32] p, float16[B,4,T,32] u, int64[B] w) => (float16[B,4,64,32] y)"
        " { y = TensorScatter(p, u, w) }"
    ),
    "Tile": "(float16[B,4] x) => (float16[B,8] y) { r = Constant<value_ints = [1, 2]>() y = Tile(x, r) }",
    "Transpose": "(float16[B,4] x) => (float16[4,B] y) { y = Transpose(x) }",
    "Unsqueeze": f"(float16[B,4] x) => (float16[B,1,4] y) {{ {_AXIS} y = Unsqueeze(x, a) }}",
    "Where": "(bool[B,4] c, float16[B,4] x, float16[B,4] z) => (float16[B,4] y) { y = Where(c, x, z) }",
}
GRAPHS["DequantizeLinear"] = GRAPHS["QuantizeLinear"]


@dataclass(frozen=True)
class Broken:
    """A graph that breaks one rule."""

    rule: str
    made_of: str  # what TensorRT-RTX 1.7.1 makes of it: "an engine", "a network" that does not build, or "nothing"
    text: str
    opset: int = 24


_SELF = "float16[B,4,T,32] q, float16[B,4,T,32] k, float16[B,4,T,32] v"
_SELF_3 = _SELF.replace("T", "3")
_CACHE = "(float16[B,4,64,32] p, float16[B,4,T,32] u, int64[B] w) => (float16[B,4,64,32] y)"
_BODY = (
    "(float16[2,4,8,8] h, float16[6,2,4,8,8] xs) => (float16[2,4,8,8] y) { y = Scan<num_scan_inputs = 1, body = b"
    " (float16[2,4,8,8] a, float16[2,4,8,8] c) => (float16[2,4,8,8] d)"
    " { t = Attention(a, c, c) d = Add(t, a) }>(h, xs) }"
)
_MIXED = "(float16[4,4] x, float[4,4] z) => (float16[4,4] y)"

BROKEN = {
    "valid lengths": Broken(
        "ignored",
        "an engine",
        f"({_ATTENTION}, int64[B] n) => (float16[B,4,T,32] y) {{ y = Attention(q, k, v, , , , n) }}",
    ),
    "keys and values in and out": Broken(
        "ignored",
        "nothing",
        f"({_SELF}) => (float16[B,4,T,32] y, float16[B,4,n,32] a, float16[B,4,n,32] b)"
        " { y, a, b = Attention(q, k, v, , k, v) }",
    ),
    "scores as an output": Broken(
        "ignored",
        "nothing",
        f"({_SELF}) => (float16[B,4,T,32] y, float16[B,4,T,T] s) {{ y, , , s = Attention(q, k, v) }}",
    ),
    "mean as an output": Broken(
        "ignored",
        "nothing",
        "(float16[B,4] x, float16[4] w) => (float16[B,4] y, float[B,1] m) { y, m = LayerNormalization(x, w) }",
    ),
    "softcap": Broken(
        "attribute", "nothing", f"({_SELF}) => (float16[B,4,T,32] y) {{ y = Attention<softcap = 30.0>(q, k, v) }}"
    ),
    "a precision of the softmax": Broken(
        "attribute",
        "nothing",
        f"({_SELF}) => (float16[B,4,T,32] y) {{ y = Attention<softmax_precision = 1>(q, k, v) }}",
    ),
    "an attribute that does not exist": Broken(
        "attribute", "an engine", f"({_SELF}) => (float16[B,4,T,32] y) {{ y = Attention<window = 8>(q, k, v) }}"
    ),
    "a ring of a cache": Broken(
        "attribute", "nothing", f'{_CACHE} {{ y = TensorScatter<mode = "circular">(p, u, w) }}'
    ),
    "sums of what is scattered": Broken(
        "attribute",
        "nothing",
        "(float16[8,4] x, int64[B,1] i, float16[B,4] u) => (float16[8,4] y)"
        ' { y = ScatterND<reduction = "add">(x, i, u) }',
    ),
    "attention of rank 3": Broken(
        "rank",
        "an engine",
        "(float16[B,T,128] q, float16[B,T,128] k, float16[B,T,128] v) => (float16[B,T,128] y)"
        " { y = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v) }",
    ),
    "a mask of rank 2": Broken(
        "rank", "an engine", f"({_SELF_3}, bool[3,3] m) => (float16[B,4,3,32] y) {{ y = Attention(q, k, v, m) }}"
    ),
    "a mask, and causal": Broken(
        "mask",
        "nothing",
        f"({_SELF_3}, bool[B,1,3,3] m) => (float16[B,4,3,32] y) {{ y = Attention<is_causal = 1>(q, k, v, m) }}",
    ),
    "attention in float32": Broken(
        "attention in float32",
        "a network",
        f"({_SELF.replace('float16', 'float')}) => (float[B,4,T,32] y) {{ y = Attention(q, k, v) }}",
    ),
    "attention in a body": Broken("body", "a network", _BODY),
    "a dynamic cache length": Broken(
        "cache",
        "nothing",
        _CACHE.replace("64,", "T,").replace("T,32] u", "3,32] u") + " { y = TensorScatter(p, u, w) }",
    ),
    "a cache that is computed": Broken(
        "cache", "a network", f"{_CACHE} {{ c = Add(p, p) y = TensorScatter(c, u, w) }}"
    ),
    "a cache that is no output": Broken(
        "cache", "a network", f"{_CACHE} {{ c = TensorScatter(p, u, w) y = Add(c, c) }}"
    ),
    "a cache of int32": Broken(
        "dtype", "nothing", f"{_CACHE.replace('float16', 'int32')} {{ y = TensorScatter(p, u, w) }}"
    ),
    "positions of int32": Broken("dtype", "an engine", GRAPHS["RotaryEmbedding"].replace("int64", "int32")),
    "float64": Broken("dtype", "an engine", "(double[B,4] x) => (double[B,4] y) { y = Add(x, x) }"),
    "uint8": Broken("dtype", "nothing", "(uint8[B,4] x) => (uint8[B,4] y) { y = Add(x, x) }"),
    "uint8 between nodes": Broken(
        "uint8", "nothing", "(float16[B,4] x) => (float16[B,4] y) { c = Cast<to = 2>(x) y = Cast<to = 10>(c) }"
    ),
    "a sum of two types": Broken("same type", "nothing", f"{_MIXED} {{ y = Add(x, z) }}"),
    "a product of two types": Broken("same type", "nothing", f"{_MIXED} {{ y = MatMul(x, z) }}"),
    "a norm of two types": Broken(
        "same type", "an engine", "(float16[B,4] x, float[4] w) => (float16[B,4] y) { y = RMSNormalization(x, w) }"
    ),
    "a scale of another type": Broken(
        "same type", "an engine", GRAPHS["QuantizeLinear"].replace("float[B,64] x", "float16[B,64] x")
    ),
    "axes that are computed": Broken(
        "constant", "nothing", "(float16[B,4] x, int64[1] a) => (float16[B,1] y) { y = ReduceMean(x, a) }"
    ),
    "an operator of ONNX Runtime": Broken(
        "listed", "nothing", "(float16[B,4] x) => (float16[B,4] y) { y = com.microsoft.QuickGelu(x) }"
    ),
    "an operator of a later release": Broken(
        "listed", "an engine", "(float16[B,4] x) => (float16[B,4] y) { y = Swish(x) }"
    ),
    "a later operator set": Broken("opset", "an engine", "(float16[B,4] x) => (float16[B,4] y) { y = Add(x, x) }", 26),
    "an operator that its set lacks": Broken("opset", "an engine", GRAPHS["TensorScatter"], 23),
    "a zero point that is not 0": Broken(
        "symmetric", "nothing", GRAPHS["QuantizeLinear"].replace("int8 z = {0}", "int8 z = {3}")
    ),
}
