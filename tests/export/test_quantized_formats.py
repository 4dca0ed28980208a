"""Graphs in integers: they compute what PyTorch computes with rounded weights and inputs, on both engines."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from export_models import embeddings, small_config
from toy_plan import ToyPlan, simulate

from blip3v.bundle.graph_io import decoder_io, video_encoder_io
from blip3v.bundle.precision import PRECISIONS, GraphPrecision, Island
from blip3v.calibration.layers import HEAD, linear_layers
from blip3v.errors import ExportError
from blip3v.export.block_values import unpacked
from blip3v.export.passes import weight_counts
from blip3v.export.stored_layers import check_quantized, read_layers
from blip3v.export.to_onnx import decoder_to_onnx, layer_names, save_graph, video_encoder_to_onnx
from blip3v.model import Blip3Video
from blip3v.model.weights import random_model
from blip3v.runtime.backends import GraphFile, get_backend
from blip3v.runtime.cancellation import Deadline

BACKENDS = ("onnxruntime", "openvino")
CONFIG = small_config()
# An intermediate width that no group of 128 divides, nor of 64; and one that even 16 does not divide is padded.
ODD = small_config(intermediate_size=360)


def decoder_plan(model: Blip3Video, rotation: torch.Tensor | None = None) -> ToyPlan:
    embeds_LD = torch.from_numpy(embeddings(model.config.text, 40, seed=3))
    return ToyPlan(model, lambda: model.lang_model(embeds_LD[None]), rotation)


def write_decoder(model: Blip3Video, spec: GraphPrecision, plan: ToyPlan, folder: Path) -> Path:
    save_graph(decoder_to_onnx(model.config, model.state_dict(), spec, plan), folder / "decoder.onnx")
    return folder / "decoder.onnx"


def graph_file(path: Path, io: object, spec: GraphPrecision) -> GraphFile:
    size = path.with_suffix(".data").stat().st_size
    return GraphFile(path=path, io=io, precision=spec, weights_bytes=size)  # type: ignore[arg-type]


def decode(path: Path, model: Blip3Video, spec: GraphPrecision, backend: str, embeds_LD: np.ndarray) -> np.ndarray:
    """Logits after the prompt and after two further tokens."""
    text = model.config.text
    decoder = get_backend(backend).open_decoder(graph_file(path, decoder_io(model.config), spec), text)
    with closing(decoder.session(1, len(embeds_LD))) as session:
        logits = [session.prefill([embeds_LD[:-2]], Deadline())[0]]
        logits += [session.step(embeds_LD[-k : len(embeds_LD) - k + 1])[0] for k in (2, 1)]
    return np.stack(logits)


@pytest.mark.parametrize("config", [CONFIG, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("name", ["int8", "int8-weight", "int4"])
def test_a_quantised_decoder_computes_what_pytorch_does_with_rounded_numbers(
    name: str, config: object, tmp_path: Path
) -> None:
    model = random_model(config)  # type: ignore[arg-type]
    spec, plan = PRECISIONS[name].decoder, decoder_plan(model)
    path = write_decoder(model, spec, plan, tmp_path)
    stored = {layer.layer: layer.weights for layer in read_layers(path, layer_names(model.config)["decoder"])}
    wanted = {layer: spec.weights for layer in linear_layers(model.config) if layer.startswith("lang_model.")}
    wanted[HEAD] = "int8" if name == "int8" else "int8-block"
    assert stored == wanted
    check_quantized(read_layers(path, layer_names(model.config)["decoder"]), wanted)

    embeds_LD = embeddings(model.config.text, 20)
    simulate(model, plan, wanted, spec.group_size)
    with torch.inference_mode():
        expected = model.lang_model(torch.from_numpy(embeds_LD)[None])[0, -3:].numpy()
    for backend in BACKENDS:
        got = decode(path, model, spec, backend, embeds_LD)
        # Rounding may fall the other way where fp32 sums differ, and OpenVINO does not round the inputs of odd blocks.
        assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max(), backend


@pytest.mark.parametrize("encoder", ["tokenlearner", "gttm"])
def test_a_quantised_video_encoder_computes_what_pytorch_does_with_rounded_numbers(
    encoder: str, tmp_path: Path
) -> None:
    config = small_config(encoder)
    model, spec, path = random_model(config), PRECISIONS["int8"].video_encoder, tmp_path / "video_encoder.onnx"
    side = config.vision.image_size
    frames = np.random.default_rng(0).uniform(-1, 1, (1, 4, 3, side, side)).astype(np.float32)
    plan = ToyPlan(model, lambda: model.encode_video(torch.from_numpy(frames)))
    save_graph(video_encoder_to_onnx(config, model.state_dict(), spec, plan), path)
    formats = {layer.layer: layer.weights for layer in read_layers(path, layer_names(config)["video_encoder"])}
    kept = {name: form for name, form in formats.items() if form != "int8"}
    assert {name.split(".")[0] for name in kept} == {"vision_tokenizer"}
    quantized_too = "vision_tokenizer.layers.0.1."
    assert not [name for name in kept if name.startswith(quantized_too)], "the resampler's feed-forward layers"
    simulate(model, plan, formats, None)
    with torch.inference_mode():
        expected = model.encode_video(torch.from_numpy(frames)).numpy()
    for backend in BACKENDS:
        opened = get_backend(backend).open_video_encoder(graph_file(path, video_encoder_io(config), spec))
        got = opened.run(frames, Deadline())["video_tokens"]
        assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max(), backend

    # Every product is an integer product in ONNX Runtime, also where three take the same input.
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    kinds = Counter(node.op_type for node in optimized.node)
    assert kinds["MatMulIntegerToFloat"] == sum(form == "int8" for form in formats.values())
    assert kinds["DequantizeLinear"] == 0


def test_a_rotated_decoder_turns_its_inputs(tmp_path: Path) -> None:
    """The graph with the weights of a model whose inputs are rotated computes that model on rotated inputs."""
    model = random_model(CONFIG)
    rotation_DD = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)))[0]
    plan, spec = decoder_plan(model, rotation_DD), PRECISIONS["int8-weight"].decoder
    path = write_decoder(model, spec, plan, tmp_path)
    embeds_LD = embeddings(CONFIG.text, 12)
    plain = decoder_plan(model)
    other = write_decoder(model, spec, plain, tmp_path / "plain")
    rotated = decode(other, model, spec, "onnxruntime", embeds_LD @ rotation_DD.numpy())
    np.testing.assert_allclose(decode(path, model, spec, "onnxruntime", embeds_LD), rotated, atol=2e-3)


def test_patterns_of_node_names_change_what_is_quantised(tmp_path: Path) -> None:
    model = random_model(CONFIG)
    own = Island(name="kept", nodes=("/layers.0.*/MatMul",), weights="float16-stored")
    spec = PRECISIONS["int4"].decoder
    spec = dataclasses.replace(spec, islands=(own, *spec.islands))
    path = write_decoder(model, spec, decoder_plan(model), tmp_path)
    for layer in read_layers(path, layer_names(CONFIG)["decoder"]):
        if layer.layer != HEAD:
            assert layer.weights == ("float16-stored" if ".layers.0." in layer.layer else "int4-block")
    nowhere = Island(name="kept", nodes=("/layers.7.*",), weights="float16-stored")
    with pytest.raises(ExportError, match=r"'/layers.7.\*' matches no matrix product.*/layers.0.qkv_proj/MatMul"):
        decoder_to_onnx(CONFIG, model.state_dict(), dataclasses.replace(spec, islands=(nowhere,)), decoder_plan(model))


def test_a_layer_that_was_asked_for_and_not_quantised_is_named(tmp_path: Path) -> None:
    """ONNX Runtime's own 4-bit quantiser passes over the head, a Gemm, in silence."""
    model = random_model(CONFIG)
    head = Island(name="head", parameters=("lm_head",), weights="float32")
    spec = dataclasses.replace(PRECISIONS["int4"].decoder, islands=(head,))
    layers = read_layers(write_decoder(model, spec, decoder_plan(model), tmp_path), layer_names(CONFIG)["decoder"])
    with pytest.raises(ExportError, match=r"1 of 2 layers .* lang_model.lm_head \(float32 instead of int8-block\)"):
        check_quantized(layers, {HEAD: "int8-block", layers[0].layer: "int4-block"})


def test_values_are_packed_two_to_a_byte_and_counted_as_what_they_are(tmp_path: Path) -> None:
    model = random_model(CONFIG)
    plan = decoder_plan(model)
    path = write_decoder(model, PRECISIONS["int4"].decoder, plan, tmp_path)
    name = "lang_model.model.layers.1.mlp.down_proj"
    (layer,) = [x for x in read_layers(path, layer_names(CONFIG)["decoder"]) if x.layer == name]
    matrix = plan.quantize(name, plan.weights[f"{name}.weight"], bits=4, group_size=128)
    values = unpacked(layer.values.numpy(), 4).reshape(matrix.values_NK.shape)
    np.testing.assert_array_equal(values, matrix.values_NK.numpy())
    initializers = ir.load(path).graph.initializers
    assert initializers["layers.1.down_proj.weight.int4_blocks"].shape == ir.Shape([128, 3, 64])
    counts = weight_counts(ir.load(path))
    assert "uint8" not in counts
    head = initializers["lm_head.int8_blocks"].const_value
    assert head is not None
    assert counts["int8"].num_elements == head.size
    assert counts["int4"].num_elements == 2 * counts["int4"].size_bytes
