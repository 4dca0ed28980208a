"""From a video to its tokens: frames picked, decoded and resized by ``blip3v.video``, then the video encoder."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
from numpy.typing import NDArray

from blip3v.errors import VideoTimeoutError
from blip3v.runtime.engine import Engine
from blip3v.runtime.options import Control
from blip3v.runtime.types import VideoTokens
from blip3v.video.clip import Clip, load_clip
from blip3v.video.preprocess import preprocess
from blip3v.video.source import VideoInput

__all__ = ["encode_video"]


def encode_video(
    engine: Engine, video: VideoInput, start: float | None, end: float | None, control: Control
) -> VideoTokens:
    """Video tokens of a clip; see ``VideoLM.encode``. ``control`` is asked between the stages."""
    control.check()
    opened_s = time.perf_counter()
    clip = _load(engine, video, start, end, control)
    decoded_s = time.perf_counter()
    control.check()
    pixels: NDArray[np.float32] = preprocess(clip.frames, engine.preprocessor)
    resized_s = time.perf_counter()
    control.check()
    tokens = engine.encoder.encode(pixels[None])[0]
    return VideoTokens(
        tokens=tokens,
        frames=tuple((frame.index, frame.time_s) for frame in clip.sampled),
        encoder=engine.encoder_hash,
        file_decode_s=decoded_s - opened_s,
        preprocess_s=resized_s - decoded_s,
        encode_s=time.perf_counter() - resized_s,
    )


def _load(engine: Engine, video: VideoInput, start: float | None, end: float | None, control: Control) -> Clip:
    limits, left_s = engine.limits, control.remaining_s
    if left_s is not None and left_s < limits.timeout_s:
        limits = dataclasses.replace(limits, timeout_s=max(left_s, 1e-3))
    try:
        return load_clip(
            video,
            num_frames=engine.config.num_frames,
            rule=engine.preprocessor.sampling,
            start_s=start,
            end_s=end,
            limits=limits,
        )
    except VideoTimeoutError:
        control.check()  # where the request's own time is over, that is the reason to give
        raise
