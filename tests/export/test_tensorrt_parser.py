"""What NVIDIA's own parser and builder make of the graphs that the check of operators passes or refuses.

They are those of TensorRT-RTX, which build without a GPU. TensorRT itself is another build of the same parser.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from tensorrt_graphs import BROKEN, GRAPHS, SIZES, graph

from blip3v.export.tensorrt_operators import check_tensorrt_operators

trt: Any = pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install tensorrt-rtx")


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps the warnings and errors of TensorRT."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.messages: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.Logger.WARNING:
            self.messages.append(message)


@dataclass
class Result:
    """What came of a graph."""

    made: str  # "nothing", "a network", or "an engine" from it
    messages: str


def build(model: onnx.ModelProto) -> Result:
    """Parses and builds, with a profile of ``SIZES``."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        return Result("nothing", "\n".join(log.messages))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = tuple(SIZES[dim.dim_param] if dim.dim_param else dim.dim_value for dim in dims)
        if any(dim.dim_param for dim in dims):
            profile.set_shape(value.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return Result("a network" if plan is None else "an engine", "\n".join(log.messages))


@pytest.mark.parametrize("operator", GRAPHS)
def test_what_passes_is_parsed_and_built(operator: str, tmp_path: Path) -> None:
    model = graph(GRAPHS[operator])
    onnx.save(model, tmp_path / "graph.onnx")
    assert check_tensorrt_operators(tmp_path / "graph.onnx", "tensorrt-rtx").violations == ()
    result = build(model)
    assert result.made == "an engine", result.messages
    assert "Unused Input" not in result.messages


@pytest.mark.parametrize("name", BROKEN)
def test_what_the_check_finds_is_refused_or_taken_without_a_word(name: str) -> None:
    """What makes an engine all the same is what the check is for; a newer release may change an answer here."""
    broken = BROKEN[name]
    result = build(graph(broken.text, broken.opset))
    assert result.made == broken.made_of, result.messages


def test_the_valid_lengths_of_a_cache_are_dropped() -> None:
    """The parser returns true and an engine is built, which reads past what is valid."""
    result = build(graph(BROKEN["valid lengths"].text))
    assert result.made == "an engine"
    assert "Unused Input: n" in result.messages


def test_a_capacity_set_by_the_builder_makes_an_engine_of_a_symbolic_one() -> None:
    model = graph(BROKEN["a dynamic cache length"].text)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[2].dim_value = 64
    assert build(model).made == "an engine"
