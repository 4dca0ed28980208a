"""The video encoder graph on real ONNX Runtime, compared with the PyTorch reference and its plain loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import Exported, small_config

from blip3v.bundle.precision import PRECISIONS
from blip3v.export.to_onnx import STAGE_PREFIX, save_graph, video_encoder_to_onnx
from blip3v.export.video_encoder_graph import stages_of
from blip3v.model.temporal import encoder_names, find_encoder, has_resampler, with_encoder
from blip3v.model.temporal.recurrence import Recurrence
from blip3v.model.weights import random_model

VideoEncoders = Callable[[str, str], Exported]

# Sizes other than the example's (2 clips of 3 frames); a loop over frames would be fixed at 3.
SIZES = [(1, 1), (3, 2), (1, 8), (2, 11)]


def _is_recurrent(encoder: str) -> bool:
    module = find_encoder(encoder).module
    return isinstance(module, type) and issubclass(module, Recurrence)


RECURRENT = [name for name in encoder_names() if _is_recurrent(name)]
# Counts and forms other than an encoder's usual one, for 8 frames.
FORMS: list[tuple[str, Mapping[str, object]]] = [
    *(("tokenlearner", {"num_video_tokens": m, "time_stamps": False}) for m in (16, 128, 256)),
    *(
        (name, {"num_video_tokens": m, "pooling": "attention"})
        for name in ("gttm", "mambalike")
        for m in (16, 32, 128, 256)
    ),
    *(("ttm", {"num_video_tokens": m, "memory_output": True}) for m in (16, 32, 128, 256)),
    ("ttm", {"num_video_tokens": 32, "step_tokens": 4}),
    ("ttm", {"time_stamps": False}),
    *(("transformer", {"num_video_tokens": m}) for m in (16, 32)),
    *(("perceiver", {"num_video_tokens": m}) for m in (16, 128)),
    ("mean", {"pooling": "sum"}),
    *(("per-frame", {"num_video_tokens": m}) for m in (16, 128, 256)),
    *(("space-time-pool", {"num_video_tokens": m}) for m in (16, 128)),
]


@pytest.mark.parametrize("encoder", encoder_names())
def test_equals_pytorch_for_any_batch_and_number_of_frames(video_encoder: VideoEncoders, encoder: str) -> None:
    _assert_equal_at_other_sizes(video_encoder(encoder, "fp32"))


@pytest.mark.parametrize("encoder", encoder_names())
def test_the_graph_names_its_stages(video_encoder: VideoEncoders, encoder: str) -> None:
    """Without a resampler its stage was an output that no node computes: no such graph could be checked."""
    exported = video_encoder(encoder, "fp32")
    graph = onnx.load(exported.path, load_external_data=False).graph
    computed = {name for node in graph.node for name in node.output}
    stages = stages_of(exported.model.config)
    assert {f"{STAGE_PREFIX}{stage}" for stage in stages} == {x for x in computed if x.startswith(STAGE_PREFIX)}
    assert ("resampler" in stages) == has_resampler(exported.model.config)


@pytest.mark.parametrize(
    ("encoder", "choices"),
    [
        ("gttm", {"num_video_tokens": 32}),  # the paper's pooling
        *(pytest.param(*form, marks=pytest.mark.slow) for form in FORMS),
    ],
)
def test_equals_pytorch_in_every_form(encoder: str, choices: Mapping[str, object], tmp_path: Path) -> None:
    config = with_encoder(small_config(), encoder, **choices)  # type: ignore[arg-type]
    model = random_model(config)
    save_graph(
        video_encoder_to_onnx(config, model.state_dict(), PRECISIONS["fp32"].video_encoder),
        tmp_path / "video_encoder.onnx",
    )
    _assert_equal_at_other_sizes(Exported(tmp_path / "video_encoder.onnx", model))


@pytest.mark.parametrize("encoder", ["tokenlearner", "gttm", "ttm"])
def test_fp16_stays_close(video_encoder: VideoEncoders, encoder: str) -> None:
    exported = video_encoder(encoder, "fp16")
    session = exported.session()
    for batch, num_frames in SIZES[1:]:
        got, expected = _both(exported, session, batch, num_frames, "float16")
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, expected, atol=1e-2, rtol=0, err_msg=f"{batch} x {num_frames}")


@pytest.mark.parametrize("encoder", RECURRENT)
def test_a_recurrence_is_one_scan_for_any_number_of_frames(video_encoder: VideoEncoders, encoder: str) -> None:
    exported = video_encoder(encoder, "fp32")
    graph = onnx.load(exported.path, load_external_data=False).graph
    assert [node.op_type for node in graph.node].count("Scan") == 1
    got, expected = _both(exported, exported.session(), 1, 33, "float32")
    np.testing.assert_allclose(got, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("encoder", RECURRENT)
def test_the_order_of_frames_matters_to_a_recurrence(video_encoder: VideoEncoders, encoder: str) -> None:
    """A scan that dropped its carry would pass a test with one frame and fail this one."""
    session = video_encoder(encoder, "fp32").session()
    frames = _frames(1, 4)
    forwards, backwards = (session.run(None, {"frames": part})[0] for part in (frames, frames[:, ::-1].copy()))
    # ttm outputs each frame's tokens; the last frame's depend on all the others.
    last = slice(-16, None) if encoder == "ttm" else slice(None)
    same_frame_last = session.run(None, {"frames": frames[:, [1, 0, 2, 3]].copy()})[0]
    assert np.abs(forwards - backwards).max() > 1e-3
    assert np.abs(forwards - same_frame_last)[:, last].max() > 1e-4


def _frames(batch: int, num_frames: int) -> np.ndarray:
    return np.random.default_rng(num_frames).uniform(-1, 1, (batch, num_frames, 3, 32, 32)).astype(np.float32)


def _assert_equal_at_other_sizes(exported: Exported) -> None:
    session = exported.session()
    for batch, num_frames in SIZES:
        got, expected = _both(exported, session, batch, num_frames, "float32")
        # Sums of a few hundred products in a different order, on tokens of magnitude about 1.
        np.testing.assert_allclose(got, expected, atol=2e-5, rtol=0, err_msg=f"{batch} x {num_frames}")


def _both(
    exported: Exported, session: object, batch: int, num_frames: int, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    frames = _frames(batch, num_frames)
    got = session.run(["video_tokens"], {"frames": frames.astype(dtype)})[0]  # type: ignore[attr-defined]
    with torch.inference_mode():
        expected = exported.model.encode_video(torch.from_numpy(frames)).numpy()
    assert got.shape == expected.shape
    return got, expected
