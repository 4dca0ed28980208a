"""What opening a bundle refuses, and how: packages, devices, memory, random weights, other graphs."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config, write_decoder, write_video_encoder
from toy_parts import cpu_backends, graph_file

from blip3v.bundle import open_bundle
from blip3v.bundle.graph_io import decoder_io, video_encoder_io
from blip3v.errors import (
    ArtifactError,
    ArtifactMissingError,
    BackendError,
    OutOfMemoryError,
    ProviderError,
    RequestError,
    UsageError,
)
from blip3v.extras import pip_line
from blip3v.runtime import VideoLM, memory
from blip3v.runtime.backends import get_backend, onnxruntime
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.engine_errors import engine_errors
from blip3v.runtime.opening import estimate_open, graph_files


def _pretend_installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name.startswith("onnxruntime"):
            if name not in names:
                raise importlib.metadata.PackageNotFoundError(name)
            return real("numpy")
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)


def test_without_onnxruntime_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch, bundle_path: Path) -> None:
    _pretend_installed(monkeypatch)
    real = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ProviderError, match=re.escape(pip_line("cpu"))):
        VideoLM.open(bundle_path, backend="onnxruntime")


def test_with_both_packages_the_pip_lines_are_given(monkeypatch: pytest.MonkeyPatch, bundle_path: Path) -> None:
    _pretend_installed(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    with pytest.raises(ProviderError, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        VideoLM.open(bundle_path, backend="onnxruntime")


@pytest.mark.parametrize("device", ["tpu", "xpu.1"])
def test_a_device_that_no_back_end_runs_on_is_an_error(bundle_path: Path, device: str) -> None:
    with pytest.raises(UsageError, match=f"no back end runs on device '{device}'; allowed: auto, cpu"):
        VideoLM.open(bundle_path, device=device)


@pytest.mark.parametrize("threads", [0, -1, True, 1.5], ids=str)
def test_threads_must_be_a_count(bundle_path: Path, threads: Any) -> None:
    with pytest.raises(UsageError, match="threads"):
        VideoLM.open(bundle_path, threads=threads)


@pytest.mark.parametrize("backend", ["auto", *cpu_backends()])
def test_more_threads_than_cpus_are_refused(monkeypatch: pytest.MonkeyPatch, bundle_path: Path, backend: str) -> None:
    """300 threads took 35 s on two cores, 100,000 did not end."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(UsageError, match=r"threads is 3; this machine has 2 logical CPUs.*leave `threads` out"):
        VideoLM.open(bundle_path, backend=backend, threads=3)
    VideoLM.open(bundle_path, backend=backend, threads=2).close()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    VideoLM.open(bundle_path, backend=backend, threads=3).close()


def test_random_weights_answer_only_when_told(tmp_path: Path, film: np.ndarray) -> None:
    config = toy_config()
    path = write_bundle(tmp_path / "random", config, Weights.random(config.text), random_init=True)
    with pytest.raises(UsageError, match="random weights"):
        VideoLM.open(path)
    with VideoLM.open(path, allow_random=True, threads=1) as lm:
        assert lm.ask(film, "Why?").usage.num_prompt_tokens > 8


def test_a_model_that_does_not_fit_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch, bundle_path: Path) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 100 * 2**20)
    with pytest.raises(OutOfMemoryError, match=r"needs about \d\S* MiB of memory and 100 MiB are free"):
        VideoLM.open(bundle_path)


def test_a_request_that_does_not_fit_is_refused_with_numbers(
    monkeypatch: pytest.MonkeyPatch, lm: VideoLM, film: np.ndarray
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**14)
    with pytest.raises(OutOfMemoryError, match=r"a cache of 1 x \d+ tokens needs about .* and 16\.0 KiB are free; ask"):
        lm.ask_batch([(film, "Why?")] * 40)


def test_the_estimate_counts_weights_and_cache(bundle_path: Path) -> None:
    bundle = open_bundle(bundle_path)
    a_token = 2 * 3 * 2 * 16 * 4
    whole, half = (estimate_open(bundle, max_context=size, backend="onnxruntime") for size in (None, 128))
    assert whole.memory_bytes - half.memory_bytes == 128 * a_token
    weights_bytes = sum(onnxruntime.BACKEND.footprint(graph).weights_bytes for graph in graph_files(bundle).values())
    assert half.memory_bytes > 192 * 2**20 + weights_bytes + 128 * a_token
    assert VideoLM.estimate(bundle_path, max_context=128, backend="onnxruntime").memory_bytes == half.memory_bytes


def test_the_estimate_counts_the_tokens_of_an_ordinary_question(tmp_path: Path) -> None:
    """It counted the next power of two of them."""
    config = toy_config(max_context=1024)
    bundle = open_bundle(write_bundle(tmp_path / "long", config, Weights.random(config.text)))
    ordinary, short = (estimate_open(bundle, max_context=size, backend="onnxruntime") for size in (None, 128))
    assert ordinary.memory_bytes - short.memory_bytes == (8 + 256 - 128) * (2 * 3 * 2 * 16 * 4)


def test_a_smaller_context_is_kept(bundle_path: Path, film: np.ndarray) -> None:
    with VideoLM.open(bundle_path, max_context=64) as lm, pytest.raises(RequestError, match="the context has 64"):
        lm.ask(film, "Why? " * 60)


@pytest.mark.parametrize(("size", "message"), [(0, "at least 1"), (100_000, "the model's context has 256")])
def test_a_context_that_the_model_does_not_have_is_refused(bundle_path: Path, size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VideoLM.open(bundle_path, max_context=size)


def test_a_folder_that_is_no_bundle_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        VideoLM.open(tmp_path)


def _changed(path: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: setattr(graph.input[0], "name", "embeds"), "embeds, inputs_embeds"),
        (lambda graph: graph.output.pop(), "other outputs"),
        (lambda graph: setattr(graph.input[1].type.tensor_type, "elem_type", onnx.TensorProto.INT32), "logits_index"),
        (lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 65), "inputs_embeds"),
        (
            lambda graph: setattr(graph.input[4].type.tensor_type, "elem_type", onnx.TensorProto.FLOAT16),
            "past.0.key is",
        ),
    ],
    ids=["name", "missing-output", "dtype", "width", "mixed"],
)
def test_a_graph_with_other_inputs_or_outputs_is_refused(
    backend: str, tmp_path: Path, change: Any, message: str
) -> None:
    config = toy_config()
    path = tmp_path / "decoder.onnx"
    write_decoder(path, config, Weights.random(config.text))
    # The engine may refuse such a graph itself; both ways it is our error, and never a wrong answer.
    with pytest.raises((ArtifactError, BackendError), match=f"{message}|(ONNX Runtime|OpenVINO) failed"):
        get_backend(backend).open_decoder(graph_file(_changed(path, change), decoder_io(config)), config.text)


def test_a_file_that_is_not_a_graph_is_a_backend_error(backend: str, tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(b"not a graph")
    config = toy_config()
    with pytest.raises(BackendError, match=r"opening .*decoder\.onnx: (ONNX Runtime|OpenVINO) failed"):
        get_backend(backend).open_decoder(graph_file(tmp_path / "decoder.onnx", decoder_io(config)), config.text)


def test_large_weights_stay_mapped_and_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config()
    path = tmp_path / "video_encoder.onnx"
    write_video_encoder(path, config)
    frames = np.random.default_rng(0).normal(size=(2, 4, 3, 16, 16)).astype(np.float32)
    outputs = []
    for mapped in (False, True):
        monkeypatch.setattr(onnxruntime, "use_mmap", lambda size, precision, mapped=mapped: mapped)
        encoder = onnxruntime.BACKEND.open_video_encoder(graph_file(path, video_encoder_io(config)), threads=1)
        outputs.append(encoder.run(frames, Deadline())["video_tokens"])
    assert np.allclose(outputs[0], outputs[1], atol=1e-5)


class ForeignError(Exception):
    """As an engine's own class."""

    __module__ = "engine.capi"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("Failed to allocate memory for requested buffer of size 1"), OutOfMemoryError),
        (ForeignError("std::bad_alloc"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
        (ForeignError("no such operator"), BackendError),
        (RuntimeError("no such operator"), BackendError),
        (ValueError("no such provider"), BackendError),
        (TypeError("incompatible constructor arguments"), BackendError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), BackendError),
        (RequestError("ours"), RequestError),
        (KeyError("ours, not theirs"), KeyError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=lambda value: "" if isinstance(value, type) else repr(value)[:30],
)
def test_what_engines_raise_becomes_our_error(raised: BaseException, expected: type[BaseException]) -> None:
    """Errors of the types UnicodeError, ValueError and TypeError went through to the caller."""
    with pytest.raises(expected) as caught, engine_errors("Engine", "engine", "running the decoder"):
        raise raised
    assert type(caught.value) is expected
    if issubclass(expected, BackendError):
        assert str(caught.value).startswith("running the decoder: ")
        assert caught.value.__cause__ is raised


def test_a_path_that_is_not_utf_8_is_refused_before_the_engine_sees_it(
    backend: str, bundle_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was a UnicodeEncodeError of the engine, after ONNX Runtime had printed to stdout and tried again."""
    path = shutil.copytree(bundle_path, tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(UsageError, match=r"caf\\udce9/onnx/\w+\.onnx' is not valid UTF-8, and .*; rename the folder"):
        VideoLM.open(path, backend=backend)
    assert capfd.readouterr().out == ""
