"""Kernels that TensorRT-RTX compiled are kept beside their engine; whatever is wrong with the file is no error."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorrt_stand_in
from cuda_stand_in import FakeDevice
from toy_bundle import write_bundle
from toy_engines import write_engines
from toy_graphs import Weights, toy_config

from blip3v.bundle import open_bundle
from blip3v.bundle.verify import verify_bundle
from blip3v.runtime import VideoLM
from blip3v.runtime.backends.tensorrt import runtime_cache
from blip3v.runtime.opening import graph_files

FILES = {"decoder.sm86.kernels", "video_encoder.sm86.kernels"}


Answer = Callable[[], tuple[int, tuple[int, ...]]]


@pytest.fixture(scope="module")
def gpu() -> Iterator[FakeDevice]:
    """With TensorRT-RTX alone."""
    real = pytest.importorskip("tensorrt_rtx_bindings")
    device = FakeDevice("tensorrt_rtx")
    with pytest.MonkeyPatch.context() as patch:
        tensorrt_stand_in.install(patch, device, real)
        yield device


@pytest.fixture(scope="module")
def built(gpu: FakeDevice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle with engines."""
    config = toy_config()
    path = tmp_path_factory.mktemp("bundles") / "toy"
    write_bundle(path, config, Weights.random(config.text), graphs_for="tensorrt-rtx")
    write_engines(path / "engines", graph_files(open_bundle(path)), library=gpu.library)
    return path


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "toy"))


@pytest.fixture
def answer(gpu: FakeDevice, copy: Path, film: np.ndarray) -> Answer:
    """Opens the bundle, asks, closes it; gives how many kernels were compiled, and the answer's tokens."""

    def open_and_ask() -> tuple[int, tuple[int, ...]]:
        before = gpu.num_compiled
        with VideoLM.open(copy, backend="tensorrt") as lm:
            found = lm.ask(film, "Which way does the red ball move?")
        return gpu.num_compiled - before, found.token_ids

    return open_and_ask


def kept(bundle: Path) -> dict[str, Path]:
    return {path.name: path for path in bundle.glob("engines/*/*.kernels")}


def test_the_second_opening_compiles_nothing(copy: Path, answer: Answer) -> None:
    num_compiled, tokens = answer()
    assert num_compiled == 3  # prompts, steps, frames
    assert set(kept(copy)) == FILES
    inodes = {name: path.stat().st_ino for name, path in kept(copy).items()}
    assert answer() == (0, tokens)
    # Nothing new was compiled, so nothing was written.
    assert {name: path.stat().st_ino for name, path in kept(copy).items()} == inodes
    assert verify_bundle(copy).ok
    for path in kept(copy).values():
        path.unlink()
    assert answer() == (3, tokens)


def test_what_is_compiled_later_is_added(copy: Path, answer: Answer) -> None:
    """The cache of an opening without a question is that of no kernel."""
    VideoLM.open(copy, backend="tensorrt").close()
    assert set(kept(copy)) == FILES
    assert answer()[0] == 3
    assert answer()[0] == 0


@pytest.mark.parametrize(
    "content", [b"", b"\x00 no kernels", "version", "gpu"], ids=["empty", "damaged", "version", "gpu"]
)
def test_a_file_that_does_not_fit_is_passed_over_and_replaced(
    copy: Path, answer: Answer, content: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    answer()
    for path in kept(copy).values():
        host, kernels = json.loads(path.read_bytes())
        if content == "version":
            host[0] = "1.6.0.1"
        elif content == "gpu":
            host[1] = [8, 9]
        path.write_bytes(content if isinstance(content, bytes) else json.dumps([host, kernels]).encode())
    with caplog.at_level(logging.INFO, logger=runtime_cache.__name__):
        assert answer()[0] == 3
    said = [record.getMessage() for record in caplog.records if "was made by another version" in record.getMessage()]
    assert len(said) == 2
    assert answer()[0] == 0


def test_a_folder_that_takes_no_file_is_no_error(
    copy: Path, answer: Answer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, content: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(runtime_cache, "write_file", read_only)
    with caplog.at_level(logging.INFO, logger=runtime_cache.__name__):
        assert answer()[0] == 3
    assert "decoder.sm86.kernels is not written: the file system is read-only" in caplog.text
    assert not kept(copy)
    (folder,) = copy.glob("engines/*/")
    (folder / "decoder.sm86.kernels").mkdir()
    with caplog.at_level(logging.INFO, logger=runtime_cache.__name__):
        assert answer()[0] == 3
    assert "decoder.sm86.kernels is not read" in caplog.text


def test_closing_on_a_gpu_that_failed_raises_nothing(copy: Path, gpu: FakeDevice, film: np.ndarray) -> None:
    lm = VideoLM.open(copy, backend="tensorrt")
    lm.ask(film, "Why?")
    gpu.fails["cudaStreamSynchronize"] = "cudaErrorUnknown"
    lm.close()
    assert set(kept(copy)) < FILES
