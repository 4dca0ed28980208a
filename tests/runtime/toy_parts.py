"""What fixtures of the runtime's tests give, for their type hints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toy_graphs import Weights

from blip3v.bundle.graph_io import GraphIO
from blip3v.bundle.precision import PRECISIONS, GraphPrecision
from blip3v.config import ModelConfig
from blip3v.runtime import GenerationOptions, VideoLM, VideoTokens
from blip3v.runtime.backends import Backend, Decoder, GraphFile, backend_names, get_backend
from blip3v.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend


def cpu_backends() -> tuple[str, ...]:
    """Names of the back ends that every machine can open: those that run on a CPU."""
    return tuple(name for name in backend_names() if "cpu" in get_backend(name).devices)


BACKENDS = cpu_backends()
# One for prompts and one for steps; all of a session's tests on these take a minute.
PAIRS = [pytest.param(name, marks=pytest.mark.slow) for name in ("openvino+onnxruntime", "onnxruntime+openvino")]
FAKE_CUDA = "fake-cuda"


class FakeCudaBackend(OnnxRuntimeCudaBackend):
    """Stands in for a GPU: the back end of CUDA with ONNX Runtime's CPU provider, and its caches in host memory."""

    def __init__(self) -> None:
        super().__init__(provider="CPUExecutionProvider", device="cpu")

    def check_installed(self) -> None:
        """There is always a CPU."""

    def refusal(self, precision: GraphPrecision) -> str | None:
        """The CPU provider computes every precision."""
        return None


def open_backend(name: str) -> Backend:
    """The back end of that name; ``FAKE_CUDA`` is the one that stands in for a GPU."""
    return FakeCudaBackend() if name == FAKE_CUDA else get_backend(name)


DecoderMaker = Callable[..., tuple[ModelConfig, Weights, Decoder]]


def graph_file(path: Path, io: GraphIO, precision: str = "float32", *, cache_in_int8: bool = False) -> GraphFile:
    """A toy decoder or video encoder, whose weights are inside the graph."""
    named = PRECISIONS["fp32" if precision == "float32" else "fp16"]
    decoder = dataclasses.replace(named.decoder, cache="int8") if cache_in_int8 else named.decoder
    return GraphFile(
        path=path,
        io=io,
        precision=named.video_encoder if io.inputs[0].name == "frames" else decoder,
        weights_bytes=path.stat().st_size,
    )


class Clock:
    """Stands in for the module ``time`` where a request's time is measured; it moves when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


def check_arrays_of_torch_on_a_gpu(lm: VideoLM, dtype: str) -> None:
    """Compares what a toy bundle makes of arrays on a real GPU with what it makes of the same ones in host memory.

    The arrays are the last thing in a stream that is busy: a reader that does not wait for it sees zeros.
    """
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs torch's build for CUDA")
    options = GenerationOptions(max_new_tokens=8, ignore_stop_token=True)
    pixels = np.random.default_rng(4).uniform(-1, 1, (4, 3, 16, 16)).astype(dtype)
    on_host = lm.encode_pixels(pixels)
    with torch.cuda.stream(torch.cuda.Stream()):

        def late(values: np.ndarray) -> object:
            source, target = torch.from_numpy(values.copy()).cuda(), torch.zeros(values.shape, device="cuda")
            target = target.to(source.dtype)
            torch.cuda._sleep(100_000_000)
            return target.copy_(source)

        assert np.array_equal(lm.encode_pixels(late(pixels)).tokens, on_host.tokens)  # type: ignore[arg-type]
        there = VideoTokens(tokens=late(on_host.tokens), frames=on_host.frames, encoder=lm.encoder)
        for question in ("Which way?", "Why? " * 20):
            found, expected = (lm.ask(video, question, options=options) for video in (there, on_host))
            assert found.token_ids[:4] == expected.token_ids[:4]  # prompts are cut elsewhere, and rounded in fp16
        assert np.array_equal(there.tokens.on_host(), on_host.tokens)
