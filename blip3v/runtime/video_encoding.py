"""From a video to its tokens: frames picked, decoded and resized by ``blip3v.video``, then the video encoder.

Letters: F frames, S side of the model's image, M video tokens, D width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.errors import BackendError, RequestError
from blip3v.runtime.backends import FloatArray
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.checks import shown
from blip3v.runtime.gpu_array import DlpackArray, GpuArray, as_array
from blip3v.runtime.request import Model, check_gpu_array
from blip3v.runtime.types import Frame, VideoTokens, is_frame
from blip3v.video.clip import load_clip
from blip3v.video.preprocess import Preprocessing, PreprocessorConfig
from blip3v.video.source import VideoInput

__all__ = ["encode_pixels", "encode_video"]

_ROUNDING = 1e-3  # by which a pixel may lie outside the range


def encode_video(
    model: Model, video: VideoInput, start: float | None, end: float | None, fps: float | None, deadline: Deadline
) -> VideoTokens:
    """Video tokens of a clip; see ``VideoLM.encode``. ``deadline`` interrupts every stage."""
    deadline.check()
    opened_s = time.perf_counter()
    num_frames = model.config.num_frames
    with Preprocessing(model.preprocessor, num_frames) as preprocessing:
        clip = load_clip(
            video,
            num_frames=num_frames,
            rule=model.preprocessor.sampling,
            start_s=start,
            end_s=end,
            fps=fps,
            limits=model.limits,
            interrupting=deadline.interrupting,
            spare=model.spare_decoder,
            on_picture=preprocessing.begin,
        )
        decoded_s = time.perf_counter()
        deadline.check()
        pixels: NDArray[np.float32] = preprocessing.pixels(clip.frames)
    resized_s = time.perf_counter()
    deadline.check()
    tokens_MD = _encoded(model, pixels[None], deadline)
    return VideoTokens(
        tokens=tokens_MD,
        frames=tuple((frame.index, frame.time_s) for frame in clip.sampled),
        encoder=model.encoder_hash,
        file_decode_s=decoded_s - opened_s,
        preprocess_s=resized_s - decoded_s,
        encode_s=time.perf_counter() - resized_s,
    )


def encode_pixels(model: Model, pixels: DlpackArray, frames: Sequence[Frame] | None, deadline: Deadline) -> VideoTokens:
    """Video tokens of preprocessed pixels; see ``VideoLM.encode_pixels``. ``deadline`` interrupts the encoder."""
    deadline.check()
    num_frames, side = model.config.num_frames, model.config.vision.image_size
    expected = (
        f"float16 or float32 of shape ({num_frames}, 3, {side}, {side}) is expected, as blip3v.video.preprocess makes "
        "it; a video or raw frames go to encode"
    )
    found = as_array("pixels", pixels, expected)
    if tuple(found.shape) != (num_frames, 3, side, side) or str(found.dtype) not in ("float16", "float32"):
        raise RequestError(f"pixels is {found.dtype} of shape {tuple(found.shape)}; {expected}")
    if isinstance(found, GpuArray):
        check_gpu_array("pixels", found, model.video_encoder)
    else:
        _check_range(found, model.preprocessor)
    record = _record(frames, num_frames)
    began_s = time.perf_counter()
    batch = found.as_batch() if isinstance(found, GpuArray) else found[None]
    tokens_MD = _encoded(model, batch, deadline)
    encode_s = time.perf_counter() - began_s
    return VideoTokens(tokens=tokens_MD, frames=record, encoder=model.encoder_hash, encode_s=encode_s)


def _encoded(model: Model, pixels_1F3SS: NDArray[Any] | GpuArray, deadline: Deadline) -> FloatArray:
    """The video tokens (M,D) of one clip."""
    tokens_MD: FloatArray = model.video_encoder.run(pixels_1F3SS, deadline)["video_tokens"][0]
    if not np.isfinite(tokens_MD).all():
        raise BackendError(
            "the video encoder returned tokens that are not finite; its weights or its precision are broken: "
            "run `blip3v verify` on the bundle, or export it in fp32"
        )
    return tokens_MD


def _check_range(pixels_F3SS: NDArray[Any], config: PreprocessorConfig) -> None:
    pairs = list(zip(config.image_mean, config.image_std, strict=True))
    low, high = min(-mean / std for mean, std in pairs), max((1 - mean) / std for mean, std in pairs)
    found = float(pixels_F3SS.min()), float(pixels_F3SS.max())
    if not (low - _ROUNDING <= found[0] and found[1] <= high + _ROUNDING):  # nor if one is not a number
        raise RequestError(
            f"pixels has values from {found[0]:g} to {found[1]:g}; {low:g} to {high:g} is expected, as "
            "blip3v.video.preprocess makes them; a video or raw frames go to encode"
        )


def _record(frames: object, num_frames: int) -> tuple[Frame, ...]:
    """Number and time of each frame."""
    if frames is None:
        return tuple((index, None) for index in range(num_frames))
    if not isinstance(frames, Sequence) or len(frames) != num_frames or not all(map(is_frame, frames)):
        raise RequestError(f"frames is {shown(frames)}; {num_frames} pairs of (number, time in seconds) are expected")
    return tuple(frames)
