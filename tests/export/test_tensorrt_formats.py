"""Quantised graphs for TensorRT: the same numbers as PyTorch's, the rules of TensorRT kept, and engines built."""

# Shapes: N outputs, K inputs, L tokens, D width.

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import embeddings, small_config
from toy_plan import ToyPlan, simulate

from blip3v.bundle import Precision
from blip3v.bundle.graph_io import decoder_io, video_encoder_io
from blip3v.bundle.precision import GraphPrecision
from blip3v.bundle.target_precision import for_target
from blip3v.bundle.targets import Target
from blip3v.calibration.layers import HEAD, linear_layers
from blip3v.export.stored_layers import check_quantized, read_layers
from blip3v.export.tensorrt_rules import check_tensorrt_rules
from blip3v.export.to_onnx import decoder_to_onnx, layer_names, save_graph, video_encoder_to_onnx
from blip3v.model.temporal import with_encoder
from blip3v.model.weights import random_model
from blip3v.runtime.backends import GraphFile, get_backend
from blip3v.runtime.cancellation import Deadline

TARGET: Target = "tensorrt"
CONFIG = small_config()


def decoder_spec(name: str) -> GraphPrecision:
    return for_target(Precision.parse(name), TARGET).decoder


@pytest.mark.parametrize("name", ["int8", "int8-weight", "int4"])
def test_a_decoder_computes_what_pytorch_does_with_rounded_numbers(name: str, tmp_path: Path) -> None:
    model, spec, path = random_model(CONFIG), decoder_spec(name), tmp_path / "decoder.onnx"
    prompt_LD = torch.from_numpy(embeddings(CONFIG.text, 40, seed=3))
    plan = ToyPlan(model, lambda: model.lang_model(prompt_LD[None]))
    save_graph(decoder_to_onnx(CONFIG, model.state_dict(), spec, plan, target=TARGET), path)
    layers = read_layers(path, layer_names(CONFIG)["decoder"])
    wanted = {layer: spec.weights for layer in linear_layers(CONFIG) if layer.startswith("lang_model.")}
    wanted[HEAD] = "int8" if name == "int8" else "int8-block"
    check_quantized(layers, wanted)
    assert check_tensorrt_rules(path).passed
    assert {node.domain for node in onnx.load(path, load_external_data=False).graph.node} == {""}

    embeds_LD = embeddings(CONFIG.text, 20)
    # Inputs of unpacked blocks stay as they are, so only the weights are rounded.
    simulate(model, plan, wanted, spec.group_size, round_inputs=name == "int8")
    with torch.inference_mode():
        expected = model.lang_model(torch.from_numpy(embeds_LD)[None])[0, -2:].numpy()
    graph = GraphFile(path=path, io=decoder_io(CONFIG, TARGET), precision=spec, weights_bytes=0)
    with closing(get_backend("onnxruntime").open_decoder(graph, CONFIG.text)) as decoder:
        half_LD = embeds_LD.astype(decoder.dtype)
        with closing(decoder.session(1, 20)) as session:
            got = [session.prefill([half_LD[:-1]], Deadline())[0], session.step(half_LD[-1:])[0]]
    # Rounding to int8 may fall the other way where half precision comes between.
    assert np.linalg.norm(np.stack(got) - expected) < 0.08 * np.linalg.norm(expected)


@pytest.mark.parametrize("encoder", ["gttm", "ttm"])
def test_an_unrolled_recurrence_reads_each_weight_from_one_tensor(encoder: str, tmp_path: Path) -> None:
    """Its matrices were transposed once for each frame: large ones in the graph, where no layer was found that reads
    them, and small ones by torch, in copies that had no weight to load."""
    config = with_encoder(dataclasses.replace(small_config(), num_frames=3), encoder)
    model, path = random_model(config), tmp_path / "video_encoder.onnx"
    spec = for_target(Precision.parse("fp16"), TARGET).video_encoder
    save_graph(video_encoder_to_onnx(config, model.state_dict(), spec, target=TARGET), path)
    layers = Counter(layer.layer for layer in read_layers(path, layer_names(config)["video_encoder"]))
    steps = [count for layer, count in layers.items() if "ttm_unit" in layer]
    assert steps
    # What the last step writes into the memory, an output by frame does not need.
    assert set(steps) <= {config.num_frames - 1, config.num_frames}
    graph = onnx.load(path, load_external_data=False).graph
    weights = {value.name for value in graph.initializer}
    assert not [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]
    assert video_encoder_io(config, TARGET).inputs[0].axes[1] == config.num_frames


def test_values_follow_a_scale_that_half_precision_rounds(tmp_path: Path) -> None:
    """Weights of 1e-5 have scales that half precision holds with few bits, or none."""
    model, path = random_model(CONFIG), tmp_path / "decoder.onnx"
    name = "lang_model.model.layers.1.mlp.down_proj"
    with torch.no_grad():
        model.get_submodule(name).get_parameter("weight")[::2] *= 1e-3
    prompt_LD = torch.from_numpy(embeddings(CONFIG.text, 40, seed=3))
    plan = ToyPlan(model, lambda: model.lang_model(prompt_LD[None]))
    save_graph(decoder_to_onnx(CONFIG, model.state_dict(), decoder_spec("int8"), plan, target=TARGET), path)
    (layer,) = [found for found in read_layers(path, layer_names(CONFIG)["decoder"]) if found.layer == name]
    assert layer.scales is not None
    scales_N = layer.scales.numpy().astype(np.float32)
    assert scales_N.min() >= np.finfo(np.float16).smallest_normal
    stored_NK = layer.values.numpy().T * scales_N[:, None]
    weight_NK = model.get_submodule(name).get_parameter("weight").detach().numpy()
    assert (np.abs(stored_NK - weight_NK) <= 0.6 * scales_N[:, None]).all()
