"""Checks every node of a graph against what TensorRT documents of its ONNX parser, without TensorRT and the weights.

    graph --> its types and shapes, inferred --> each node: operator, inputs, outputs, attributes --> violations
                                                 in bodies too       |
                                                             tensorrt_operator_table

A parse that succeeds is not proof: the parser drops the input ``nonpad_kv_seqlen`` of Attention without an error, and
takes operators whatever the operator set. What the documentation does not say, and a builder showed, is a rule whose
source says so. Not here: the rules of quantisation themselves (``tensorrt_rules``), which are checked along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from blip3v.bundle.targets import Target, is_tensorrt
from blip3v.export.tensorrt_operator_table import BODIES, TABLES, Row, Table
from blip3v.export.tensorrt_rules import Rule, TensorRTReport, Violation, check_tensorrt_rules

__all__ = ["Capacity", "check_tensorrt_operators", "operator_rules"]

Capacity = Literal["builder", "file"]  # who sets the capacity of the cache

# Rules whose source is the table.
_DOCUMENTED = {
    "listed": "operators are those of ONNX in the table of operators that were checked",
    "opset": "the operator set of ONNX is one that the release knows, and has the operator",
    "dtype": "values have types that the operator is documented with",
    "uint8": "uint8 is the type of inputs and outputs of the graph alone",
    "unknown": "types, and ranks where they are restricted, are known before the graph runs",
    "rank": "values have the rank that the operator is documented with",
    "constant": "the axes that it works along are constants",
    "ignored": "inputs and outputs are those that the parser computes; it drops others, some of them without a word",
    "attribute": "attributes are ones of the operator, with values that the parser computes",
}
_TYPING = "https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x.html"
_CACHE = "https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/KVCacheUpdate.html"
_TRIED = "tried with TensorRT-RTX 1.7.1"
_OTHERS = {
    "same type": Rule("a node computes in one type, as a strongly typed network casts nothing by itself", _TYPING),
    "cache": Rule(
        "a cache has a capacity that is a number, is an input of the graph, and becomes an output of it", _CACHE
    ),
    "attention in float32": Rule(
        "Attention is of float16 or bfloat16, or has the attribute TRT_decomposable=1, as no kernel computes it "
        "in float32",
        _TRIED,
    ),
    "mask": Rule("Attention has a mask or is_causal, not both", _TRIED),
    "body": Rule("a graph has no If, Loop or Scan, as none with an Attention in it can be built", _TRIED),
}


def operator_rules(target: Target) -> dict[str, Rule]:
    """The rules for the operators of a graph of ``target``."""
    source = TABLES[target].source
    return {name: Rule(text, source) for name, text in _DOCUMENTED.items()} | _OTHERS


def check_tensorrt_operators(path: Path, target: Target, *, capacity: Capacity = "builder") -> TensorRTReport:
    """Checks the graph in ``path`` by TensorRT's rules of operators and of quantisation; no weight is read.

    Args:
        path: an ONNX file; the file of its weights may be absent.
        target: one of TensorRT's, which decides the release whose table counts.
        capacity: ``file`` if the capacity of the cache must be a number in the file; ``builder`` if the builder of the
            engine sets it, in inputs whose names begin with ``past.``.

    Returns:
        The violations of both kinds of rules, those of operators first.
    """
    assert is_tensorrt(target), "the other targets are for other engines"
    model = ir.from_proto(_with_types(path))
    check = _Check(table=TABLES[target], rules=operator_rules(target), model=model, capacity=capacity)
    nodes = list(model.graph.all_nodes())
    violations = [*check.opset(path.name), *chain.from_iterable(check.node(node) for node in nodes)]
    # Its rule of operators is a part of the table.
    violations += [violation for violation in check_tensorrt_rules(path).violations if violation.rule != "operator"]
    others = Counter(_operator(node) for node in nodes if node.domain)
    return TensorRTReport(violations=tuple(violations), other_operators=dict(others))


def _with_types(path: Path) -> onnx.ModelProto:
    """The graph, with the types and shapes that follow from those in the file."""
    return onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))


@dataclass(frozen=True, kw_only=True)
class _Check:
    """What a node is checked with."""

    table: Table
    rules: dict[str, Rule]
    model: ir.Model
    capacity: Capacity

    @property
    def _opset(self) -> int:
        imports = self.model.opset_imports
        return imports.get("", imports.get("ai.onnx", 0))  # two names of one domain

    def opset(self, name: str) -> Iterator[Violation]:
        first, last = self.table.opsets
        if not first <= self._opset <= last:
            found = f"is of operator set {self._opset}; {self.table.release} knows {first} to {last}"
            yield self._broken(name, "opset", found)

    def node(self, node: ir.Node) -> Iterator[Violation]:
        """All that is wrong with a node of the graph or of a body in it."""
        row = self.table.rows.get(node.op_type)
        name = node.name or node.op_type
        if node.op_type in BODIES and not node.domain:
            yield self._broken(name, "body", f"is {_operator(node)}")
            return
        if row is None or node.domain:
            yield self._broken(name, "listed", f"is {_operator(node)}")
            return
        yield from self._attributes(node, name, row)
        yield from self._values(node, name, row)
        if node.op_type == "Attention":
            yield from self._attention(node, name)
        elif node.op_type == "TensorScatter":
            yield from self._cache(node, name)

    def _attributes(self, node: ir.Node, name: str, row: Row) -> Iterator[Violation]:
        """Attributes by the row, and by ONNX's own definition of the operator."""
        try:
            known = onnx.defs.get_schema(node.op_type, self._opset, "").attributes
        except onnx.defs.SchemaError:
            yield self._broken(name, "opset", f"{node.op_type} is not in operator set {self._opset}")
            return
        for attribute in node.attributes.values():
            allowed = row.attributes.get(attribute.name)
            if allowed is None and attribute.name not in known:
                yield self._broken(name, "attribute", f"has {attribute.name}, which is no attribute of {node.op_type}")
            elif allowed is not None and attribute.value not in allowed:
                yield self._broken(name, "attribute", f"has {attribute.name}={attribute.value}")

    def _values(self, node: ir.Node, name: str, row: Row) -> Iterator[Violation]:
        """Inputs and outputs by the signature of the row."""
        shared: set[ir.DataType] = set()  # of the values that must have one type
        for side, values, kinds in (("input", node.inputs, row.inputs), ("output", node.outputs, row.outputs)):
            for index, (value, kind) in enumerate(_paired(values, kinds)):
                if value is None or (side == "output" and not value.name):
                    continue
                where = f"{side} {index}, {value.name},"
                if not kind:
                    yield self._broken(name, "ignored", f"has {where} after the last that is computed")
                    continue
                yield from self._value(value, kind, name, where, row)
                if kind[0] == "T" or (kind[0] == "M" and value.dtype != ir.DataType.BOOL):
                    shared |= {value.dtype} if value.dtype is not None else set()
        if len(shared) > 1:
            yield self._broken(name, "same type", f"mixes {_names(shared)}")

    def _value(self, value: ir.Value, kind: str, name: str, where: str, row: Row) -> Iterator[Violation]:
        allowed = _types(kind[0], row)
        if value.dtype is None:
            yield self._broken(name, "unknown", f"has {where} of a type that is not known")
        elif value.dtype not in allowed:
            found = f"has {where} of {_names({value.dtype})}; {self.table.release} takes {_names(allowed)}"
            yield self._broken(name, "dtype", found)
        elif value.dtype == ir.DataType.UINT8 and not (value.is_graph_input() or value.is_graph_output()):
            yield self._broken(name, "uint8", f"has {where} of uint8 between two nodes")
        rank = next((int(mark) for mark in kind if mark.isdigit()), None)
        if rank is not None and value.shape is None:
            yield self._broken(name, "unknown", f"has {where} of a rank that is not known")
        elif rank is not None and value.shape is not None and value.shape.rank() != rank:
            found = f"has {where} of rank {value.shape.rank()}; {self.table.release} takes {rank}"
            yield self._broken(name, "rank", found)
        if "!" in kind and ir.convenience.get_const_tensor(value) is None:
            yield self._broken(name, "constant", f"has {where} that the graph computes")

    def _attention(self, node: ir.Node, name: str) -> Iterator[Violation]:
        query = node.inputs[0]
        decomposable = node.attributes.get_int("TRT_decomposable", 0)
        if query is not None and query.dtype == ir.DataType.FLOAT and not decomposable:
            yield self._broken(name, "attention in float32", "is of float32")
        causal = node.attributes.get_int("is_causal", 0)
        if causal and len(node.inputs) > 3 and node.inputs[3] is not None:
            yield self._broken(name, "mask", "has both")

    def _cache(self, node: ir.Node, name: str) -> Iterator[Violation]:
        past, present = node.inputs[0], node.outputs[0]
        assert past is not None, "the input is required"
        if not past.is_graph_input():
            yield self._broken(name, "cache", f"writes into {past.name}, which is no input of the graph")
        if not present.is_graph_output():
            yield self._broken(name, "cache", f"makes {present.name}, which is no output of the graph")
        set_later = self.capacity == "builder" and (past.name or "").startswith("past.")
        if past.shape is not None and past.shape.rank() > 1:
            size = past.shape[-2]
            if not isinstance(size, int) and not set_later:
                yield self._broken(name, "cache", f"writes into {past.name} of the capacity {size}")

    def _broken(self, name: str, rule: str, found: str) -> Violation:
        return Violation(node=name, rule=rule, found=found, requirement=self.rules[rule])


def _paired(values: Sequence[ir.Value | None], kinds: Sequence[str]) -> Iterator[tuple[ir.Value | None, str]]:
    """Each value with its kind, which is empty after the last kind of the signature."""
    rest = kinds[-1] if kinds and kinds[-1].endswith("*") else ""
    return zip(values, chain(kinds, repeat(rest)), strict=False)


def _types(kind: str, row: Row) -> frozenset[ir.DataType]:
    """The types that a kind of ``tensorrt_operator_table`` stands for."""
    boolean, integers = frozenset({ir.DataType.BOOL}), frozenset({ir.DataType.INT32, ir.DataType.INT64})
    return {
        "T": row.types,
        "U": row.types,
        "M": row.types | boolean,
        "B": boolean,
        "I": integers,
        "L": frozenset({ir.DataType.INT64}),
        "Q": frozenset({ir.DataType.INT8, ir.DataType.INT4}),
    }[kind]


def _names(types: set[ir.DataType] | frozenset[ir.DataType]) -> str:
    """Their names as NumPy has them, in a fixed order."""
    names = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
    return ", ".join(names.get(dtype, dtype.name.lower()) for dtype in sorted(types))


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type
