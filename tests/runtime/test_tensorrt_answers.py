"""Whole answers on the fake TensorRT, token by token as ONNX Runtime gives them on the same bundle; and refusals."""

from __future__ import annotations

import dataclasses
import gc
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import FakeDevice
from toy_bundle import write_bundle
from toy_engines import LIMITS, write_engines
from toy_graphs import Weights, toy_config

from blip3v.bundle import open_bundle
from blip3v.bundle.engines import LIBRARY_NAMES, Library
from blip3v.bundle.targets import Target
from blip3v.errors import (
    ArtifactHashError,
    ArtifactMissingError,
    BackendError,
    EngineMismatchError,
    OutOfMemoryError,
    ProviderError,
    RequestError,
)
from blip3v.runtime import GenerationOptions, VideoLM, tensorrt_library
from blip3v.runtime.backends import choose_backend, get_backend
from blip3v.runtime.opening import graph_files

TARGETS: dict[Library, Target] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
QUESTIONS = ["Which way does the red ball move?", "Why?", "the circle turns left and then it moves right again"]


@pytest.fixture(scope="module")
def built(gpu: FakeDevice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle for the library with engines of both graphs."""
    path = write(tmp_path_factory.mktemp("bundles") / "toy", gpu)
    write_engines(path / "engines", graph_files(open_bundle(path)), library=gpu.library)
    return path


def write(folder: Path, gpu: FakeDevice, seed: int = 0) -> Path:
    """A toy bundle without engines."""
    config = toy_config()
    target = TARGETS[gpu.library]
    return write_bundle(folder, config, Weights.random(config.text, seed=seed), graphs_for=target)


@pytest.fixture(scope="module")
def on_tensorrt(built: Path) -> Iterator[VideoLM]:
    with VideoLM.open(built, backend="tensorrt") as opened:
        yield opened


@pytest.fixture(scope="module")
def on_onnxruntime(built: Path) -> Iterator[VideoLM]:
    with VideoLM.open(built, backend="onnxruntime", threads=1) as opened:
        yield opened


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to be damaged; the graphs that its engines name stay where they are."""
    return Path(shutil.copytree(built, tmp_path / "toy"))


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_that_of_onnx_runtime(
    on_tensorrt: VideoLM, on_onnxruntime: VideoLM, film: np.ndarray, question: str
) -> None:
    options = GenerationOptions(max_new_tokens=40, ignore_stop_token=True, logprobs=0)
    found, expected = (lm.ask(film, question, options=options) for lm in (on_tensorrt, on_onnxruntime))
    assert found.token_ids == expected.token_ids
    assert len(found.token_ids) == 40
    assert found.logprobs is not None
    assert expected.logprobs is not None
    pairs = zip(found.logprobs, expected.logprobs, strict=True)
    assert all(abs(one.logprob - other.logprob) < 1e-3 for one, other in pairs)


def test_a_batch_and_a_conversation_are_those_of_onnx_runtime(
    on_tensorrt: VideoLM, on_onnxruntime: VideoLM, film: np.ndarray
) -> None:
    found = []
    for lm in (on_tensorrt, on_onnxruntime):
        answers = lm.ask_batch([(film, question) for question in QUESTIONS])
        with lm.chat(film) as chat:
            answers += [chat.ask(question) for question in QUESTIONS]
        found.append([answer.token_ids for answer in answers])
    assert found[0] == found[1]


def test_an_answer_names_the_engine_that_computed_it(on_tensorrt: VideoLM, gpu: FakeDevice, film: np.ndarray) -> None:
    report = on_tensorrt.ask(film, "Why?").backend
    name = LIBRARY_NAMES[gpu.library]
    for execution in (report.video_encoder, report.decoder):
        assert (execution.backend, execution.engine, execution.version) == ("tensorrt", name, gpu.version)
        assert str(execution) == f"fp32 on {name} Fake GPU"


def test_auto_takes_tensorrt_where_there_is_a_gpu_and_passes_it_over_where_there_is_none(
    gpu: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_backend("auto", "decoder", target="tensorrt-rtx").name == "tensorrt"
    assert choose_backend("auto", "decoder", device="cuda", target="tensorrt").name == "tensorrt"
    monkeypatch.setattr(gpu, "num_devices", 0)
    assert choose_backend("auto", "decoder", target="tensorrt-rtx").name == "onnxruntime"


def test_without_a_gpu_it_is_refused(built: Path, gpu: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "num_devices", 0)
    with pytest.raises(ProviderError, match="CUDA finds no GPU; `nvidia-smi`"):
        VideoLM.open(built, backend="tensorrt")
    gpu.fails["cudaGetDeviceCount"] = "cudaErrorInsufficientDriver"
    with pytest.raises(ProviderError, match=r"no GPU that CUDA can use .*InsufficientDriver.*`device='cpu'`"):
        VideoLM.open(built, backend="tensorrt")


def test_without_its_packages_the_line_to_install_is_given(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(ProviderError, match=r"cuda-bindings cannot be imported .*install cuda-bindings`"):
        VideoLM.open(built, backend="tensorrt")
    library = sys.modules["blip3v.runtime.backends.tensorrt.library"]
    monkeypatch.setattr(library, "is_installed", lambda library: False)
    assert not get_backend("tensorrt").is_installed()
    with pytest.raises(ProviderError, match=r"TensorRT is not installed; install it: `.*tensorrt.*tensorrt-rtx"):
        VideoLM.open(built, backend="tensorrt")


def test_a_bundle_without_engines_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "engines")
    with pytest.raises(ArtifactMissingError, match=r"has no engines; run `blip3v build"):
        VideoLM.open(copy, backend="tensorrt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "1.6.0.1"}, r"with {name} 1\.6\.0\.1 .*here is {name} {version}.*blip3v build"),
        ({"capabilities": ("8.9", "12.0")}, r"compute capability 8\.9, 12\.0 .*here is .*capability 8\.6"),
        ({"library": "other"}, r"here is {name} {version}"),
    ],
    ids=["version", "gpu", "library"],
)
def test_an_engine_that_was_built_for_something_else_is_refused(
    copy: Path, gpu: FakeDevice, change: dict[str, Any], message: str
) -> None:
    other = next(library for library in TARGETS if library != gpu.library)
    library = other if "library" in change else gpu.library
    shutil.rmtree(copy / "engines")
    write_engines(copy / "engines", graph_files(open_bundle(copy)), **change | {"library": library})
    wanted = message.format(name=LIBRARY_NAMES[gpu.library], version=re.escape(gpu.version))
    with pytest.raises(EngineMismatchError, match=wanted):
        VideoLM.open(copy, backend="tensorrt")


def test_an_engine_of_a_bundle_that_was_edited_since_is_refused(copy: Path, gpu: FakeDevice, tmp_path: Path) -> None:
    edited = write(tmp_path / "edited", gpu, seed=7)
    shutil.copytree(copy / "engines", edited / "engines")
    with pytest.raises(EngineMismatchError, match=r"from another decoder: the bundle was exported again since"):
        VideoLM.open(edited, backend="tensorrt")


@pytest.mark.parametrize("graph", ["video_encoder", "decoder"])
def test_a_truncated_or_changed_engine_is_refused(copy: Path, graph: str) -> None:
    (path,) = copy.glob(f"engines/*/{graph}.engine")
    plan = path.read_bytes()
    path.write_bytes(plan[:-1])
    with pytest.raises(ArtifactHashError, match=rf"has {len(plan) - 1} bytes; {len(plan)} were built"):
        VideoLM.open(copy, backend="tensorrt")
    path.write_bytes(plan.replace(b"true", b"fals"))
    with pytest.raises(ArtifactHashError, match="not the engine that was built"):
        VideoLM.open(copy, backend="tensorrt")


def test_what_tensorrt_says_of_a_plan_that_it_does_not_load_is_told(
    copy: Path, gpu: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = sys.modules["toy_engines"]
    monkeypatch.setattr(engines.tensorrt_stand_in, "plan_bytes", lambda *args, **kwargs: b"another magic")
    shutil.rmtree(copy / "engines")
    write_engines(copy / "engines", graph_files(open_bundle(copy)), library=gpu.library)
    with pytest.raises(BackendError, match=r"opening .*engine: TensorRT\S* failed: reading the plan: .*kMAGIC_TAG"):
        VideoLM.open(copy, backend="tensorrt")


def test_of_several_engines_the_one_that_fits_is_taken(copy: Path, gpu: FakeDevice, film: np.ndarray) -> None:
    graphs = graph_files(open_bundle(copy))
    write_engines(copy / "engines", graphs, capabilities=("8.9",), library=gpu.library)
    write_engines(copy / "engines", graphs, version="1.5.0.1", library=gpu.library)
    with VideoLM.open(copy, backend="tensorrt") as lm:
        assert lm.ask(film, "Why?").usage.num_new_tokens > 0


def test_a_request_that_does_not_fit_the_engine_is_refused_with_its_limits(
    copy: Path, gpu: FakeDevice, film: np.ndarray
) -> None:
    shutil.rmtree(copy / "engines")
    limits = dataclasses.replace(LIMITS, max_seq_len=64)
    write_engines(copy / "engines", graph_files(open_bundle(copy)), limits=limits, library=gpu.library)
    too_long = pytest.raises(RequestError, match=r"take \d+ tokens; the engine holds at most 64")
    with VideoLM.open(copy, backend="tensorrt") as lm, too_long:
        lm.ask(film, "Why?", options=GenerationOptions(max_new_tokens=100))


def test_more_questions_than_the_engine_has_rows_are_answered_in_turns(
    copy: Path, gpu: FakeDevice, on_onnxruntime: VideoLM, film: np.ndarray
) -> None:
    shutil.rmtree(copy / "engines")
    limits = dataclasses.replace(LIMITS, max_batch_size=2)
    write_engines(copy / "engines", graph_files(open_bundle(copy)), limits=limits, library=gpu.library)
    asked = [(film, question) for question in QUESTIONS]
    with VideoLM.open(copy, backend="tensorrt") as lm:
        found, expected = lm.ask_batch(asked), on_onnxruntime.ask_batch(asked)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]


def test_a_gpu_without_memory_is_an_error_with_numbers(built: Path, gpu: FakeDevice, film: np.ndarray) -> None:
    with VideoLM.open(built, backend="tensorrt") as lm:
        gpu.fails["cudaMalloc"] = "cudaErrorMemoryAllocation"
        with pytest.raises(OutOfMemoryError, match=r"the GPU has no \S+ \S+ free for a cache of 1 x 256 tokens"):
            lm.ask(film, "Why?")


def test_closing_gives_all_memory_back(built: Path, gpu: FakeDevice, film: np.ndarray) -> None:
    gc.collect()  # what failed in earlier tests
    before = gpu.in_use_bytes(), gpu.in_use_bytes("pinned")
    with VideoLM.open(built, backend="tensorrt") as lm:
        lm.ask(film, "Why?")
        assert gpu.in_use_bytes() > before[0]
    assert (gpu.in_use_bytes(), gpu.in_use_bytes("pinned")) == before


def test_kernels_are_kept_by_the_library_that_compiles_them_when_it_runs(copy: Path, gpu: FakeDevice) -> None:
    for path in copy.glob("engines/*/*.kernels"):
        path.unlink()
    VideoLM.open(copy, backend="tensorrt").close()
    assert len(list(copy.glob("engines/*/*.kernels"))) == (2 if gpu.library == "tensorrt_rtx" else 0)


def test_what_tensorrt_says_of_a_lack_of_memory_is_told_as_such(
    built: Path, gpu: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(engine: Any, strategy: Any) -> None:
        engine._logger.log(engine._real.ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")

    monkeypatch.setattr(sys.modules["tensorrt_stand_in"]._Engine, "create_execution_context", fails)
    with pytest.raises(OutOfMemoryError, match=r"opening .*engine: TensorRT\S* ran out of memory: .*9 bytes"):
        VideoLM.open(built, backend="tensorrt")


def test_of_two_installed_libraries_the_one_that_built_the_engines_is_loaded_alone(
    built: Path, gpu: FakeDevice, film: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other,) = TARGETS.keys() - {gpu.library}
    names = dict(tensorrt_library._MODULES) | {other: ("json.tool", "absent")}  # a module that nothing else loads
    monkeypatch.setattr(tensorrt_library, "_MODULES", {library: names[library] for library in sorted(names)})
    monkeypatch.delitem(sys.modules, "json.tool", raising=False)
    with VideoLM.open(built, backend="tensorrt") as lm:
        assert lm.ask(film, "Why?").backend.decoder.version == gpu.version
    assert "json.tool" not in sys.modules
