"""What lies on a GPU is counted there: estimates, refusals, the default limit of caches, parts of a batch.

The GPU is the fake of ``cuda_stand_in``, whose memory the fake driver tells; a Jetson's is the machine's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openvino
import pytest
import tensorrt_stand_in
from cuda_stand_in import FakeDevice
from driver_stand_in import FakeDriver
from toy_bundle import write_bundle
from toy_engines import LIMITS, write_engines
from toy_graphs import Weights, toy_config

from blip3v.bundle import Precision, open_bundle
from blip3v.bundle.engines import EngineRecord, Library
from blip3v.bundle.graph_io import decoder_io
from blip3v.bundle.targets import Target
from blip3v.errors import BackendError, OutOfMemoryError
from blip3v.runtime import DeviceNeed, GenerationOptions, OpenEstimate, VideoLM, memory, nvidia
from blip3v.runtime.backends import GraphFile, get_backend
from blip3v.runtime.cache_budget import CacheBudget
from blip3v.runtime.engine_errors import engine_errors
from blip3v.runtime.opening import graph_files

GIB, MIB = 2**30, 2**20
TARGETS: dict[Library, Target] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
# Of the toy decoder, in fp32: keys and values of a token in all layers, and a row of its engine's cache.
TOKEN_BYTES = 2 * 3 * 2 * 16 * 4
ROW_BYTES = LIMITS.max_seq_len * TOKEN_BYTES


@pytest.fixture(scope="module")
def built(gpu: FakeDevice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = toy_config()
    folder = tmp_path_factory.mktemp("bundles") / "toy"
    path = write_bundle(folder, config, Weights.random(config.text), graphs_for=TARGETS[gpu.library])
    write_engines(path / "engines", graph_files(open_bundle(path)), library=gpu.library)
    return path


def record_activations(path: Path, num_bytes: int | None) -> int:
    """Writes into ``engine.json`` what a build on a GPU finds out, and gives the bytes of both engines."""
    (folder,) = (path / "engines").iterdir()
    record = EngineRecord.load(folder)
    graphs = {name: dataclasses.replace(each, activation_bytes=num_bytes) for name, each in record.graphs.items()}
    dataclasses.replace(record, graphs=graphs).save(folder)
    return sum(each.size_bytes for each in graphs.values())


def of_the_gpu(estimate: OpenEstimate) -> DeviceNeed:
    (need,) = estimate.devices
    assert need.device == "the GPU"
    return need


def test_engines_their_activations_and_a_cache_are_counted_on_the_gpu(built: Path, gpu: FakeDevice) -> None:
    engine_bytes = record_activations(built, 5 * MIB)
    before = gpu.in_use_bytes()
    estimate = VideoLM.estimate(built, backend="tensorrt")
    need = of_the_gpu(estimate)
    assert (need.weights_bytes, need.activation_bytes, need.cache_bytes) == (engine_bytes, 10 * MIB, ROW_BYTES)
    assert need.limit_bytes == gpu.memory_bytes - before
    # CUDA's own memory for each graph, and nothing of the model.
    assert estimate.memory_bytes == (192 + 2 * 256) * MIB
    assert "MiB of memory" in str(estimate)
    assert "MiB of the 8.00 GiB free on the GPU, " in str(estimate)


def test_what_a_build_without_a_gpu_did_not_find_out_is_estimated(built: Path) -> None:
    record_activations(built, None)
    widest = 4 * 256 * (4 * toy_config().text.intermediate_size + toy_config().text.num_heads * 256)
    assert of_the_gpu(VideoLM.estimate(built, backend="tensorrt")).activation_bytes == widest


def test_without_an_engine_that_fits_the_graphs_are_counted(
    built: Path, gpu: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "capability", (9, 0))
    graphs = graph_files(open_bundle(built))
    need = of_the_gpu(VideoLM.estimate(built, backend="tensorrt"))
    assert need.weights_bytes == sum(graph.weights_bytes for graph in graphs.values())


def test_a_gpu_with_too_little_memory_is_a_refusal_with_numbers(
    built: Path, gpu: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_activations(built, 3 * GIB)
    before = gpu.in_use_bytes()
    told: list[OpenEstimate] = []
    monkeypatch.setattr(gpu, "memory_bytes", before + 4 * GIB)
    with pytest.raises(
        OutOfMemoryError,
        match=r"^the GPU has 4\.00 GiB free, and opening \S+toy needs about 6\.00 GiB there: \S+ [KM]iB for weights, "
        r"6\.00 GiB for activations, 192 KiB for a cache; end other programs .*`device='cpu'`$",
    ):
        VideoLM.open(built, backend="tensorrt", on_estimate=told.append)
    assert told[0].is_large
    assert gpu.in_use_bytes() == before
    record_activations(built, 1)


def test_an_engine_that_asks_for_more_than_is_free_is_refused_as_it_opens(
    built: Path, gpu: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_activations(built, 1)
    monkeypatch.setattr(gpu, "activation_bytes", 5 * GIB)
    expected = r"^the GPU has 8\.00 GiB free, and \S+decoder\.engine needs 10\.0 GiB for activations; end other"
    with pytest.raises(OutOfMemoryError, match=expected):
        VideoLM.open(built, backend="tensorrt")


def test_the_default_limit_is_a_third_of_what_is_free_on_the_gpu(
    built: Path, gpu: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 90 * GIB)
    with VideoLM.open(built, backend="tensorrt") as lm, lm._owner.lease() as model:
        assert model.caches.limit_bytes == gpu.free_bytes() // 3
        assert (model.caches.token_bytes, model.caches.row_tokens) == (TOKEN_BYTES, LIMITS.max_seq_len)


def test_a_batch_takes_as_many_rows_as_the_gpu_has_room_for(
    built: Path, gpu: FakeDevice, film: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VideoLM.open(built, backend="tensorrt") as lm, lm._owner.lease() as model:
        made: list[int] = []
        make: Callable[..., Any] = model.decoder.session

        def counted(rows: int, tokens: int) -> Any:
            made.append(rows)
            return make(rows, tokens)

        monkeypatch.setattr(model.decoder, "session", counted)
        # Room for two rows and a part of a third: each takes the engine's capacity, however short its question is.
        monkeypatch.setattr(gpu, "memory_bytes", gpu.in_use_bytes() + 3 * ROW_BYTES - 1)
        answers = lm.ask_batch([(film, "Why?")] * 4)
        assert made == [2, 2]
        assert len({answer.token_ids for answer in answers}) == 1


def test_where_the_driver_does_not_tell_nothing_is_refused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("libcuda.so.1")

    monkeypatch.setattr(nvidia, "_load", missing)
    need = of_the_gpu(VideoLM.estimate(built, backend="tensorrt"))
    assert need.limit_bytes is None
    assert str(need).endswith("iB on the GPU")
    with VideoLM.open(built, backend="tensorrt") as lm, lm._owner.lease() as model:
        assert model.caches.limit_bytes == 2 * GIB


def test_a_jetson_has_one_memory_and_it_is_counted_once(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_bytes = record_activations(built, 5 * MIB)
    monkeypatch.setattr(nvidia, "_load", lambda: FakeDriver(["Orin"], is_integrated=True))
    estimate = VideoLM.estimate(built, backend="tensorrt")
    assert estimate.devices == ()
    assert estimate.memory_bytes == (192 + 2 * 256 + 10) * MIB + engine_bytes + ROW_BYTES
    monkeypatch.setattr(memory, "available_bytes", lambda: 100 * MIB)
    with pytest.raises(OutOfMemoryError, match=r"opening \S+ needs about \d+ MiB of memory and 100 MiB are free"):
        VideoLM.open(built, backend="tensorrt")


def _graph(precision: str) -> GraphFile:
    spec = Precision.parse(precision).decoder
    return GraphFile(path=Path("decoder.onnx"), io=decoder_io(toy_config()), precision=spec, weights_bytes=GIB)


def test_an_engine_of_the_older_form_has_two_caches() -> None:
    text, graph = toy_config().text, _graph("fp16")
    backend = get_backend("tensorrt")
    older = dataclasses.replace(graph, target="tensorrt-legacy")
    assert backend.kv_bytes_per_token(text, older) == 2 * backend.kv_bytes_per_token(text, graph) == TOKEN_BYTES


def test_weights_of_onnxruntime_lie_on_the_gpu_and_pass_through_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "_load", lambda: FakeDriver(["a card"]))
    found = get_backend("onnxruntime-cuda").footprint(_graph("fp16"))
    assert (found.memory.name, found.weights_bytes, found.host_bytes) == ("the GPU", GIB, GIB)
    assert found.caches == found.memory
    monkeypatch.setattr(nvidia, "_load", lambda: FakeDriver(["Orin"], is_integrated=True))
    found = get_backend("onnxruntime-cuda").footprint(_graph("fp16"))
    assert found.memory is found.caches is memory.HOST
    assert (found.weights_bytes, found.host_bytes) == (GIB, 0)


class FakeCore:
    """An OpenVINO with a part of the processor and a card, which this machine lacks."""

    PROPERTIES: ClassVar[dict[tuple[str, str], Any]] = {
        ("GPU.0", "DEVICE_TYPE"): "Type.INTEGRATED",
        ("GPU.1", "DEVICE_TYPE"): "Type.DISCRETE",
        ("GPU.1", "GPU_DEVICE_TOTAL_MEM_SIZE"): 12 * GIB,
    }

    def get_property(self, device: str, name: str) -> Any:
        if (device, name) not in self.PROPERTIES:
            raise RuntimeError(f"no {name}")
        return self.PROPERTIES[device, name]


def test_openvinos_card_has_memory_of_its_own_and_its_other_devices_have_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "Core", FakeCore)
    card = get_backend("openvino:gpu.1").footprint(_graph("fp16"))
    assert (card.memory.name, card.memory.bound, card.memory.free_bytes()) == ("the GPU.1", "in all", 12 * GIB)
    assert (card.weights_bytes, card.host_bytes) == (GIB, int(1.75 * GIB))
    assert card.caches is memory.HOST
    for device in ("openvino", "openvino:gpu.0", "openvino:npu"):
        found = get_backend(device).footprint(_graph("fp16"))
        assert found.memory is memory.HOST
        assert (found.weights_bytes, found.host_bytes) == (int(1.75 * GIB), 0)
    monkeypatch.setitem(FakeCore.PROPERTIES, ("GPU.7", "DEVICE_TYPE"), "Type.DISCRETE")
    assert get_backend("openvino:gpu.7").footprint(_graph("fp16")).memory.free_bytes() is None


def test_a_card_that_does_not_say_what_is_free_is_refused_for_what_it_has_in_all() -> None:
    need = DeviceNeed(
        device="the GPU.1",
        weights_bytes=13 * GIB,
        activation_bytes=0,
        cache_bytes=0,
        limit_bytes=12 * GIB,
        limit="in all",
    )
    assert str(need) == "13.0 GiB of the 12.0 GiB in all on the GPU.1"
    with pytest.raises(OutOfMemoryError, match=r"the GPU\.1 has 12\.0 GiB in all, .* 13\.0 GiB there: 13\.0 GiB for w"):
        need.require("opening it")


def test_a_row_takes_the_room_that_the_engine_gives_it() -> None:
    budget = CacheBudget(1000, 1, 100)
    with budget.take(2, 7):
        assert budget.in_use_bytes == 200
        with budget.take(0, 0) as share:
            assert share.resize_to_rows([5, 120, 5], None) == 3
            assert share.resize_to_rows([5, 120, 5], 350) == 2
            assert share.resize_to_rows([5, 5, 5], 350) == 3
            assert budget.in_use_bytes == 500


@pytest.mark.parametrize("call", ["deserialize_cuda_engine", "execute_async_v3"])
def test_what_tensorrt_cannot_allocate_as_it_loads_and_runs_is_out_of_memory(
    built: Path, film: np.ndarray, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fails(self: Any, *arguments: Any) -> None:
        owner = getattr(self, "_engine", self)
        owner._logger.log(owner._real.ILogger.ERROR, "[defaultAllocator.cpp::allocate] Cuda Runtime (out of memory)")

    owner = "_Runtime" if call == "deserialize_cuda_engine" else "_Context"
    monkeypatch.setattr(getattr(tensorrt_stand_in, owner), call, fails)
    with (
        pytest.raises(OutOfMemoryError, match=r"TensorRT\S* ran out of memory: .*Cuda Runtime"),
        VideoLM.open(built, backend="tensorrt") as lm,
    ):
        lm.ask(film, "Why?")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("cudaMalloc", r"the GPU has no \S+ \S+ free for "),
        ("cudaMallocHost", r"\S+ [KM]iB of host memory cannot be pinned"),
        ("cudaGraphInstantiate", "CUDA failed: cudaErrorMemoryAllocation"),
        ("cudaStreamSynchronize", "CUDA failed: cudaErrorMemoryAllocation"),
    ],
)
def test_what_cuda_cannot_allocate_is_out_of_memory(
    built: Path, gpu: FakeDevice, film: np.ndarray, function: str, message: str
) -> None:
    if function == "cudaGraphInstantiate" and gpu.library == "tensorrt_rtx":
        pytest.skip("TensorRT-RTX captures by itself")
    gpu.fails[function] = "cudaErrorMemoryAllocation"
    with pytest.raises(OutOfMemoryError, match=message), VideoLM.open(built, backend="tensorrt") as lm:
        lm.ask(film, "Why?", options=GenerationOptions(max_new_tokens=4, ignore_stop_token=True))
    assert function not in gpu.fails


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory ; GPU=0 ; file=cuda_allocator.cc",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Error Code 1: Cuda Driver (CUDA_ERROR_OUT_OF_MEMORY)",
        "Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)",
        "cudaErrorMemoryAllocation",
        "[GPU] Exceeded max size of memory object allocation: requested 9 bytes",
        "[GPU] CL_MEM_OBJECT_ALLOCATION_FAILURE, error code: -4",
        "ZE_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    ],
)
def test_what_engines_say_of_a_full_device_is_out_of_memory(text: str) -> None:
    with pytest.raises(OutOfMemoryError), engine_errors("An engine", "package", "opening"):
        raise RuntimeError(text)
    with pytest.raises(BackendError) as caught, engine_errors("An engine", "package", "opening"):
        raise RuntimeError("an illegal memory access was encountered")
    assert not isinstance(caught.value, OutOfMemoryError)
