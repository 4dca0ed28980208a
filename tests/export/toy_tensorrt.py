"""A toy bundle in the form that TensorRT takes: fp16, TensorScatter into the cache, Attention with a mask.

Its graphs are built with the real TensorRT-RTX; nothing here is ever run. Letters: B batch, t new tokens, S cache
capacity, D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from toy_bundle import toy_manifest, toy_table
from toy_graphs import toy_config

from blip3v.bundle import layout
from blip3v.bundle.embeddings import write_embeddings
from blip3v.bundle.graph_io import (
    GraphIO,
    decoder_io,
    past_key,
    past_value,
    present_key,
    present_value,
    video_encoder_io,
)
from blip3v.bundle.precision import Precision
from blip3v.bundle.target_precision import for_target
from blip3v.bundle.targets import Target
from blip3v.bundle.writer import BundleWriter
from blip3v.config import ModelConfig
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, train_tokenizer
from blip3v.video import PreprocessorConfig

_TYPES = {
    "compute": TensorProto.FLOAT16,
    "cache": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
}
Edit = Callable[[onnx.ModelProto], None]
FP16 = Precision.parse("fp16")


def int8_decoder() -> Precision:
    """An int8 decoder as it is for TensorRT, whose floats are halves."""
    return for_target(Precision.parse("video_encoder=fp16,decoder=int8"), "tensorrt-rtx")


def trt_config() -> ModelConfig:
    """The toy model of the runtime's tests, with as many KV heads as heads."""
    return toy_config(num_kv_heads=4)


class Graph:
    """Collects nodes and weights of one graph."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def ints(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))

    def weight(self, name: str, *shape: int) -> str:
        return self.constant(name, self.rng.normal(0, 0.1, shape).astype(np.float16))

    def node(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        output = output or f"{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], f"/{output}", **attributes))
        return output

    def linear(self, x: str, name: str, *shape: int, int8: bool = False, zero_point: int = 0) -> str:
        """A matrix product; in int8 with one scale for its input and one for each output."""
        if not int8:
            return self.node("MatMul", [x, self.weight(name, *shape)])
        weight = self.constant(f"{name}.int8", self.rng.integers(-127, 128, shape).astype(np.int8))
        scales = self.constant(f"{name}.scale", np.full(shape[1:], 0.01, np.float16))
        scale = self.constant(f"{name}.x_scale", np.array(0.05, np.float16))
        zero = self.constant(f"{name}.zero", np.array(zero_point, np.int8))
        quantized = self.node("QuantizeLinear", [x, scale, zero])
        return self.node(
            "MatMul",
            [
                self.node("DequantizeLinear", [quantized, scale, zero]),
                self.node("DequantizeLinear", [weight, scales], axis=1),
            ],
        )

    def model(self, name: str, io: GraphIO) -> onnx.ModelProto:
        def infos(specs: Any) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.axes) for spec in specs]

        graph = helper.make_graph(self.nodes, name, infos(io.inputs), infos(io.outputs), self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=13)


def decoder_model(config: ModelConfig, *, int8: bool = False, zero_point: int = 0) -> onnx.ModelProto:
    """The decoder for TensorRT: a new token sees the cache up to itself."""
    text, graph = config.text, Graph()
    graph.ints("axis0", 0)
    graph.ints("axis1", 1)
    graph.ints("axis2", 2)
    for name, value in (("zero", 0), ("one", 1)):
        graph.constant(name, np.array(value, np.int64))
    num_new = graph.node("Squeeze", [graph.node("Shape", ["inputs_embeds"], start=1, end=2), "axis0"])
    steps = graph.node("Range", ["zero", num_new, "one"])
    positions_Bt = graph.node("Add", [graph.node("Unsqueeze", ["write_indices", "axis1"]), steps])
    capacity = graph.node("Squeeze", [graph.node("Shape", [past_key(0)], start=2, end=3), "axis0"])
    slots_S = graph.node("Range", ["zero", capacity, "one"])
    seen = graph.node("LessOrEqual", [slots_S, graph.node("Unsqueeze", [positions_Bt, "axis2"])])
    mask_B1tS = graph.node("Unsqueeze", [seen, "axis1"])
    x = "inputs_embeds"
    for layer in range(text.num_layers):
        x = _layer(graph, config, layer, x, mask_B1tS, int8=int8, zero_point=zero_point)
    graph.ints("one_token", 1, 1, text.hidden_size)
    index = graph.node("Expand", [graph.node("Unsqueeze", ["logits_index", "axis2"]), "one_token"])
    chosen_BnD = graph.node("GatherElements", [x, index], axis=1)
    graph.node("Cast", [graph.linear(chosen_BnD, "head", text.hidden_size, text.num_logits)], "logits", to=1)
    return graph.model("decoder", decoder_io(config, "tensorrt-rtx"))


def _layer(graph: Graph, config: ModelConfig, layer: int, x: str, mask: str, *, int8: bool, zero_point: int) -> str:
    text = config.text
    width, head = text.hidden_size, text.head_dim
    graph.constant(f"{layer}.norm", np.ones(width, np.float16))
    graph.ints(f"{layer}.heads", 0, 0, text.num_heads, head)
    graph.ints(f"{layer}.width", 0, 0, width)
    normed = graph.node("RMSNormalization", [x, f"{layer}.norm"], axis=-1, epsilon=1e-5)
    parts = []
    for part in "qkv":
        y = graph.linear(normed, f"{layer}.{part}", width, width, int8=int8, zero_point=zero_point)
        parts.append(graph.node("Transpose", [graph.node("Reshape", [y, f"{layer}.heads"])], perm=[0, 2, 1, 3]))
    query, key, value = parts
    for past, new, present in (
        (past_key(layer), key, present_key(layer)),
        (past_value(layer), value, present_value(layer)),
    ):
        graph.node("TensorScatter", [past, new, "write_indices"], present, axis=-2)
    mixed = graph.node("Attention", [query, present_key(layer), present_value(layer), mask])
    flat = graph.node("Reshape", [graph.node("Transpose", [mixed], perm=[0, 2, 1, 3]), f"{layer}.width"])
    return graph.node("Add", [x, graph.linear(flat, f"{layer}.out", width, width, int8=int8, zero_point=zero_point)])


def video_encoder_model(config: ModelConfig, *, batch: int | None = None) -> onnx.ModelProto:
    """Patches through one Linear, mean over frames; any batch, or the one that is given."""
    graph, side, count = Graph(), config.vision.image_size, config.num_video_tokens
    inputs = 3 * side * side // count
    graph.ints("tokens", 0, 0, count, inputs)
    graph.ints("frame_axis", 1)
    projected = graph.linear(graph.node("Reshape", ["frames", "tokens"]), "project", inputs, config.text.hidden_size)
    graph.node("ReduceMean", [projected, "frame_axis"], "video_tokens", keepdims=0)
    model = graph.model("video_encoder", video_encoder_io(config, "tensorrt-rtx"))
    if batch is not None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    return model


def write_trt_bundle(
    path: Path,
    *,
    target: Target = "tensorrt-rtx",
    decoder: onnx.ModelProto | None = None,
    video_encoder: onnx.ModelProto | None = None,
    precision: Precision = FP16,
    edit: Edit = lambda model: None,
) -> Path:
    """Writes a toy bundle for TensorRT.

    Args:
        path: the folder to create.
        target: as the manifest names it.
        decoder: the graph; None: the toy's, in fp16.
        video_encoder: likewise.
        precision: of the manifest.
        edit: changes the decoder before it is written.
    """
    config, specs = trt_config(), precision
    decoder = decoder or decoder_model(config)
    edit(decoder)
    with BundleWriter(path) as writer:
        folder = writer.path
        config.save(folder / layout.CONFIG)
        GenerationConfig(system_prompt=None, max_new_tokens=16).save(folder / layout.GENERATION)
        PreprocessorConfig(image_size=config.vision.image_size).save(folder / layout.PREPROCESSOR)
        train_tokenizer([], vocab_size_base=config.text.num_base_tokens).save(str(folder / layout.TOKENIZER))
        (folder / layout.CHAT_TEMPLATE).write_text(RELEASED_TEMPLATE, "utf-8")
        (folder / layout.CARD).write_text("toy\n", "utf-8")
        write_embeddings(folder / layout.EMBEDDINGS, toy_table(config, specs.decoder.embeddings))
        _save(decoder, folder / layout.graph_file("decoder"))
        _save(video_encoder or video_encoder_model(config), folder / layout.graph_file("video_encoder"))
        return writer.publish(toy_manifest(folder, config, specs, target))


def _save(model: onnx.ModelProto, path: Path) -> None:
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        location=f"{path.stem}.data",
        size_threshold=1024,
        convert_attribute=False,
    )
