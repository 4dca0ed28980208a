"""A cancelled or timed out request ends soon, wherever it is: decoding a file, in an engine, or between steps."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_graphs import toy_config
from toy_parts import graph_file

from blip3v.bundle.graph_io import video_encoder_io
from blip3v.errors import CancelledError, RequestTimeoutError, VideoTooLargeError
from blip3v.runtime import CancelToken, GenerationOptions, VideoLM
from blip3v.runtime.backends import VideoEncoder, get_backend
from blip3v.runtime.cancellation import Deadline
from blip3v.video import decoder_process, decoder_server

# A whole run of the slow graph takes a minute or more.
_NUM_PRODUCTS, _SIDE = 1000, 1500
_SOON_S = 30.0


@pytest.fixture(scope="module")
def slow_encoder(backend: str, tmp_path_factory: pytest.TempPathFactory) -> VideoEncoder:
    path = tmp_path_factory.mktemp("slow") / "video_encoder.onnx"
    _write_slow_encoder(path)
    return get_backend(backend).open_video_encoder(graph_file(path, video_encoder_io(toy_config())), threads=1)


def _write_slow_encoder(path: Path) -> None:
    """Frames to video tokens through a long chain of matrix products."""
    config = toy_config()
    side, width = config.vision.image_size, config.text.hidden_size
    constants: dict[str, np.ndarray] = {
        "matrix": np.full((_SIDE, _SIDE), 1 / _SIDE, np.float32),
        "shape": np.array([1, config.num_video_tokens, width], np.int64),
    }
    nodes = [
        helper.make_node("ReduceMean", ["frames"], ["mean"], keepdims=0),
        # Both factors depend on the input, so that no engine packs a copy of a constant for each product.
        helper.make_node("Mul", ["matrix", "mean"], ["x0"]),
        *(helper.make_node("MatMul", [f"x{i}", "x0"], [f"x{i + 1}"]) for i in range(_NUM_PRODUCTS)),
        helper.make_node("ReduceMean", [f"x{_NUM_PRODUCTS}"], ["last"], keepdims=0),
        helper.make_node("Expand", ["last", "shape"], ["video_tokens"]),
    ]
    frames = helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["batch", "num_frames", 3, side, side])
    tokens = helper.make_tensor_value_info("video_tokens", TensorProto.FLOAT, ["batch", "num_tokens", width])
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "slow", [frames], [tokens], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def _frames() -> np.ndarray:
    config = toy_config()
    side = config.vision.image_size
    return np.ones((1, config.num_frames, 3, side, side), np.float32)


def _cancelled_while(run: Callable[[Deadline], object], after_s: float = 0.3) -> float:
    """Runs until it is cancelled from another thread; returns the seconds from the cancellation to the error."""
    cancel = CancelToken()
    started_s = time.perf_counter()
    timer = threading.Timer(after_s, cancel.cancel)
    timer.start()
    with pytest.raises(CancelledError):
        run(Deadline(cancel=cancel))
    timer.join()
    return time.perf_counter() - started_s - after_s


def test_cancelling_interrupts_the_engine(slow_encoder: VideoEncoder) -> None:
    assert _cancelled_while(lambda deadline: slow_encoder.run(_frames(), deadline)) < _SOON_S
    # The same opened graph can be run again.
    assert _cancelled_while(lambda deadline: slow_encoder.run(_frames(), deadline)) < _SOON_S


def test_a_timeout_interrupts_the_engine(slow_encoder: VideoEncoder) -> None:
    started_s = time.perf_counter()
    with pytest.raises(RequestTimeoutError, match=r"longer than 0\.3 s"):
        slow_encoder.run(_frames(), Deadline(0.3))
    assert time.perf_counter() - started_s < _SOON_S


@pytest.mark.parametrize("backend", ["onnxruntime"], indirect=True)
def test_cancelling_interrupts_the_decoding_of_a_file(
    lm: VideoLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = (sys.executable, "-c", "import time; time.sleep(300)")
    monkeypatch.setattr(decoder_process, "_command", lambda: hang)
    monkeypatch.setattr(decoder_server, "can_serve", lambda: False)  # each process is started with the command
    video = tmp_path / "film.mp4"
    video.write_bytes(b"the stand-in does not read it")
    cancel = CancelToken()
    timer = threading.Timer(0.3, cancel.cancel)
    timer.start()
    with pytest.raises(CancelledError):
        lm.encode(video, cancel=cancel)
    with pytest.raises(RequestTimeoutError):
        lm.ask(video, "Why?", options=GenerationOptions(timeout_s=0.3))
    timer.join()


def test_an_error_of_the_block_stays_what_it_is() -> None:
    with pytest.raises(VideoTooLargeError), Deadline(60, CancelToken()).interrupting(lambda: None):
        raise VideoTooLargeError("ours")


def test_nothing_is_interrupted_after_the_block() -> None:
    cancel, calls = CancelToken(), []
    deadline = Deadline(0.2, cancel)
    with deadline.interrupting(lambda: calls.append("late")):
        pass
    time.sleep(0.3)
    cancel.cancel()
    assert calls == []


def test_a_cancelled_request_does_not_begin() -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError), Deadline(cancel=cancel).interrupting(lambda: None):
        pytest.fail("the block ran")


def test_a_limit_longer_than_the_system_can_wait_is_no_limit() -> None:
    """Found by fuzzing: the timer's thread died of an OverflowError, which pytest turns into a failure here."""
    with Deadline(1e30).interrupting(lambda: pytest.fail("interrupted")):
        pass
