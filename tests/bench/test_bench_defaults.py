"""The bundles that are measured by default, and the products of their graphs, counted one by one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from bench_bundles import SmallBundles
from bench_samples import SMALL_ROWS
from onnx import helper

from blip3v.bench import default_bundles
from blip3v.bench.arithmetic import prefill_operations, video_encoder_operations
from blip3v.bundle import open_bundle
from blip3v.bundle.graph_io import decoder_io

_COUNTED = ("MatMul", "Gemm", "Conv", "Attention")


def test_bundles_are_kept_and_damaged_ones_exported_again(made: SmallBundles) -> None:
    cache, models, bundles = made.cache, made.models, made.paths
    before = {path: path.stat().st_ino for path in bundles}
    lines: list[str] = []
    assert default_bundles(cache, models=models, rows=SMALL_ROWS, progress=lines.append) == bundles
    assert {path: path.stat().st_ino for path in bundles} == before
    assert lines == [f"using {path}" for path in bundles]
    (bundles[1] / "config.json").write_text("{}")
    assert default_bundles(cache, models=models, rows=SMALL_ROWS[1:], progress=lines.append) == bundles[1:]
    assert "is damaged and exported again" in lines[2]
    open_bundle(bundles[1])


def test_the_new_encoder_is_marked_untrained_in_its_manifest(bundles: list[Path]) -> None:
    sources = [open_bundle(path).manifest.source for path in bundles]
    assert [source.trained for source in sources] == [True, False]
    assert not any(source.random_init for source in sources)
    assert "-16tok-" in bundles[1].name


def _operations_of_graph(path: Path, inputs: dict[str, np.ndarray]) -> int:
    """Runs the graph with the shapes of all factors as further outputs, and adds up its products."""
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type in _COUNTED]
    known = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    names = sorted({name for node in nodes for name in (*node.input[:2], node.output[0])} - set(known) - set(inputs))
    for name in names:
        model.graph.node.append(helper.make_node("Shape", [name], [f"{name}.shape"]))
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(f"{name}.shape", onnx.TensorProto.INT64, None) for name in names
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known |= dict(zip(names, map(tuple, session.run(None, inputs)), strict=True))
    known |= {name: array.shape for name, array in inputs.items()}
    return sum(_operations(node, known) for node in nodes)


def _operations(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    first, second, out = (shapes[name] for name in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        return 2 * math.prod(out) * math.prod(second[1:])
    if node.op_type == "Attention":  # (B, heads, queries, width) and (B, heads, keys, width)
        return 2 * 2 * math.prod(first) * second[-2]
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return 2 * math.prod(out) * first[0 if attributes.get("transA") else -1]


@pytest.mark.parametrize("index", [0, 1], ids=["none", "tokenlearner"])
def test_the_video_encoder_is_the_sum_of_the_products_of_its_graph(bundles: list[Path], index: int) -> None:
    bundle = open_bundle(bundles[index])
    side = bundle.config.vision.image_size
    frames = np.zeros((1, bundle.config.num_frames, 3, side, side), np.float16)
    path = bundle.path / bundle.manifest.graphs["video_encoder"].file
    assert video_encoder_operations(bundle.config) == _operations_of_graph(path, {"frames": frames})


def test_a_prompt_is_the_sum_of_the_products_of_the_decoder(bundles: list[Path]) -> None:
    bundle = open_bundle(bundles[0])
    text, num_tokens = bundle.config.text, 7
    sizes: dict[str, int] = {"batch": 1, "num_positions": 1, "num_tokens": num_tokens, "capacity": 64}
    specs = decoder_io(bundle.config).resolved(bundle.manifest.precision.decoder).inputs
    inputs = {
        spec.name: np.zeros(
            [sizes.get(axis, num_tokens) if isinstance(axis, str) else axis for axis in spec.axes], spec.dtype
        )
        for spec in specs
    }
    inputs |= {
        "seqlens_k": np.array([num_tokens - 1], np.int32),
        "total_sequence_length": np.array(num_tokens, np.int32),
    }
    linear = _operations_of_graph(bundle.path / bundle.manifest.graphs["decoder"].file, inputs)
    attention = sum(2 * 2 * text.hidden_size * (position + 1) for position in range(num_tokens)) * text.num_layers
    assert prefill_operations(text, num_tokens) == linear + attention
