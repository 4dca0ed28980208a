"""``blip3v doctor`` on GPUs, NPUs, their libraries and the back ends: this machine's real state, and each line.

What this machine has not is a finding that a test puts in the place of a query's answer.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openvino
import pytest
from click.testing import CliRunner

from blip3v.commands.doctor import command
from blip3v.doctor import accelerators
from blip3v.doctor.accelerators import examine_accelerators
from blip3v.runtime.backends import backend_names, get_backend

ABSENT = {"CUDA": None, "cuDNN": None, "TensorRT": None, "TensorRT-RTX": None}
GPU = {"name": "NVIDIA H200", "memory_bytes": 139 * 2**30, "compute_capability": "9.0"}
WITH_GPU: dict[str, Any] = {
    "driver": {"version": "580.65.06", "cuda": "13.0", "gpus": [GPU], "problem": ""},
    "system": {**ABSENT, "cuDNN": "9.1.0"},
}
WITHOUT: dict[str, Any] = {
    "driver": {"version": None, "cuda": None, "gpus": [], "problem": "there is no NVIDIA driver (libcuda.so.1)"},
    "system": ABSENT,
}


def finding(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    """Puts findings in the place of the queries; back ends can run here unless there is another answer."""

    def run(function: str, *arguments: str) -> Any:
        name = arguments[0] if arguments else function
        defaults: dict[str, Any] = {"query_nvidia": WITHOUT, "query_openvino": {"CPU": "a processor"}}
        return answers.get(name.replace("-", "_"), defaults.get(name, {name: ""}))

    monkeypatch.setattr(accelerators, "run_apart", run)


def shown() -> list[str]:
    """Lines that the verb prints, each with single spaces; a table may have wrapped them."""
    result = CliRunner().invoke(command, [], catch_exceptions=False, env={"COLUMNS": "200"})
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_this_machine() -> None:
    found = examine_accelerators()
    assert found.openvino == {
        device: openvino.Core().get_property(device, "FULL_DEVICE_NAME").strip()
        for device in openvino.Core().available_devices
    }
    assert found.openvino_note == ""
    assert bool(found.driver.gpus) != bool(found.driver.problem)
    assert {name for name in found.backends if ":" not in name} == set(backend_names())
    assert found.backends["onnxruntime"] == found.backends["openvino"] == ""
    if "GPU" not in found.openvino:
        assert "OpenVINO has no device GPU here" in found.backends["openvino:gpu"]
    if not found.driver.gpus:
        assert "onnxruntime-cuda needs an NVIDIA GPU" in found.backends["onnxruntime-cuda"]
    packages = {package for library in found.libraries for package in library.packages}
    for name in ("tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        assert f"{name.replace('_', '-')} {version}" in packages


def test_a_machine_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    finding(monkeypatch)
    lines = shown()
    assert "NVIDIA driver none" in lines
    assert "NVIDIA GPUs none: there is no NVIDIA driver (libcuda.so.1)" in lines
    assert "cuDNN not installed" in lines
    assert "OpenVINO's devices CPU (a processor)" in lines


def test_driver_gpus_and_libraries_have_their_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packages = {"nvidia-cuda-runtime": "13.0.88", "nvidia_cudnn_cu13": "9.27.0.42", "tensorrt_cu13_libs": "11.4.0.106"}
    for name, version in {**packages, "tensorrt_llm": "1.2.1"}.items():
        metadata = tmp_path / f"{name}-{version}.dist-info/METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    finding(monkeypatch, query_nvidia=WITH_GPU, query_openvino={"CPU": "a processor", "GPU": "Arc (dGPU)"})
    lines = shown()
    assert "NVIDIA driver 580.65.06, runs CUDA up to 13.0" in lines
    assert "NVIDIA GPUs NVIDIA H200 (139 GiB, 9.0)" in lines
    assert "CUDA nvidia-cuda-runtime 13.0.88" in lines
    assert "cuDNN nvidia-cudnn-cu13 9.27.0.42, 9.1.0 of the system" in lines
    assert "TensorRT tensorrt-cu13-libs 11.4.0.106" in lines
    assert "OpenVINO's devices CPU (a processor), GPU (Arc (dGPU))" in lines


def test_what_is_free_on_a_gpu_is_shown_and_a_jetson_has_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    orin = {"name": "Orin", "memory_bytes": 2**35, "compute_capability": "8.7", "is_integrated": True}
    gpus = [GPU | {"free_bytes": 120 * 2**30}, orin]
    finding(monkeypatch, query_nvidia={**WITH_GPU, "driver": {**WITH_GPU["driver"], "gpus": gpus}})
    line = "NVIDIA GPUs NVIDIA H200 (120 GiB free of 139 GiB, 9.0), Orin (the machine's memory, 8.7)"
    assert line in shown()


def test_what_a_back_end_lacks_is_one_line_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    no_libraries = "ONNX Runtime cannot use the GPU; install both: `pip install onnxruntime-gpu[cuda,cudnn]`"
    no_openvino = "OpenVINO cannot be imported; install it: `pip install blip3v[openvino]`"
    finding(
        monkeypatch,
        onnxruntime_cuda={"onnxruntime-cuda": no_libraries},
        openvino={"openvino": no_openvino, "openvino:gpu": no_openvino},
        query_openvino="OpenVINO cannot be imported (No module named 'openvino')",
    )
    lines = shown()
    assert "--backend onnxruntime yes" in lines
    assert "--backend onnxruntime-cuda no" in lines
    assert f"--backend onnxruntime-cuda: {no_libraries}" in lines
    assert f"--backend openvino, --backend openvino:gpu: {no_openvino}" in lines
    assert "OpenVINO's devices none: OpenVINO cannot be imported (No module named 'openvino')" in lines


def test_a_query_that_dies_is_said_and_the_rest_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    died = "the query ended with code -11: no message"
    finding(monkeypatch, query_nvidia=died, query_openvino=died, openvino=died)
    result = CliRunner().invoke(command, ["--json"], catch_exceptions=False)
    report = json.loads(result.stdout)["accelerators"]
    assert report["driver"]["problem"] == report["openvino_note"] == report["backends"]["openvino"] == died
    assert report["backends"]["onnxruntime"] == ""
    assert [library["system"] for library in report["libraries"]] == [None] * 4


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the query ended with code -11: no message"),
        ("raise ValueError('no such driver')", "the query ended with code 1: ValueError: no such driver"),
        ("print('[')", "the query gave no answer that can be read: Expecting value: line 1 column 2 (char 1)"),
        ("", "the query gave no answer that can be read: list index out of range"),
    ],
)
def test_a_process_that_dies_becomes_a_note(monkeypatch: pytest.MonkeyPatch, body: str, said: str) -> None:
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: real([sys.executable, "-c", body], **options))
    assert accelerators.run_apart("query_nvidia") == said


def test_a_process_that_hangs_becomes_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*arguments: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("python", options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert accelerators.run_apart("query_nvidia") == "the query did not end within 60 s"


@pytest.mark.parametrize(
    ("function", "number", "version"),
    [
        ("cudaRuntimeGetVersion", 13020, "13.2"),
        ("cudnnGetVersion", 92700, "9.27.0"),
        ("cudnnGetVersion", 8907, "8.9.7"),
        ("getInferLibVersion", 110400, "11.4.0"),
        ("getInferLibVersion", 8601, "8.6.1"),
    ],
)
def test_versions_of_libraries_are_read(
    monkeypatch: pytest.MonkeyPatch, function: str, number: int, version: str
) -> None:
    class FakeLibrary:
        """Gives its version as the real one does: CUDA's through a pointer, the others as a result."""

        def __getattr__(self, name: str) -> Any:
            assert name == function

            def call(pointer: Any = None) -> int:
                if pointer is None:
                    return number
                pointer._obj.value = number
                return 0

            return call

    def load(file: str) -> FakeLibrary:
        if file == "newest":
            raise OSError("cannot open shared object file")
        return FakeLibrary()

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert accelerators._loaded(("newest", "older"), function) == version
    assert accelerators._loaded(("newest",), function) is None


def test_every_back_end_is_asked_on_each_of_its_devices() -> None:
    for name in backend_names():
        found = accelerators.query_backend(name)
        devices = get_backend(name).devices
        assert list(found) == [get_backend(f"{name}:{device}").name for device in devices]
