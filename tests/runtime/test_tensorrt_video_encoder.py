"""The TensorRT back end's video encoder on the fake device: clips of any size, frames on the GPU, several threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import ArrayOnGpu, FakeDevice
from numpy.typing import NDArray
from toy_engines import LIMITS, write_engines
from toy_graphs import toy_config, write_video_encoder
from toy_parts import graph_file

from blip3v.bundle.graph_io import video_encoder_io
from blip3v.errors import CancelledError, RequestError, UsageError
from blip3v.runtime.backends import GraphFile, get_backend
from blip3v.runtime.cancellation import CancelToken, Deadline
from blip3v.runtime.gpu_array import GpuArray

Opener = Callable[..., Any]


@pytest.fixture(scope="module")
def make(gpu: FakeDevice, tmp_path_factory: pytest.TempPathFactory) -> Opener:
    """Opens the toy video encoder with a back end."""

    def open_one(backend: str = "tensorrt", precision: str = "float32") -> Any:
        graph = _graph(tmp_path_factory.mktemp("encoder"), gpu, precision)
        return get_backend(backend).open_video_encoder(graph, threads=1)

    return open_one


def _graph(folder: Path, gpu: FakeDevice, precision: str = "float32") -> GraphFile:
    config = toy_config()
    write_video_encoder(folder / "video_encoder.onnx", config, precision)
    graph = graph_file(folder / "video_encoder.onnx", video_encoder_io(config), precision)
    graph = dataclasses.replace(graph, digest="of the encoder", engines=folder / "engines")
    write_engines(folder / "engines", {"video_encoder": graph}, library=gpu.library)
    return graph


def _frames(rng: np.random.Generator, clips: int = 1, frames: int = 4) -> NDArray[np.float32]:
    return rng.uniform(-1, 1, (clips, frames, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_clips_of_every_size_are_encoded_as_by_onnx_runtime(
    make: Opener, rng: np.random.Generator, precision: str
) -> None:
    encoder, other = make(precision=precision), make("onnxruntime", precision)
    for clips, frames in ((1, 4), (4, 16), (2, 1), (1, 4)):
        pixels = _frames(rng, clips, frames)
        found, expected = (each.run(pixels, Deadline())["video_tokens"] for each in (encoder, other))
        assert found.dtype == precision
        assert np.array_equal(found, expected)


def test_its_buffers_are_allocated_once(make: Opener, gpu: FakeDevice, rng: np.random.Generator) -> None:
    encoder = make()
    before = gpu.num_calls["cudaMalloc"], gpu.num_calls["cudaMallocHost"]
    results = [encoder.run(_frames(rng), Deadline())["video_tokens"] for _ in range(3)]
    assert (gpu.num_calls["cudaMalloc"], gpu.num_calls["cudaMallocHost"]) == before
    assert not np.array_equal(results[0], results[1])  # what was returned is not overwritten


@pytest.mark.parametrize(("clips", "frames"), [(LIMITS.max_batch_size + 1, 4), (1, LIMITS.max_frames + 1)])
def test_more_than_the_engine_was_built_for_is_refused(
    make: Opener, rng: np.random.Generator, clips: int, frames: int
) -> None:
    with pytest.raises(RequestError, match=r"frames have shape .*; the engine takes \(1, 1, 3, 16, 16\) to \(4, 16, 3"):
        make().run(_frames(rng, clips, frames), Deadline())


def test_frames_on_the_gpu_are_read_where_they_are(make: Opener, gpu: FakeDevice, rng: np.random.Generator) -> None:
    encoder, pixels = make(), _frames(rng, 2)
    array = ArrayOnGpu(gpu, pixels)
    copies = gpu.num_calls["cudaMemcpyAsync"]
    found = encoder.run(GpuArray(array), Deadline())["video_tokens"]
    assert gpu.num_calls["cudaMemcpyAsync"] == copies + 1  # the video tokens
    assert array.streams[-1] >= 1000  # the producer is told who reads
    assert np.array_equal(found, encoder.run(pixels, Deadline())["video_tokens"])


def test_several_threads_may_run_it(make: Opener, rng: np.random.Generator) -> None:
    encoder = make()
    clips = [_frames(rng, 1 + i % 2, 2 + i % 3) for i in range(8)]
    expected = [encoder.run(clip, Deadline())["video_tokens"] for clip in clips]
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda clip: encoder.run(clip, Deadline())["video_tokens"], clips)
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_cancelled_run_does_not_begin_and_a_closed_encoder_refuses(make: Opener, rng: np.random.Generator) -> None:
    encoder = make()
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        encoder.run(_frames(rng), Deadline(cancel=cancel))
    encoder.close()
    with pytest.raises(UsageError, match="the video encoder is closed"):
        encoder.run(_frames(rng), Deadline())
