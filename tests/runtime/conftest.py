"""Real toy graphs and bundles on disk and opened, shared by the tests of the runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorrt_stand_in
from cuda_stand_in import FakeDevice
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config, write_decoder
from toy_parts import BACKENDS, Clock, DecoderMaker, graph_file, open_backend

from blip3v.bundle.graph_io import decoder_io
from blip3v.config import ModelConfig
from blip3v.runtime import VideoLM, VideoTokens, cancellation
from blip3v.runtime.backends import Decoder


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each test that runs a graph runs it on every back end."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def make_decoder(backend: str, tmp_path_factory: pytest.TempPathFactory) -> DecoderMaker:
    """Opens a toy decoder of the wanted form; the same form is written once."""
    folder = tmp_path_factory.mktemp("decoders")

    def make(
        *,
        num_kv_heads: int = 2,
        sliding_window: int | None = None,
        precision: str = "float32",
        chunk: int = 256,
        cache_in_int8: bool = False,
    ) -> tuple[ModelConfig, Weights, Decoder]:
        config = toy_config(num_kv_heads=num_kv_heads, sliding_window=sliding_window)
        weights = Weights.random(config.text)
        weights = weights.with_int8_cache(config.text) if cache_in_int8 else weights
        path: Path = folder / f"{num_kv_heads}-{sliding_window}-{precision}-{cache_in_int8}.onnx"
        if not path.exists():
            write_decoder(path, config, weights, precision)
        graph = graph_file(path, decoder_io(config), precision, cache_in_int8=cache_in_int8)
        return config, weights, open_backend(backend).open_decoder(graph, config.text, threads=1, chunk=chunk)

    return make


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def gpu(request: pytest.FixtureRequest) -> Iterator[FakeDevice]:
    """A fake GPU with one of the libraries and cuda-bindings, importable while the tests of a module run."""
    real = pytest.importorskip("tensorrt_rtx_bindings")  # the fake is made from its names
    device = FakeDevice(request.param)
    with pytest.MonkeyPatch.context() as patch:
        tensorrt_stand_in.install(patch, device, real)
        yield device


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(cancellation, "time", stopped)
    return stopped


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = toy_config()
    return write_bundle(tmp_path_factory.mktemp("bundles") / "blip3v-toy", config, Weights.random(config.text))


@pytest.fixture(scope="session")
def lm(backend: str, bundle_path: Path) -> Iterator[VideoLM]:
    with VideoLM.open(bundle_path, backend=backend, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def film() -> np.ndarray:
    """Frames (T,H,W,3) of noise."""
    return np.random.default_rng(2).integers(0, 256, (9, 20, 30, 3), np.uint8)


@pytest.fixture(scope="session")
def video(lm: VideoLM, film: np.ndarray) -> VideoTokens:
    return lm.encode(film)
