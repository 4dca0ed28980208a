"""From a video to its tokens: frames picked, decoded and resized by ``blip3v.video``, then the video encoder."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from blip3v.errors import BackendError
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.request import Model
from blip3v.runtime.types import VideoTokens
from blip3v.video.clip import load_clip
from blip3v.video.preprocess import preprocess
from blip3v.video.source import VideoInput

__all__ = ["encode_video"]


def encode_video(
    model: Model, video: VideoInput, start: float | None, end: float | None, fps: float | None, deadline: Deadline
) -> VideoTokens:
    """Video tokens of a clip; see ``VideoLM.encode``. ``deadline`` interrupts every stage."""
    deadline.check()
    opened_s = time.perf_counter()
    clip = load_clip(
        video,
        num_frames=model.config.num_frames,
        rule=model.preprocessor.sampling,
        start_s=start,
        end_s=end,
        fps=fps,
        limits=model.limits,
        interrupting=deadline.interrupting,
        spare=model.spare_decoder,
    )
    decoded_s = time.perf_counter()
    deadline.check()
    pixels: NDArray[np.float32] = preprocess(clip.frames, model.preprocessor)
    resized_s = time.perf_counter()
    deadline.check()
    tokens_MD = model.video_encoder.run(pixels[None], deadline)["video_tokens"][0]
    if not np.isfinite(tokens_MD).all():
        raise BackendError(
            "the video encoder returned tokens that are not finite; its weights or its precision are broken: "
            "run `blip3v verify` on the bundle, or export it in fp32"
        )
    return VideoTokens(
        tokens=tokens_MD,
        frames=tuple((frame.index, frame.time_s) for frame in clip.sampled),
        encoder=model.encoder_hash,
        file_decode_s=decoded_s - opened_s,
        preprocess_s=resized_s - decoded_s,
        encode_s=time.perf_counter() - resized_s,
    )
