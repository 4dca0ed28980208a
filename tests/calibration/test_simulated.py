"""Simulated integers: against a formula written out, against ONNX Runtime's kernel, and where a run may begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from toy_plan import ToyPlan

from blip3v.calibration.data import ClipSet
from blip3v.calibration.layers import HEAD
from blip3v.calibration.quantized import QuantizedMatrix, nearest, scales_of
from blip3v.calibration.simulated import (
    FORMATS,
    HiddenStates,
    Quantizer,
    SimulatedDecoder,
    SimulatedVideoEncoder,
    simulated,
)
from blip3v.config import ModelConfig
from blip3v.errors import ConfigError

GROUP = 32


class OneLayer:
    """A plan of one layer, whose inputs have the scale 0.05."""

    def __init__(self) -> None:
        self.weights: Mapping[str, torch.Tensor] = {}
        self.input_rotation_DD: torch.Tensor | None = None

    def activation_scale(self, layer: str) -> float:
        return 0.05

    def rows(self, layer: str) -> torch.Tensor:
        raise NotImplementedError

    def quantize(self, layer: str, weight_NK: torch.Tensor, *, bits: int, group_size: int | None) -> QuantizedMatrix:
        return nearest(weight_NK, scales_of(weight_NK, bits, group_size), bits, group_size)


def rows_and_weight(num_inputs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    rows_RK = rng.normal(0, 3, (5, num_inputs)).astype(np.float32)
    rows_RK[1, : num_inputs // 2] = 0  # blocks without a range
    return rows_RK, rng.normal(0, 1, (7, num_inputs)).astype(np.float32)


def in_blocks(values_RK: np.ndarray, size: int, top: int, lowest: int) -> np.ndarray:
    """Each block of a row rounded to integers times its largest value / top, one at a time."""
    out = np.zeros_like(values_RK)
    for row in range(len(values_RK)):
        for start in range(0, values_RK.shape[1], size):
            block = values_RK[row, start : start + size].astype(np.float32)
            largest = np.abs(block).max()
            if largest:
                scale = largest / np.float32(top)
                out[row, start : start + size] = np.clip(np.rint(block / scale), lowest, top) * scale
    return out


@pytest.mark.parametrize("num_inputs", [96, 40], ids=["whole groups", "a smaller group"])
def test_a_linear_layer_equals_the_formula(num_inputs: int) -> None:
    rows_RK, weight_NK = rows_and_weight(num_inputs)
    size = 32 if num_inputs == 96 else 16  # group_of(40, 32), whose last group is half empty
    per_channel_NK = in_blocks(weight_NK, num_inputs, 127, -127)
    expected = {
        "int8": (np.clip(np.rint(rows_RK / np.float32(0.05)), -127, 127) * np.float32(0.05)) @ per_channel_NK.T,
        "int8-block": in_blocks(rows_RK, size, 127, -127) @ in_blocks(weight_NK, size, 127, -127).T,
        "int4-block": in_blocks(rows_RK, size, 127, -127) @ in_blocks(weight_NK, size, 7, -8).T,
        "float16-stored": rows_RK @ weight_NK.astype(np.float16).astype(np.float32).T,
    }
    assert expected.keys() == FORMATS.keys()
    linear = torch.nn.Linear(num_inputs, len(weight_NK), bias=False)
    linear.weight = torch.nn.Parameter(torch.from_numpy(weight_NK), requires_grad=False)
    part, kept = torch.nn.Sequential(linear), linear.weight
    for form, expected_RN in expected.items():
        with simulated(part, "some.", {"some.0": form}, Quantizer(OneLayer(), GROUP)):
            got_RN = part(torch.from_numpy(rows_RK)).numpy()
        np.testing.assert_allclose(got_RN, expected_RN, rtol=1e-5, atol=1e-4)
    assert linear.weight is kept
    np.testing.assert_allclose(part(torch.from_numpy(rows_RK)).numpy(), rows_RK @ weight_NK.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_block_formats_compute_what_onnx_runtime_does(bits: int) -> None:
    rows_RK, weight_NK = rows_and_weight(96)
    form = f"int{bits}-block"
    linear = torch.nn.Linear(96, len(weight_NK), bias=False)
    linear.weight = torch.nn.Parameter(torch.from_numpy(weight_NK), requires_grad=False)
    part = torch.nn.Sequential(linear)
    with simulated(part, "", {"0": form}, Quantizer(OneLayer(), GROUP)):
        ours_RN = part(torch.from_numpy(rows_RK)).numpy()
    theirs_RN = matmul_nbits(rows_RK, weight_NK, bits)
    exact_RN = rows_RK @ weight_NK.T
    distance = np.abs(ours_RN - theirs_RN).max()
    assert distance < 1e-3 * np.abs(exact_RN).max()
    assert distance < np.abs(exact_RN - theirs_RN).max() / 5  # and far less than what rounding does


def matmul_nbits(rows_RK: np.ndarray, weight_NK: np.ndarray, bits: int) -> np.ndarray:
    """ONNX Runtime's kernel with inputs in 8 bits (accuracy level 4)."""
    weight = torch.from_numpy(weight_NK)
    quantized = nearest(weight, scales_of(weight, bits, GROUP), bits, GROUP)
    num_outputs, num_inputs = weight_NK.shape
    blocks = (quantized.values_NK.numpy().astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    blocks = blocks.reshape(num_outputs, num_inputs // GROUP, GROUP)
    packed = blocks if bits == 8 else blocks[..., ::2] | (blocks[..., 1::2] << 4)
    node = onnx.helper.make_node(
        "MatMulNBits",
        ["x", "packed", "scales"],
        ["y"],
        domain="com.microsoft",
        K=num_inputs,
        N=num_outputs,
        bits=bits,
        block_size=GROUP,
        accuracy_level=4,
    )
    initializers = {"packed": packed, "scales": quantized.scales_Ng.numpy()}
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("x", kind, ["rows", num_inputs])],
        [onnx.helper.make_tensor_value_info("y", kind, ["rows", num_outputs])],
        [onnx.numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    domains = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=domains, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": rows_RK})[0]
    return result


class InMemory:
    """See ``Samples``."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self.tensors = list(tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def read(self, at: int) -> torch.Tensor:
        return self.tensors[at]

    def write(self, at: int, tensor: torch.Tensor) -> None:
        self.tensors[at] = tensor


def in_one_place(tensors: Iterable[torch.Tensor]) -> HiddenStates:
    """The same place for the hidden states before every layer."""
    place = InMemory(tensors)
    return lambda layer: place


def taken(run: Callable[..., None], *args: object, first: int = 0) -> list[torch.Tensor]:
    """What a run gives for each sample, in order."""
    results: dict[int, torch.Tensor] = {}
    run(*args, lambda at, tensor: results.update({at: tensor}), first=first)
    assert list(results) == list(range(len(results)))
    return list(results.values())


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_run_may_begin_at_any_layer(whole_model, toy_plan: ToyPlan, films: ClipSet, first: int) -> None:
    """With every later layer quantised, from the hidden states that the fp32 run had there."""
    config: ModelConfig = whole_model.config
    quantizer = Quantizer(toy_plan, GROUP)
    clips = [torch.from_numpy(clip.load()) for clip in films.clips[:2]]
    video = SimulatedVideoEncoder(config, quantizer)
    seen = [InMemory(map(video.start, clips)) for _ in range(config.vision.num_layers + 1)]
    exact = taken(video.tokens, seen.__getitem__, {})
    with torch.inference_mode():
        expected = [whole_model.encode_video(clip[None])[0] for clip in clips]
    torch.testing.assert_close(exact, expected, atol=2e-5, rtol=0)
    later = {f"vision_encoder.encoder.layers.{at}.mlp.fc1": "int8" for at in range(first, 2)}
    later["vision_tokenizer.projection"] = "float16-stored"
    from_start = taken(video.tokens, in_one_place(map(video.start, clips)), later)
    got = taken(video.tokens, in_one_place(seen[first].tensors), later, first=first)
    torch.testing.assert_close(got, from_start, atol=0, rtol=0)

    decoder = SimulatedDecoder(config, quantizer)
    prompts = [torch.randn(length, config.text.hidden_size) for length in (5, 9)]
    starts, at = [decoder.start(prompt) for prompt in prompts], [[4], [0, 8]]
    seen = [InMemory(starts) for _ in range(config.text.num_layers + 1)]
    exact = taken(decoder.logits, seen.__getitem__, at, {})
    with torch.inference_mode():
        expected = [whole_model.lang_model(x[None])[0, n] for x, n in zip(prompts, at, strict=True)]
    torch.testing.assert_close(exact, expected, atol=2e-5, rtol=0)
    later = {f"lang_model.model.layers.{n}.mlp.down_proj": "int4-block" for n in range(first, 2)} | {HEAD: "int8-block"}
    from_start = taken(decoder.logits, in_one_place(starts), at, later)
    got = taken(decoder.logits, in_one_place(seen[first].tensors), at, later, first=first)
    torch.testing.assert_close(got, from_start, atol=0, rtol=0)


def test_the_decoder_of_a_rotated_plan_rotates_its_inputs(whole_model, toy_plan: ToyPlan) -> None:
    width = whole_model.config.text.hidden_size
    rotation_DD = torch.linalg.qr(torch.randn(width, width)).Q
    plan = OneLayer()
    plan.weights, plan.input_rotation_DD = dict(toy_plan.weights), rotation_DD
    embeds_LD = torch.randn(3, width)
    started_LD = SimulatedDecoder(whole_model.config, Quantizer(plan, GROUP)).start(embeds_LD)
    torch.testing.assert_close(started_LD, embeds_LD @ rotation_DD)


def test_a_layer_that_the_model_lacks_is_an_error(whole_model, toy_plan: ToyPlan) -> None:
    config, quantizer = whole_model.config, Quantizer(toy_plan, GROUP)
    decoder = SimulatedDecoder(config, quantizer)
    start = in_one_place([decoder.start(torch.randn(3, config.text.hidden_size))])
    for name, first in (
        ("lang_model.model.layers.9.mlp.down_proj", 0),
        ("lang_model.model.layers.0.mlp.no_proj", 0),
        ("lang_model.model.layers.0.mlp.down_proj", 1),
        ("vision_tokenizer.projection", 0),
    ):
        with pytest.raises(ConfigError, match=f"has no {name}"):
            taken(decoder.logits, start, [[0]], {name: "int8"}, first=first)
