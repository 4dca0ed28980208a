"""Pixels and video tokens that are on the GPU: on fake GPUs the answers are those from host memory, without a copy.

TensorRT runs on its stand-in, ONNX Runtime's CUDA back end on the CPU's memory (``FakeCudaBackend``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorrt_stand_in
from cuda_stand_in import ArrayOnGpu, FakeDevice
from toy_bundle import write_bundle
from toy_engines import write_engines
from toy_graphs import Weights, toy_config
from toy_parts import FakeCudaBackend

from blip3v.bundle import open_bundle
from blip3v.errors import BackendError, RequestError
from blip3v.runtime import GenerationOptions, VideoLM, VideoTokens
from blip3v.runtime.backends import SplicedPrompt, onnxruntime_cuda
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.gpu_array import GpuArray
from blip3v.runtime.opening import graph_files

QUESTIONS = ["Which way does the red ball move?", "Why? " * 20, "What?"]


class OnGpu(NamedTuple):
    """A toy bundle opened on a fake GPU."""

    gpu: FakeDevice
    lm: VideoLM
    is_tensorrt: bool


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx", "onnxruntime-cuda"])
def on_gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnGpu]:
    config = toy_config()
    weights = Weights.random(config.text)
    folder = tmp_path_factory.mktemp("bundles") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "onnxruntime-cuda":
            patch.setattr(onnxruntime_cuda, "BACKEND", FakeCudaBackend())
            path = write_bundle(folder, config, weights)
            with VideoLM.open(path, backend=request.param, threads=1) as lm:
                yield OnGpu(FakeDevice(), lm, is_tensorrt=False)
            return
        gpu = FakeDevice(request.param)
        tensorrt_stand_in.install(patch, gpu, pytest.importorskip("tensorrt_rtx_bindings"))
        path = write_bundle(folder, config, weights, graphs_for="tensorrt-rtx")
        write_engines(path / "engines", graph_files(open_bundle(path)), library=gpu.library)
        with VideoLM.open(path, backend="tensorrt") as lm:
            yield OnGpu(gpu, lm, is_tensorrt=True)


@pytest.fixture
def pixels(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (4, 3, 16, 16)).astype(np.float32)


def test_pixels_on_the_gpu_are_encoded_where_they_are(on_gpu: OnGpu, pixels: np.ndarray) -> None:
    array = ArrayOnGpu(on_gpu.gpu, pixels)
    before = on_gpu.gpu.copied_bytes.copy()
    found = on_gpu.lm.encode_pixels(array, frames=[(3 * i, i / 10) for i in range(4)])
    assert np.array_equal(found.tokens, on_gpu.lm.encode_pixels(pixels).tokens)
    assert found.frames == ((0, 0.0), (3, 0.1), (6, 0.2), (9, 0.3))
    assert array.num_host_copies == 0
    if on_gpu.is_tensorrt:  # host memory was copied once: for the pixels that were there
        assert (on_gpu.gpu.copied_bytes - before)["pinned to device"] == pixels.nbytes


def test_answers_about_tokens_on_the_gpu_are_those_about_tokens_in_host_memory(
    on_gpu: OnGpu, pixels: np.ndarray
) -> None:
    lm, options = on_gpu.lm, GenerationOptions(max_new_tokens=12, ignore_stop_token=True)
    on_host = lm.encode_pixels(pixels)
    array = ArrayOnGpu(on_gpu.gpu, on_host.tokens)
    there = VideoTokens(tokens=array, frames=on_host.frames, encoder=lm.encoder)
    before = on_gpu.gpu.copied_bytes["device to device"]

    def answers(video: VideoTokens) -> list[tuple[int, ...]]:
        found = [lm.ask(video, question, options=options) for question in QUESTIONS]
        found += lm.ask_batch([(video, question) for question in QUESTIONS], options=options)
        found += lm.ask_batch([(on_host, "Why?"), (video, "How?"), (on_host, "What?")], options=options)
        with lm.chat(video) as chat:
            found += [chat.ask("Why?", options=options), chat.ask("What?", options=options)]
        assert all(answer.usage.num_video_tokens == 8 for answer in found)
        return [answer.token_ids for answer in found]

    assert answers(there) == answers(on_host)
    assert array.num_host_copies == 0
    if on_gpu.is_tensorrt:
        num_prefills = 3 + 3 + 1 + 1
        assert on_gpu.gpu.copied_bytes["device to device"] - before == num_prefills * on_host.tokens.nbytes


@pytest.mark.parametrize("position", [0, 1, 6, 9])
@pytest.mark.parametrize("num_rows", [1, 2])
def test_wherever_chunks_are_cut_the_logits_are_those_of_a_whole_prompt(
    on_gpu: OnGpu, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, position: int, num_rows: int
) -> None:
    with on_gpu.lm._owner.lease() as model:
        decoder: Any = model.decoder
    texts = [rng.normal(size=(9 + row, 64)).astype(np.float32) for row in range(num_rows)]
    video = rng.normal(size=(8, 64)).astype(np.float32)
    there = GpuArray(ArrayOnGpu(on_gpu.gpu, video))
    whole = [np.insert(text, [position] * 8, video, axis=0) for text in texts]
    step = rng.normal(size=(2, num_rows, 64)).astype(np.float32)
    holder = decoder._opened if on_gpu.is_tensorrt else decoder

    def logits(rows: list[Any]) -> list[np.ndarray]:
        session = decoder.session(num_rows, 32)
        found = [session.prefill(rows, Deadline()), session.step(step[0]), session.step(step[1])]
        assert session.lengths == tuple(19 + row for row in range(num_rows))
        session.close()
        return found

    expected = logits(whole)
    name = "chunk" if on_gpu.is_tensorrt else "_chunk"
    for chunk in (1, 3, 7, 16, 64):
        monkeypatch.setattr(holder, name, chunk)
        found = logits([SplicedPrompt(text, position, there) for text in texts])
        assert np.allclose(found, expected, atol=1e-4), chunk


def test_what_the_gpu_s_graphs_do_not_take_is_refused(on_gpu: OnGpu, pixels: np.ndarray) -> None:
    lm, gpu = on_gpu.lm, on_gpu.gpu
    with pytest.raises(RequestError, match=r"the pixels on the GPU are float16, and \S+ takes float32 from there"):
        lm.encode_pixels(ArrayOnGpu(gpu, pixels.astype(np.float16)))
    with pytest.raises(RequestError, match=r"pixels is uint8 of shape \(4, 16, 16, 3\); .* raw frames go to encode"):
        lm.encode_pixels(ArrayOnGpu(gpu, np.zeros((4, 16, 16, 3), np.uint8)))
    with pytest.raises(RequestError, match=r"pixels is float32 of shape \(3, 3, 16, 16\); .* shape \(4, 3, 16, 16\)"):
        lm.encode_pixels(ArrayOnGpu(gpu, pixels[:3]))
    half = VideoTokens(tokens=ArrayOnGpu(gpu, np.ones((8, 64), np.float16)), frames=(), encoder=lm.encoder)
    with pytest.raises(RequestError, match=r"the video tokens on the GPU are float16, and \S+ takes float32"):
        lm.ask(half, "Why?")
    wide = VideoTokens(tokens=ArrayOnGpu(gpu, np.ones((8, 65), np.float32)), frames=(), encoder=lm.encoder)
    with pytest.raises(RequestError, match=r"video tokens have shape \(8, 65\); \(M, 64\)"):
        lm.ask(wide, "Why?")


def test_tokens_on_the_gpu_that_are_not_finite_end_the_answer(on_gpu: OnGpu) -> None:
    values = np.ones((8, 64), np.float32)
    values[3, 5] = np.nan
    broken = VideoTokens(tokens=ArrayOnGpu(on_gpu.gpu, values), frames=(), encoder=on_gpu.lm.encoder)
    with pytest.raises(BackendError, match=r"logits that are not finite; .* video tokens that were given on a GPU"):
        on_gpu.lm.ask(broken, "Why?")


def _shifted(array: ArrayOnGpu) -> ArrayOnGpu:
    array.values = array.values.reshape(-1)[8:16].reshape(2, 4)
    return array


def _transposed(array: ArrayOnGpu) -> ArrayOnGpu:
    array.values = array.values.T
    return array


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda gpu, values: ArrayOnGpu(gpu, values, (2, 1)), r"device \(2, 1\); host memory or the first CUDA"),
        (lambda gpu, values: ArrayOnGpu(gpu, values, (10, 0)), r"device \(10, 0\); host memory or the first CUDA"),
        (lambda gpu, values: _transposed(ArrayOnGpu(gpu, values)), "gaps or another order.*pass a contiguous copy"),
        (lambda gpu, values: _shifted(ArrayOnGpu(gpu, values)), "not a multiple of 256 bytes"),
        (lambda gpu, values: ArrayOnGpu(gpu, values.astype(np.float64)), r"tokens is float64 of shape \(8, 64\)"),
        (lambda gpu, values: ArrayOnGpu(gpu, values[0]), r"tokens is float32 of shape \(64,\)"),
        (lambda gpu, values: ArrayOnGpu(gpu, values.astype(">f4")), "cannot be read through DLPack"),
    ],
    ids=["another-gpu", "another-kind", "gaps", "unaligned", "double", "one-axis", "byte-order"],
)
def test_an_array_on_the_gpu_that_cannot_be_read_is_refused(made: Callable[..., ArrayOnGpu], message: str) -> None:
    array = made(FakeDevice(), np.ones((8, 64), np.float32))
    with pytest.raises(RequestError, match=message):
        VideoTokens(tokens=array, frames=(), encoder="abc")


def test_tokens_on_the_gpu_are_saved_through_a_copy(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.normal(size=(8, 64)).astype(np.float32)
    array = ArrayOnGpu(FakeDevice(), values)
    video = VideoTokens(tokens=array, frames=((0, None),), encoder="abc")
    assert len(video) == 8
    assert video.tokens.shape == (8, 64)
    assert video.tokens.dtype == "float32"
    video.save(tmp_path / "x")
    assert np.array_equal(VideoTokens.load(tmp_path / "x").tokens, values)
    assert array.num_host_copies == 1
    stuck = VideoTokens(tokens=ArrayOnGpu(FakeDevice(), values, copies=False), frames=(), encoder="abc")
    with pytest.raises(RequestError, match=r"cannot be copied to the host through DLPack \(no copies\)"):
        stuck.save(tmp_path / "y")
    assert not (tmp_path / "y").exists()
