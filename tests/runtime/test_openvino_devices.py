"""OpenVINO's devices: named as its plugins name them, and refused with its own reason where there is none.

No graph runs on a GPU or NPU here. ``FakeCore`` stands for the missing hardware: an OpenVINO that lists such devices.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from toy_graphs import Weights, reference_logits, toy_config, write_decoder
from toy_parts import graph_file

from blip3v.bundle import Precision
from blip3v.bundle.graph_io import decoder_io
from blip3v.errors import ProviderError, UsageError
from blip3v.runtime import VideoLM
from blip3v.runtime.backends import choose_backend, get_backend, parse_backends
from blip3v.runtime.backends.openvino import sessions
from blip3v.runtime.cancellation import Deadline

FP16, FP32, INT8, INT4 = map(Precision.parse, ("fp16", "fp32", "int8", "int4"))
HAS = openvino.Core().available_devices
CAPABILITIES = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class FakeCore:
    """Lists devices that this machine lacks, and remembers what it is told about them."""

    available_devices = ("CPU", "GPU.0", "GPU.1", "NPU")

    def __init__(self) -> None:
        self.properties: dict[str, dict[str, Any]] = {}

    def set_property(self, device: str, properties: dict[str, Any]) -> None:
        self.properties[device] = properties

    def compile_model(self, model: Any, device: str) -> None:
        raise RuntimeError(f"Exception from src/core.cpp:1:\nDevice {device} is not registered\n")


@pytest.mark.skipif("GPU" in HAS, reason="there is a GPU here")
@pytest.mark.parametrize(
    ("backend", "device", "name"),
    [
        ("openvino:gpu", "auto", "GPU"),
        ("openvino", "gpu", "GPU"),
        ("auto", "gpu", "GPU"),
        ("openvino:GPU.1", "auto", "GPU.1"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    bundle_path: Path, backend: str, device: str, name: str
) -> None:
    with pytest.raises(ProviderError, match=f"has no device {name} here; it has CPU. It says: .*or choose cpu"):
        VideoLM.open(bundle_path, backend=backend, device=device)


@pytest.mark.skipif("NPU" in HAS, reason="there is an NPU here")
def test_the_reason_is_openvinos_own() -> None:
    with pytest.raises(ProviderError) as caught:
        choose_backend("openvino:npu", "video_encoder")
    reason = str(caught.value).partition("It says: ")[2].partition("; install")[0]
    assert "openvino_intel_npu" in reason or "NPU" in reason
    assert "Exception from src" not in reason.partition("Error:")[0]


def test_a_device_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "Core", FakeCore)
    for text, name in (("gpu", "GPU"), ("gpu.1", "GPU.1"), ("NPU", "NPU")):
        backend = choose_backend("openvino", "decoder", device=text)
        assert backend.name == f"openvino:{text.lower()}"
        assert backend.execution(FP16.decoder).device == name
        assert get_backend(backend.name).name == backend.name
    with pytest.raises(
        ProviderError,
        match=r"no device GPU.7 here; it has CPU, GPU.0, GPU.1, NPU. It says: Device GPU.7 is not reg.*gpu.1 or npu",
    ):
        choose_backend("openvino:gpu.7", "decoder")


def test_auto_stays_on_the_cpu_even_if_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "Core", FakeCore)
    assert choose_backend("auto", "video_encoder").execution(FP16.video_encoder).device == "CPU"
    assert choose_backend("auto", "video_encoder", device="gpu").execution(FP16.video_encoder).device == "GPU"


def test_what_a_device_computes_in_is_said() -> None:
    def computed(name: str, precision: Precision) -> str:
        return str(get_backend(name).execution(precision.decoder))

    assert computed("openvino", FP16) == "fp32 on OpenVINO CPU"
    assert computed("openvino:gpu", FP16) == "fp16 on OpenVINO GPU"
    assert computed("openvino:gpu", FP32) == "fp32 on OpenVINO GPU"
    assert computed("openvino:npu", FP32) == "fp16 on OpenVINO NPU"
    assert computed("openvino:npu", INT8) == "int8 on OpenVINO NPU"
    assert computed("openvino:cpu-bf16", FP16) == "bf16 on OpenVINO CPU"
    assert computed("openvino:cpu-bf16", INT8) == "int8 and bf16 on OpenVINO CPU"
    assert computed("openvino:cpu-bf16", INT4) == "bf16 on OpenVINO CPU"


def test_each_device_gets_the_properties_that_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(openvino, "Core", FakeCore)
    config = toy_config()
    path = tmp_path / "decoder.onnx"
    write_decoder(path, config, Weights.random(config.text), "float16")
    graph = graph_file(path, decoder_io(config), "float16")
    cpu, gpu, npu = (sessions.open_core(graph, 2, device).properties[device] for device in ("CPU", "GPU.1", "NPU"))
    assert (cpu["INFERENCE_NUM_THREADS"], cpu["INFERENCE_PRECISION_HINT"]) == (2, "f32")
    assert gpu == {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f16",
        "NUM_STREAMS": 1,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    assert npu == {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f16"}
    bf16 = sessions.open_core(dataclasses.replace(graph, precision=INT4.decoder), 2, in_bf16=True).properties["CPU"]
    assert (bf16["INFERENCE_PRECISION_HINT"], bf16["DYNAMIC_QUANTIZATION_GROUP_SIZE"]) == ("bf16", 0)
    wide = dataclasses.replace(graph, precision=FP32.decoder)
    assert sessions.open_core(wide, 2, "GPU").properties["GPU"]["INFERENCE_PRECISION_HINT"] == "f32"


def test_a_device_is_named_once() -> None:
    with pytest.raises(UsageError, match="'openvino:npu' and device 'cpu' name two devices"):
        choose_backend("openvino:npu", "decoder", device="cpu")
    with pytest.raises(ProviderError, match="onnxruntime does not run on 'npu'; it runs on cpu"):
        choose_backend("onnxruntime", "decoder", device="npu")
    with pytest.raises(ProviderError, match="onnxruntime does not run on 'gpu'; it runs on cpu"):
        parse_backends("decoder=onnxruntime:gpu")
    assert choose_backend("openvino:cpu", "decoder", device="CPU") is get_backend("openvino")


def test_bf16_is_refused_where_openvino_would_compute_in_fp32_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldCore:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "Core", OldCore)
    with pytest.raises(ProviderError, match=r"does not compute in bf16.* it has FP32, INT8; choose the back"):
        choose_backend("openvino:cpu-bf16", "decoder")


@pytest.mark.skipif("BF16" not in CAPABILITIES, reason="this CPU has no bf16")
def test_bf16_stays_near_the_formula_and_is_not_fp32(tmp_path: Path) -> None:
    """Few tokens: the scores of the toy are large, and their rounding grows from layer to layer."""
    config = toy_config()
    weights = Weights.random(config.text)
    path = tmp_path / "decoder.onnx"
    write_decoder(path, config, weights)
    graph = graph_file(path, decoder_io(config))
    backend = choose_backend("openvino:cpu-bf16", "decoder", precision=graph.precision)
    session = backend.open_decoder(graph, config.text, threads=1, chunk=2).session(1, 5)
    embeds = np.random.default_rng(11).normal(size=(5, 64)).astype(np.float32)
    expected = reference_logits(config.text, weights, embeds)[2:]
    logits = [session.prefill([embeds[:3]], Deadline())[0]]
    logits += [session.step(embeds[i : i + 1])[0] for i in (3, 4)]
    error = np.abs(np.stack(logits) - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 5e-2
