"""ONNX Runtime on CUDA without a GPU: what it refuses for real, and its sessions over the CPU's memory.

``FakeCudaBackend`` stands in for a GPU; that its sessions keep every promise of a session is in
``test_decoder_session.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, reference_logits, toy_config, write_decoder, write_video_encoder
from toy_parts import FAKE_CUDA, FakeCudaBackend, check_arrays_of_torch_on_a_gpu, graph_file, open_backend

from blip3v.bundle import Precision
from blip3v.bundle.graph_io import decoder_io, video_encoder_io
from blip3v.errors import OutOfMemoryError, ProviderError
from blip3v.extras import pip_line
from blip3v.runtime import GenerationOptions, VideoLM, nvidia
from blip3v.runtime.backends import choose_backend, get_backend, onnxruntime_cuda
from blip3v.runtime.backends.onnxruntime_cuda import PROVIDER, check_placement
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.device_cache import DeviceCache
from blip3v.runtime.onnxruntime_graph import OpenGraph, session_options

NAME = "onnxruntime-cuda"
HAS_CUDA = PROVIDER in onnxruntime.get_available_providers()
plain_build = pytest.mark.skipif(HAS_CUDA, reason="this build of ONNX Runtime has CUDA")
A_GPU = nvidia.Gpu(name="Fake GPU", memory_bytes=2**30, compute_capability="8.6")


@pytest.fixture
def fake_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of ONNX Runtime that lists CUDA."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER, "CPUExecutionProvider"])


@pytest.fixture
def fake_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A driver that lists a GPU."""
    monkeypatch.setattr(nvidia, "query", lambda: nvidia.Driver(version="1.0", cuda="13.0", gpus=(A_GPU,), problem=""))
    onnxruntime_cuda._cuda_problem.cache_clear()
    yield
    onnxruntime_cuda._cuda_problem.cache_clear()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "BACKEND", FakeCudaBackend())


@pytest.fixture(scope="module")
def fp16_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = toy_config()
    folder = tmp_path_factory.mktemp("bundles") / "fp16"
    return write_bundle(folder, config, Weights.random(config.text), precision="fp16")


@plain_build
@pytest.mark.usefixtures("fake_driver")
@pytest.mark.parametrize(("backend", "device"), [(NAME, "auto"), ("auto", "cuda"), (f"{NAME}:cuda", "CUDA")])
def test_a_build_without_cuda_is_refused_with_the_lines_that_replace_it(
    fp16_path: Path, backend: str, device: str
) -> None:
    with pytest.raises(ProviderError) as caught:
        VideoLM.open(fp16_path, backend=backend, device=device)
    message = str(caught.value)
    assert f"has no {PROVIDER}; it has" in message
    assert "uninstall -y onnxruntime" in message
    assert pip_line("cuda") in message


@pytest.mark.skipif(bool(nvidia.query().gpus), reason="there is a GPU here")
def test_without_a_driver_it_is_refused_with_the_drivers_reason() -> None:
    with pytest.raises(ProviderError, match="needs an NVIDIA GPU: there is no NVIDIA driver"):
        choose_backend(NAME, "decoder")


@plain_build
@pytest.mark.usefixtures("fake_provider", "fake_driver")
def test_without_the_libraries_of_cuda_it_is_refused_with_onnxruntimes_reason(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProviderError, match=r"the Fake GPU: .*memory on the device.*onnxruntime-gpu\[cuda,cudnn\]"):
        choose_backend(NAME, "decoder")
    # The GPU build prints which libraries it does not find.
    onnxruntime_cuda._cuda_problem.cache_clear()
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublasLt.so.13: no such file"))
    with pytest.raises(ProviderError, match=r"Failed to load libcublasLt.so.13: no such file; it needs CUDA"):
        choose_backend(NAME, "decoder")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("precision", "graph", "reason"),
    [
        ("fp16", "decoder", None),
        ("fp16+kv-int8", "decoder", None),
        ("fp16", "video_encoder", None),
        ("fp32", "video_encoder", None),
        ("int8-weight", "video_encoder", None),
        ("int8", "video_encoder", "no product of int8 by int8"),
        ("int8", "decoder", "no product of int8 by int8"),
        ("fp32", "decoder", "takes float16, and this one has float32"),
        ("int8-weight", "decoder", "takes float16, and this one has float32"),
        ("int4", "decoder", "takes float16, and this one has float32"),
    ],
)
def test_what_cuda_does_not_compute_is_refused_by_name(precision: str, graph: Any, reason: str | None) -> None:
    spec = Precision.parse(precision).graphs[graph]
    refusal = get_backend(NAME).refusal(spec)
    if reason is None:
        assert refusal is None
        return
    assert refusal is not None
    assert spec.name in refusal
    assert reason in refusal
    assert "export with the precision fp16, or choose the back end onnxruntime or openvino" in refusal
    with pytest.raises(ProviderError, match=reason):
        choose_backend(NAME, graph, precision=spec)
    for device in ("auto", "cpu"):
        assert choose_backend("auto", graph, device, precision=spec).name != NAME


def test_a_bundle_that_cuda_does_not_compute_is_refused_before_anything_is_opened(bundle_path: Path) -> None:
    with pytest.raises(ProviderError, match="onnxruntime-cuda does not run a decoder in fp32"):
        VideoLM.open(bundle_path, backend=f"video_encoder=onnxruntime,decoder={NAME}")
    with pytest.raises(ProviderError, match="onnxruntime-cuda does not run a decoder in fp32"):
        choose_backend("auto", "decoder", "cuda", precision=Precision.parse("fp32").decoder)


def test_auto_takes_it_where_it_is_installed_and_computes_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCudaBackend()
    monkeypatch.setattr(onnxruntime_cuda, "BACKEND", fake)
    monkeypatch.setattr(fake, "is_installed", lambda: True)
    monkeypatch.setattr(fake, "refusal", get_backend("openvino").refusal)
    fp16, int8 = Precision.parse("fp16").decoder, Precision.parse("int8").decoder
    assert choose_backend("auto", "decoder", precision=fp16).name == NAME
    assert choose_backend("auto", "decoder", "cpu", precision=fp16).name == "onnxruntime"
    monkeypatch.setattr(fake, "refusal", onnxruntime_cuda.OnnxRuntimeCudaBackend().refusal)
    assert choose_backend("auto", "decoder", precision=int8).name == "onnxruntime"
    monkeypatch.setattr(fake, "is_installed", lambda: False)
    assert choose_backend("auto", "decoder", precision=fp16).name == "onnxruntime"


def test_it_counts_as_installed_only_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend(NAME)
    monkeypatch.setattr(onnxruntime_cuda, "package_version", lambda name: "1.31.1")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER])
    monkeypatch.setattr(nvidia, "query", lambda: nvidia.Driver(version=None, cuda=None, gpus=(), problem="none"))
    assert not backend.is_installed()
    monkeypatch.setattr(nvidia, "query", lambda: nvidia.Driver(version=None, cuda="13.0", gpus=(A_GPU,), problem=""))
    assert backend.is_installed()
    monkeypatch.setattr(onnxruntime_cuda, "package_version", lambda name: None)
    assert not backend.is_installed()


def test_what_it_computes_in_is_said() -> None:
    backend = get_backend(NAME)
    for precision, dtype in (("fp16", "fp16"), ("fp32", "fp32"), ("int8-weight", "fp32 by int8")):
        execution = backend.execution(Precision.parse(precision).video_encoder)
        assert str(execution) == f"{dtype} on ONNX Runtime CUDA"
    assert backend.layer_dtype(Precision.parse("fp16").decoder, "float32", None, 64) == "fp32"


@pytest.mark.usefixtures("fake_cuda")
def test_answers_are_token_by_token_those_of_the_cpu(fp16_path: Path, film: np.ndarray) -> None:
    def answers(backend: str) -> list[tuple[int, ...]]:
        with VideoLM.open(fp16_path, backend=backend, threads=1) as lm:
            video = lm.encode(film)
            chat = lm.chat(video)
            found = [chat.ask("Which way?"), chat.ask("Why? " * 12)]
            found += lm.ask_batch([(video, "Why?"), (video, "Which way does the circle turn?"), (video, "What?")])
            found.append(lm.ask(video, "What?", options=GenerationOptions(temperature=1.0, seed=3)))
            assert {answer.backend.decoder.backend for answer in found} == {backend}
            return [answer.token_ids for answer in found]

    assert answers(NAME) == answers("onnxruntime")


def test_a_graph_of_which_operators_stay_on_the_cpu_is_refused_with_their_names(tmp_path: Path) -> None:
    """Asked for CUDA, ONNX Runtime leaves what it has no kernel for to the CPU. Here it leaves all of it."""
    config = toy_config()
    write_decoder(tmp_path / "decoder.onnx", config, Weights.random(config.text))
    write_video_encoder(tmp_path / "video_encoder.onnx", config)
    graphs = [("decoder.onnx", decoder_io(config), "3 GroupQueryAttention")]
    graphs.append(("video_encoder.onnx", video_encoder_io(config), "1 MatMul"))
    for name, io, listed in graphs:
        graph = graph_file(tmp_path / name, io)
        options = session_options(1)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        opened = OpenGraph(graph, options)
        check_placement(opened, graph, "CPUExecutionProvider")
        with pytest.raises(ProviderError, match=rf"{name}: {PROVIDER} has no kernel for .*{listed}"):
            check_placement(opened, graph, PROVIDER)


@plain_build
def test_another_provider_than_the_one_asked_for_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime takes the CPU instead of a provider that it cannot load, and says so in a warning at most."""
    config = toy_config()
    path = tmp_path / "decoder.onnx"
    write_decoder(path, config, Weights.random(config.text))
    graph = graph_file(path, decoder_io(config))
    expected = rf"was to run on {PROVIDER} and ONNX Runtime took CPUExecutionProvider; install"
    with pytest.warns(UserWarning, match=PROVIDER), pytest.raises(ProviderError, match=expected):
        OpenGraph(graph, session_options(1), PROVIDER)


def test_the_cache_stays_where_it_is_until_it_has_to_grow(tmp_path: Path, rng: np.random.Generator) -> None:
    config = toy_config()
    path = tmp_path / "decoder.onnx"
    write_decoder(path, config, Weights.random(config.text))
    decoder: Any = open_backend(FAKE_CUDA).open_decoder(graph_file(path, decoder_io(config)), config.text, threads=1)
    session = decoder.session(2, 100)
    cache: DeviceCache = session.cache

    def addresses() -> list[int]:
        return [value.data_ptr() for pair in cache._layers for value in pair]

    assert cache.capacity == 128
    before = addresses()
    session.prefill([rng.normal(size=(n, 64)).astype(np.float32) for n in (30, 5)], Deadline())
    session.step(rng.normal(size=(2, 64)).astype(np.float32))
    session.reserve(128)
    assert addresses() == before
    keys, _ = cache.layer(0, 0, 2)
    assert keys[0, :, :31].any(axis=(0, 2)).all()
    assert not keys[1, :, 31:].any()
    session.reserve(129)
    assert cache.capacity == 192
    assert np.array_equal(cache.layer(0, 0, 2)[0][:, :, :31], keys[:, :, :31])
    session.drop_row(0)
    session.reserve(193)
    assert np.array_equal(cache.layer(0, 0, 1)[0][0, :, :6], keys[1, :, :6])
    assert cache.layer(0, 0, 9)[0].shape == (1, 2, 256, 16)
    session.close()


def test_a_device_without_room_is_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config()
    path = tmp_path / "decoder.onnx"
    write_decoder(path, config, Weights.random(config.text))
    decoder = open_backend(FAKE_CUDA).open_decoder(graph_file(path, decoder_io(config)), config.text, threads=1)

    def full(array: np.ndarray, device: str) -> None:
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", full)
    with pytest.raises(OutOfMemoryError, match="making room for the KV cache: ONNX Runtime ran out of memory: CUDA"):
        decoder.session(1, 100)


@pytest.mark.gpu
@pytest.mark.skipif(not get_backend(NAME).is_installed(), reason="needs an NVIDIA GPU and ONNX Runtime's build for it")
def test_on_a_gpu_sessions_stay_near_the_formula_and_answers_those_of_the_cpu(
    fp16_path: Path, film: np.ndarray, tmp_path: Path, rng: np.random.Generator
) -> None:
    config = toy_config()
    weights = Weights.random(config.text)
    path = tmp_path / "decoder.onnx"
    write_decoder(path, config, weights, "float16")
    graph = graph_file(path, decoder_io(config), "float16")
    session = get_backend(NAME).open_decoder(graph, config.text, chunk=8).session(3, 70)
    rows = [rng.normal(size=(length, 64)).astype(np.float32) for length in (24, 9, 15)]
    expected = [reference_logits(config.text, weights, row) for row in rows]

    def off(found: np.ndarray, ahead: int) -> float:
        wanted = np.stack([logits[ahead - 7] for logits in expected])
        return float(np.abs(found - wanted).max() / np.abs(wanted).max())

    assert off(session.prefill([row[:-6].astype(np.float16) for row in rows], Deadline()), 0) < 5e-2
    for step in range(1, 4):
        assert off(session.step(np.stack([row[step - 7] for row in rows]).astype(np.float16)), step) < 5e-2
    session.drop_row(0)
    rows, expected = [rows[2], rows[1]], [expected[2], expected[1]]
    session.reserve(200)
    for step in range(4, 7):
        assert off(session.step(np.stack([row[step - 7] for row in rows]).astype(np.float16)), step) < 5e-2
    session.close()
    with VideoLM.open(fp16_path, backend=NAME) as on_gpu, VideoLM.open(fp16_path, device="cpu") as on_cpu:
        first, second = on_gpu.ask(film, "Which way?"), on_cpu.ask(film, "Which way?")
        assert first.backend.decoder.device == "CUDA"
        assert first.token_ids[:4] == second.token_ids[:4]


@pytest.mark.gpu
@pytest.mark.skipif(not get_backend(NAME).is_installed(), reason="needs an NVIDIA GPU and ONNX Runtime's build for it")
def test_on_a_gpu_arrays_of_torch_are_read_where_they_are(fp16_path: Path) -> None:
    with VideoLM.open(fp16_path, backend=NAME) as lm:
        check_arrays_of_torch_on_a_gpu(lm, "float16")
