"""OpenVINO's devices: named as its plugins name them, and refused with its own reason where there is none.

No graph runs on a GPU or NPU here. ``FakeCore`` stands for the missing hardware: an OpenVINO that lists such devices.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import openvino
import pytest
from toy_graphs import Weights, toy_config, write_decoder
from toy_parts import graph_file

from blip3v.bundle import Precision
from blip3v.bundle.graph_io import decoder_io
from blip3v.errors import ProviderError, UsageError
from blip3v.runtime import VideoLM
from blip3v.runtime.backends import choose_backend, get_backend, parse_backends
from blip3v.runtime.backends.openvino import sessions

FP16, FP32, INT8 = map(Precision.parse, ("fp16", "fp32", "int8"))
HAS = openvino.Core().available_devices


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
