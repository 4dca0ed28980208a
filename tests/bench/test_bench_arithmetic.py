"""What a stage has to do at least, against products that are counted one by one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blip3v.bench.arithmetic import attended_positions, prefill_operations, step_bytes, video_encoder_operations
from blip3v.bench.temporal_arithmetic import temporal_multiply_adds
from blip3v.bundle import open_bundle
from blip3v.bundle.graph_io import decoder_io
from blip3v.config import ModelConfig, preset
from blip3v.export.video_encoder_graph import VideoEncoderGraph
from blip3v.model.temporal import with_encoder
from blip3v.model.temporal.registry import BUILT_IN
from blip3v.model.weights import random_model

_COUNTED = ("MatMul", "Gemm", "Conv", "Attention")


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
    sizes: dict[str, int] = {"batch": 1, "num_tokens": num_tokens, "capacity": 64}
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


def _small(encoder: str) -> ModelConfig:
    tiny = with_encoder(preset("tiny"), encoder)
    return dataclasses.replace(
        tiny,
        num_frames=8,
        vision=dataclasses.replace(tiny.vision, image_size=16, num_layers=1),
        resampler=dataclasses.replace(tiny.resampler, depth=1),
        text=dataclasses.replace(tiny.text, num_layers=1),
    )


@pytest.mark.parametrize("encoder", sorted(BUILT_IN))
def test_every_encoder_is_counted_as_pytorch_counts_it(encoder: str) -> None:
    config = _small(encoder)
    graph = VideoEncoderGraph(random_model(config), scan=False)
    frames = torch.zeros(1, config.num_frames, 3, config.vision.image_size, config.vision.image_size)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        graph(frames)
    assert video_encoder_operations(config) == counter.get_total_flops()


def test_an_encoder_of_another_package_has_no_count() -> None:
    tiny = preset("tiny")
    unknown = dataclasses.replace(tiny, temporal=dataclasses.replace(tiny.temporal, encoder="my-encoder"))
    assert temporal_multiply_adds(unknown) is None
    assert video_encoder_operations(unknown) is None


def test_a_window_bounds_what_is_attended_to_and_read() -> None:
    assert attended_positions(5, None) == 15
    assert attended_positions(5, 3) == 1 + 2 + 3 + 3 + 3
    assert attended_positions(2, 3) == 3
    assert step_bytes(1000, 10, num_tokens=50, window=None, batch_size=2) == 2000
    assert step_bytes(1000, 10, num_tokens=50, window=20) == 1200


def test_the_4b_model_costs_what_its_reference_says() -> None:
    """Prefill of 160 and 1152 tokens, and SigLIP on 8 frames, in TFLOP."""
    large = preset("xgen-mm-vid")
    assert prefill_operations(large.text, 160) == pytest.approx(1.16e12, rel=0.01)
    assert prefill_operations(large.text, 1152) == pytest.approx(8.35e12 + 0.26e12, rel=0.01)
    operations = video_encoder_operations(large)
    assert operations is not None
    assert 5.3e12 < operations < 6.6e12
