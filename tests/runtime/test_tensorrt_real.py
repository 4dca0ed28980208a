"""The TensorRT back end with engines that TensorRT really built: found everywhere, run where there is a GPU."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, reference_logits, toy_config
from toy_parts import check_arrays_of_torch_on_a_gpu

from blip3v.bundle import open_bundle
from blip3v.bundle.engines import EngineHost, EngineRecord, Library
from blip3v.bundle.targets import Target
from blip3v.export.engine_request import EngineRequest
from blip3v.export.engines import build_engines
from blip3v.runtime import GenerationOptions, VideoLM, nvidia
from blip3v.runtime.backends import GRAPHS, get_backend
from blip3v.runtime.backends.tensorrt import runtime_cache
from blip3v.runtime.backends.tensorrt.selection import choose_engine
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.opening import graph_files
from blip3v.runtime.tensorrt_library import host_platform, is_installed, load_tensorrt

TARGETS: dict[Library, Target] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
REQUEST = {"max_batch_size": 3, "max_seq_len": 256, "prefill_chunk": 8}


def _built(folder: Path, library: Library, capability: tuple[str, ...] = ()) -> Path:
    config = toy_config()
    weights = Weights.random(config.text)
    path = write_bundle(folder, config, weights, precision="fp16", graphs_for=TARGETS[library])
    build_engines(path, EngineRequest(**REQUEST, compute_capability=capability))  # type: ignore[arg-type]
    return path


@pytest.mark.trt
@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="needs TensorRT-RTX, which builds without a GPU")
def test_what_the_builder_records_is_what_the_back_end_looks_for(tmp_path: Path) -> None:
    path = _built(tmp_path / "toy", "tensorrt_rtx", ("8.6",))
    host = EngineHost(
        library="tensorrt_rtx",
        library_version=load_tensorrt("tensorrt_rtx").version,
        compute_capability="8.6",
        platform=host_platform(),
    )
    for name in GRAPHS:
        found = choose_engine(graph_files(open_bundle(path))[name], name, [host])
        assert found.path.stat().st_size > 10_000
        assert found.record.limits.prefill_chunk == 8


@pytest.fixture(scope="module", params=get_args(Library))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with engines for this machine's GPU."""
    if not get_backend("tensorrt").is_installed() or not is_installed(request.param):
        pytest.skip("needs an NVIDIA GPU, cuda-bindings and the library")
    return _built(tmp_path_factory.mktemp("bundles") / "toy", request.param)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["cuda-graphs", "kernel-by-kernel"])
def test_on_a_gpu_rows_stay_near_the_formula(built: Path, cuda_graphs: bool, rng: np.random.Generator) -> None:
    config = toy_config()
    weights, backend = Weights.random(config.text), get_backend("tensorrt")
    graph = graph_files(open_bundle(built))["decoder"]
    rows = [rng.normal(size=(length, 64)).astype(np.float32) for length in (24, 9, 15)]
    expected = [reference_logits(config.text, weights, row) for row in rows]

    def off(found: np.ndarray, ahead: int) -> float:
        wanted = np.stack([logits[ahead - 7] for logits in expected])
        return float(np.abs(found - wanted).max() / np.abs(wanted).max())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "cuda_graphs", cuda_graphs)
        decoder = backend.open_decoder(graph, config.text)
    with closing(decoder), closing(decoder.session(3, 70)) as session:
        assert off(session.prefill([row[:-6] for row in rows], Deadline()), 0) < 5e-2
        for step in range(1, 4):
            assert off(session.step(np.stack([row[step - 7] for row in rows])), step) < 5e-2
        session.drop_row(0)
        rows, expected = [rows[2], rows[1]], [expected[2], expected[1]]
        for step in range(4, 7):
            assert off(session.step(np.stack([row[step - 7] for row in rows])), step) < 5e-2


@pytest.mark.gpu
def test_on_a_gpu_answers_begin_as_those_of_the_cpu(built: Path, film: np.ndarray) -> None:
    options = GenerationOptions(max_new_tokens=4, ignore_stop_token=True)
    with VideoLM.open(built, backend="tensorrt") as on_gpu, VideoLM.open(built, device="cpu") as on_cpu:
        for question in ("Which way?", "Why does it turn?"):
            found, expected = (lm.ask(film, question, options=options) for lm in (on_gpu, on_cpu))
            assert found.token_ids == expected.token_ids
            assert found.backend.decoder.backend == "tensorrt"


@pytest.mark.gpu
def test_on_a_gpu_arrays_of_torch_are_read_where_they_are(built: Path) -> None:
    with VideoLM.open(built, backend="tensorrt") as lm:
        check_arrays_of_torch_on_a_gpu(lm, "float16")


@pytest.mark.gpu
def test_on_a_gpu_the_estimate_is_near_what_opening_takes(built: Path) -> None:
    before = nvidia.gpu_memory().free_bytes()
    assert before is not None
    (folder,) = (path for path in (built / "engines").iterdir() if path.is_dir())
    assert all(each.activation_bytes is not None for each in EngineRecord.load(folder).graphs.values())
    estimate = VideoLM.estimate(built, backend="tensorrt")
    with VideoLM.open(built, backend="tensorrt"):
        after = nvidia.gpu_memory().free_bytes()
    assert after is not None
    # CUDA allocates in pieces of 2 MiB, and its kernels take memory too.
    assert before - after < sum(need.memory_bytes for need in estimate.devices) + 2**30


@pytest.mark.gpu
def test_on_a_gpu_tensorrt_rtx_takes_back_the_kernels_that_it_compiled(
    built: Path, film: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    (folder,) = (path for path in (built / "engines").iterdir() if path.is_dir())
    if EngineRecord.load(folder).library != "tensorrt_rtx":
        pytest.skip("TensorRT compiles when it builds")
    for path in folder.glob("*.kernels"):
        path.unlink()
    answers = []
    with caplog.at_level(logging.INFO, logger=runtime_cache.__name__):
        for _ in range(2):
            with VideoLM.open(built, backend="tensorrt") as lm:
                answers.append(lm.ask(film, "Which way?").token_ids)
    assert answers[0] == answers[1]
    kept = sorted(folder.glob("*.kernels"))
    assert [path.name.split(".")[0] for path in kept] == ["decoder", "video_encoder"]
    said = [record.getMessage() for record in caplog.records]
    assert all(text.startswith("kept the compiled kernels in") for text in said), said
