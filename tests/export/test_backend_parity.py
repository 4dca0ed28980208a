"""Every back end against PyTorch: each stage of the video encoder, prefill and cached steps of the decoder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from export_models import Exported
from toy_parts import cpu_backends

from blip3v.bundle.precision import PRECISIONS
from blip3v.export.parity_decoder import check_decoder
from blip3v.export.parity_video import VideoCheck, check_video_encoder
from blip3v.text.prompt import Prompt

pytestmark = pytest.mark.parametrize("backend", cpu_backends())


@pytest.mark.parametrize(
    ("encoder", "precision"), [("tokenlearner", "fp32"), ("tokenlearner", "fp16"), ("gttm", "fp32"), ("gttm", "fp16")]
)
def test_every_stage_of_the_video_encoder_matches(
    video_encoder: Callable[[str, str], Exported], backend: str, encoder: str, precision: str
) -> None:
    exported = video_encoder(encoder, precision)
    config = exported.model.config
    side = config.vision.image_size
    pixels = np.random.default_rng(0).uniform(-1, 1, (config.num_frames, 3, side, side)).astype(np.float32)
    spec = PRECISIONS[precision].video_encoder
    check = check_video_encoder(exported.path, config, exported.model.state_dict(), pixels, spec, backend=backend)
    assert [row.stage for row in check.comparisons[:4]] == ["vision", "resampler", "temporal", "video_tokens"]
    assert all(row.passed for row in check.comparisons), check.comparisons
    # The copy of the graph with the stage outputs was deleted.
    assert [path.name for path in exported.path.parent.glob("*.onnx")] == ["video_encoder.onnx"]


@pytest.mark.parametrize("kind", ["fp32", "fp16", "windowed"])
def test_prefill_and_steps_of_the_decoder_match(decoder: Callable[[str], Exported], backend: str, kind: str) -> None:
    exported = decoder(kind)
    config = exported.model.config
    named = PRECISIONS["fp16" if kind == "fp16" else "fp32"]
    video_MD = np.random.default_rng(1).normal(size=(32, config.text.hidden_size)).astype(np.float32)
    prompt = Prompt(ids=[5, 9, config.text.num_base_tokens, 17, 40, 8], image_position=2)
    check = check_decoder(
        exported.path,
        config,
        exported.model.state_dict(),
        prompt,
        VideoCheck((), video_MD, video_MD, {}),
        named.decoder,
        named.decoder.tolerance,
        backend=backend,
    )
    assert all(row.passed for row in check.comparisons), check.comparisons
    assert check.tokens.differing == 0
