"""The check of a graph's operators by TensorRT's documentation, without TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from export_models import small_config
from onnx import numpy_helper
from tensorrt_graphs import BROKEN, GRAPHS, graph

from blip3v.bundle.precision import Precision
from blip3v.bundle.target_precision import for_target
from blip3v.bundle.targets import TARGETS, Target
from blip3v.export.tensorrt_operator_table import TABLES
from blip3v.export.tensorrt_operators import Capacity, check_tensorrt_operators, operator_rules
from blip3v.export.tensorrt_rules import RULES, TensorRTReport
from blip3v.export.to_onnx import decoder_to_onnx, save_graph
from blip3v.model.weights import random_model

CURRENT = ("Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter")  # not in a release before 10.14


def report(tmp_path: Path, text: str, opset: int = 24, target: Target = "tensorrt") -> TensorRTReport:
    path = tmp_path / "graph.onnx"
    onnx.save(graph(text, opset), path)
    return check_tensorrt_operators(path, target)


def test_every_operator_of_the_table_has_a_graph() -> None:
    assert set(GRAPHS) == set(TABLES["tensorrt"].rows)


@pytest.mark.parametrize("operator", GRAPHS)
def test_every_operator_of_the_table_passes(operator: str, tmp_path: Path) -> None:
    found = report(tmp_path, GRAPHS[operator])
    assert found.violations == ()
    assert found.passed


@pytest.mark.parametrize("operator", sorted(set(GRAPHS) - set(CURRENT)))
def test_the_older_operators_pass_for_the_older_releases(operator: str, tmp_path: Path) -> None:
    assert report(tmp_path, GRAPHS[operator], 20, "tensorrt-legacy").violations == ()


@pytest.mark.parametrize("operator", CURRENT)
def test_the_newer_operators_do_not_pass_for_the_older_releases(operator: str, tmp_path: Path) -> None:
    rules = {violation.rule for violation in report(tmp_path, GRAPHS[operator], 24, "tensorrt-legacy").violations}
    assert rules == {"listed", "opset"}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_is_found_broken_and_its_source_is_named(name: str, tmp_path: Path) -> None:
    broken = BROKEN[name]
    found = report(tmp_path, broken.text, broken.opset)
    assert not found.passed
    assert {violation.rule for violation in found.violations} == {broken.rule}
    source = (RULES | operator_rules("tensorrt"))[broken.rule].source
    assert all(str(violation).endswith(f"({source})") for violation in found.violations)


def test_every_rule_is_broken_once() -> None:
    assert {broken.rule for broken in BROKEN.values()} - set(RULES) == set(operator_rules("tensorrt")) - {"unknown"}


def test_a_type_that_is_not_known_is_reported(tmp_path: Path) -> None:
    text = "(float16[B,4] x) => (float16[B,4] y) { c = com.microsoft.FastGelu(x) y = Add(c, x) }"
    rules = [violation.rule for violation in report(tmp_path, text).violations]
    assert rules == ["listed", "unknown"]


def test_types_that_the_file_lacks_are_inferred(tmp_path: Path) -> None:
    text = "(float16[B,4] x, float[B,4] z) => (float[B,4] y) { c = Mul(x, x) d = Neg(c) y = Add(d, z) }"
    assert [violation.rule for violation in report(tmp_path, text).violations] == ["same type"]


def test_nodes_in_bodies_are_checked(tmp_path: Path) -> None:
    text = (
        "(float16[B,4] x, bool c) => (float16[B,4] y)"
        " { y = If<then_branch = t () => (float16[B,4] p) { p = Mish(x) },"
        " else_branch = e () => (float16[B,4] q) { q = Neg(x) }>(c) }"
    )
    found = report(tmp_path, text).violations
    assert [violation.rule for violation in found] == ["body", "listed"]


@pytest.mark.parametrize(("capacity", "passes"), [("builder", True), ("file", False)])
def test_the_builder_may_set_the_capacity_of_a_cache(capacity: Capacity, passes: bool, tmp_path: Path) -> None:
    model = graph(BROKEN["a dynamic cache length"].text)
    model.graph.input[0].name = model.graph.node[0].input[0] = "past.0.key"
    onnx.save(model, tmp_path / "graph.onnx")
    assert check_tensorrt_operators(tmp_path / "graph.onnx", "tensorrt", capacity=capacity).passed == passes


def test_attention_in_float32_passes_if_it_may_be_taken_apart(tmp_path: Path) -> None:
    text = BROKEN["attention in float32"].text.replace("Attention(", "Attention<TRT_decomposable = 1>(")
    assert report(tmp_path, text).passed


def test_both_names_of_the_domain_of_onnx_are_one(tmp_path: Path) -> None:
    model = graph(GRAPHS["Add"])
    model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"
    onnx.save(model, tmp_path / "graph.onnx")
    assert check_tensorrt_operators(tmp_path / "graph.onnx", "tensorrt").passed


def test_a_violation_is_a_sentence_with_the_node_and_the_source(tmp_path: Path) -> None:
    (violation,) = report(tmp_path, BROKEN["a sum of two types"].text).violations
    assert str(violation).startswith("Add: mixes float32, float16; a node computes in one type")


def test_weights_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    model = graph("(float[B,4] x) => (float[B,4] y) { y = Mul(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
    (tmp_path / "weights.data").unlink()
    assert check_tensorrt_operators(path, "tensorrt").passed


PASSES: dict[Target, set[Target]] = {
    "onnxruntime": set(),
    "tensorrt": {"tensorrt", "tensorrt-rtx"},
    "tensorrt-legacy": {"tensorrt", "tensorrt-rtx", "tensorrt-legacy"},
}


@pytest.mark.parametrize("target", PASSES)
def test_a_decoder_passes_for_the_target_that_it_is_exported_for(target: Target, tmp_path: Path) -> None:
    model, path = random_model(small_config()), tmp_path / "decoder.onnx"
    spec = for_target(Precision.parse("fp16"), target).decoder
    save_graph(decoder_to_onnx(model.config, model.state_dict(), spec, target=target), path)
    assert {other for other in TARGETS[1:] if check_tensorrt_operators(path, other).passed} == PASSES[target]
    if target == "tensorrt":
        caches = check_tensorrt_operators(path, target, capacity="file").violations
        assert [found.rule for found in caches] == ["cache"] * 2 * model.config.text.num_layers
