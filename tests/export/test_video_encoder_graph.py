"""The video encoder's graph on real ONNX Runtime, held to the PyTorch reference with its plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from export_models import Exported

VideoEncoders = Callable[[str, str], Exported]

# Sizes that were not the example's (2 clips of 3 frames); a loop over frames would be fixed at 3.
SIZES = [(1, 1), (3, 2), (1, 8), (2, 11)]


@pytest.mark.parametrize("encoder", ["tokenlearner", "gttm", "mean", "none", "single-frame"])
def test_equals_pytorch_for_any_batch_and_number_of_frames(video_encoder: VideoEncoders, encoder: str) -> None:
    exported = video_encoder(encoder, "fp32")
    session = exported.session()
    for batch, num_frames in SIZES:
        got, expected = _both(exported, session, batch, num_frames, "float32")
        # Sums of a few hundred products in another order, on tokens of size about 1.
        np.testing.assert_allclose(got, expected, atol=2e-5, rtol=0, err_msg=f"{batch} x {num_frames}")


@pytest.mark.parametrize("encoder", ["tokenlearner", "gttm"])
def test_fp16_stays_close(video_encoder: VideoEncoders, encoder: str) -> None:
    exported = video_encoder(encoder, "fp16")
    session = exported.session()
    for batch, num_frames in SIZES[1:]:
        got, expected = _both(exported, session, batch, num_frames, "float16")
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, expected, atol=1e-2, rtol=0, err_msg=f"{batch} x {num_frames}")


def test_gttm_is_one_scan_for_any_number_of_frames(video_encoder: VideoEncoders) -> None:
    exported = video_encoder("gttm", "fp32")
    graph = onnx.load(exported.path, load_external_data=False).graph
    assert [node.op_type for node in graph.node].count("Scan") == 1
    got, expected = _both(exported, exported.session(), 1, 33, "float32")
    np.testing.assert_allclose(got, expected, atol=5e-5, rtol=0)


def test_the_order_of_frames_matters_to_gttm(video_encoder: VideoEncoders) -> None:
    """A scan that dropped its carry would pass a test of one frame and fail this one."""
    session = video_encoder("gttm", "fp32").session()
    frames = _frames(1, 4)
    forwards, backwards = (session.run(None, {"frames": part})[0] for part in (frames, frames[:, ::-1].copy()))
    assert np.abs(forwards - backwards).max() > 1e-3


def _frames(batch: int, num_frames: int) -> np.ndarray:
    return np.random.default_rng(num_frames).uniform(-1, 1, (batch, num_frames, 3, 32, 32)).astype(np.float32)


def _both(
    exported: Exported, session: object, batch: int, num_frames: int, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    frames = _frames(batch, num_frames)
    got = session.run(["video_tokens"], {"frames": frames.astype(dtype)})[0]  # type: ignore[attr-defined]
    with torch.inference_mode():
        expected = exported.model.encode_video(torch.from_numpy(frames)).numpy()
    assert got.shape == expected.shape
    return got, expected
