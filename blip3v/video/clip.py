"""From a video to sampled frames, and on to pixels: what runtime, export, bench and server call.

A file is decoded in a process of its own (``blip3v.video_decoder``), so that a broken or hostile file cannot take the
caller down. A load returns exactly the frames that the sampler chose or raises an error; it never substitutes others.

Letters: T sampled frames, H height, W width, S side of the model's image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from blip3v.errors import UsageError, VideoTooLargeError
from blip3v.video.decoder_process import DecoderProcess
from blip3v.video.interruption import Interrupting, uninterrupted
from blip3v.video.pictures import Pictures, rgb
from blip3v.video.preprocess import PreprocessorConfig, preprocess
from blip3v.video.sampling import SamplingRule, sample_indices
from blip3v.video.source import VideoInput, open_source
from blip3v.video.spare_decoder import SpareDecoder
from blip3v.video_decoder.limits import VideoLimits
from blip3v.video_decoder.ranges import check_fps, check_range, frames_between

if TYPE_CHECKING:
    from blip3v.video.decoder_here import DecoderHere

__all__ = ["Clip", "SampledFrame", "load_clip", "load_clip_here", "load_pixels"]

_DEFAULT_LIMITS = VideoLimits()


def _ignore(picture_HWC: np.ndarray) -> None:
    """What ``load_clip`` does with a picture on its own: nothing until it has all."""


@dataclass(frozen=True)
class SampledFrame:
    """Position of a frame in the video."""

    index: int  # in display order, 0 is the video's first frame
    time_s: float | None  # since the video's first frame; None: pictures without a frame rate have no times


@dataclass(frozen=True)
class Clip:
    """Sampled frames and where they come from.

    A frame sampled twice is the same array twice. Frames of an array or a sequence of arrays are not copied.
    """

    frames: tuple[np.ndarray, ...]  # uint8 (H, W, 3) each, RGB, at the video's size, oriented as players show it
    sampled: tuple[SampledFrame, ...]  # one for each of frames
    num_source_frames: int  # that the sampler chose from: the video's, or those of the selected part
    duration_s: float | None  # of the video, or of the selected part; None without times
    fps: float | None  # mean over the video; 0 if a single frame has no duration; None without times
    width: int  # of the first sampled frame; images may differ
    height: int
    # Broken frames found on the way that were not sampled. What no sampled frame depends on is not decoded, and then
    # counts only if the file itself tells: a truncated one, or one that marks packets as damaged.
    num_broken: int


def load_clip(
    video: VideoInput,
    *,
    num_frames: int,
    rule: SamplingRule = "released",
    start_s: float | None = None,
    end_s: float | None = None,
    fps: float | None = None,
    limits: VideoLimits = _DEFAULT_LIMITS,
    seed: int | None = None,
    interrupting: Interrupting = uninterrupted,
    spare: SpareDecoder | None = None,
    on_picture: Callable[[np.ndarray], None] = _ignore,
) -> Clip:
    """Opens a video, samples frames and decodes them.

    Args:
        video: a file, bytes, a file object, a URL, a folder, pictures, or an array (see ``VideoInput``).
        num_frames: frames to sample, at least 1.
        rule: how to sample, see ``sample_indices``.
        start_s: only frames from this time on; seconds since the video's first frame.
        end_s: only frames before this time.
        fps: frame rate of pictures, which have no times of their own: those of a folder, a sequence, an iterator or
            an array, and a single image. None: the frames have no times, and ``start_s`` and ``end_s`` are refused.
            Refused for a video or an animation, which has its own.
        limits: limits on what the load may cost.
        seed: makes ``rule="train"`` repeatable; refused with other rules, which are not random.
        interrupting: surrounds each long stage (download, reading of an iterator or a file object, decoder process)
            and is given the function that ends it, to cancel a load from another thread. An exception that it raises
            in place of the ``VideoError`` of the stage that was ended reaches the caller.
        spare: keeps a decoder process ahead, for a caller that loads one file after another; None: a file's process is
            started when it is loaded.
        on_picture: is called with each picture of a file as soon as it is decoded, in the order of the clip's frames;
            it is quick, since decoding may wait for it.

    Returns:
        The clip. A video's frame times are its own timestamps, also at a variable frame rate.

    Raises:
        UsageError: an invalid argument, or no frame between ``start_s`` and ``end_s``.
        UnsupportedVideoError: not a video, a playlist, no video stream, or a URL that ``limits`` do not allow.
        CorruptVideoError: a sampled frame is missing or cannot be decoded.
        VideoTooLargeError: over a limit of bytes, pixels, frames, duration or memory.
        VideoTimeoutError: over ``limits.timeout_s``, or over one of the limits on the time of a download.
        VideoError: the file cannot be opened or fetched.
    """
    start_s, end_s = check_range(start_s, end_s)
    fps = check_fps(fps)
    if seed is not None and rule != "train":
        raise UsageError(f"seed is {seed}, but sampling rule {rule!r} is not random; only 'train' takes a seed")
    sampler = _Sampler(num_frames, rule, seed, start_s, end_s, fps)
    # Refuses a wrong rule or count before the video is opened.
    sampler.indices(0, 1)
    with open_source(video, limits, interrupting) as source:
        if isinstance(source, Pictures):
            return _from_pictures(source, sampler, limits, lambda paths: _open_images(paths, limits, interrupting))
        return _from_file(source, sampler, limits, interrupting, spare, on_picture)


def load_clip_here(
    video: str | Path,
    *,
    num_frames: int,
    rule: SamplingRule = "released",
    start_s: float | None = None,
    end_s: float | None = None,
    limits: VideoLimits = _DEFAULT_LIMITS,
    seed: int | None = None,
) -> Clip:
    """The clip that ``load_clip`` returns, decoded in the calling process, by one thread.

    For a process that does nothing else and that its own parent watches (``pixel_process.py``): a file that crashes
    the decoder ends it, one that hangs is not interrupted, and of the limits on memory only that on frames applies.

    Raises:
        UsageError: as ``load_clip``.
        VideoError: one of its kinds, as ``load_clip``; also for a single image as a video, which is not read here.
    """
    # Opens PyAV in this process.
    from blip3v.video.decoder_here import DecoderHere, open_images

    sampler = _Sampler(num_frames, rule, seed, *check_range(start_s, end_s), None)
    with open_source(video, limits) as source:
        if isinstance(source, Pictures):
            return _from_pictures(source, sampler, limits, lambda paths: open_images(paths, limits))
        return _clip_of(DecoderHere(source, sampler.request, limits), sampler, limits, _ignore)


def load_pixels(
    video: VideoInput,
    *,
    num_frames: int,
    config: PreprocessorConfig,
    start_s: float | None = None,
    end_s: float | None = None,
    fps: float | None = None,
    limits: VideoLimits = _DEFAULT_LIMITS,
    seed: int | None = None,
) -> tuple[np.ndarray, Clip]:
    """``load_clip`` with the rule of ``config``, then ``preprocess``.

    Returns:
        float32 (T, 3, S, S) in [-1, 1], and the clip it comes from.

    Raises:
        UsageError: as ``load_clip``.
        VideoError: one of its kinds, as ``load_clip``.
    """
    clip = load_clip(
        video,
        num_frames=num_frames,
        rule=config.sampling,
        start_s=start_s,
        end_s=end_s,
        fps=fps,
        limits=limits,
        seed=seed,
    )
    return preprocess(clip.frames, config), clip


@dataclass(frozen=True)
class _Part:
    """Frames [low, high) of a video, from which the sampler chooses."""

    low: int
    high: int
    duration_s: float | None  # of this part
    fps: float | None  # mean over the video


@dataclass(frozen=True)
class _Sampler:
    num_frames: int
    rule: SamplingRule
    seed: int | None
    start_s: float | None
    end_s: float | None
    fps: float | None

    def indices(self, low: int, high: int) -> list[int]:
        rng = np.random.default_rng(self.seed) if self.rule == "train" else None
        picked: list[int] = (low + sample_indices(high - low, self.num_frames, rule=self.rule, rng=rng)).tolist()
        return picked

    @property
    def request(self) -> dict[str, Any]:
        """The range of the video, as a decoder is asked for it."""
        return {"start_s": self.start_s, "end_s": self.end_s}

    def part_of_video(self, info: dict[str, Any]) -> _Part:
        """The part of a video with times of its own; ``info`` comes from the decoder."""
        if self.fps is not None:
            raise UsageError(f"fps is {self.fps:g}, but the video has its own timestamps", remedy="leave `fps` out")
        self._check_not_empty(info["low"], info["high"], info["num_frames"], info["end_s"])
        return _Part(info["low"], info["high"], info["duration_s"], info["fps"])

    def part_of_pictures(self, num_pictures: int, limits: VideoLimits) -> _Part:
        """The part of pictures that have times only if ``fps`` gives them some."""
        if self.fps is None:
            self._check_no_range()
            return _Part(0, num_pictures, None, None)
        end_s = num_pictures / self.fps
        limits.check_duration(end_s)
        times_s = [index / self.fps for index in range(num_pictures)]
        low, high = frames_between(times_s, self.start_s, self.end_s)
        self._check_not_empty(low, high, num_pictures, end_s)
        return _Part(low, high, (high - low) / self.fps, self.fps)

    def time_s(self, index: int) -> float | None:
        """The time of a picture."""
        return None if self.fps is None else index / self.fps

    def _check_no_range(self) -> None:
        for name, value in (("start", self.start_s), ("end", self.end_s)):
            if value is not None:
                raise UsageError(
                    f"{name} is {value:g} s, but pictures have no times",
                    remedy=f"give their frame rate, for example `fps=25`, or leave `{name}` out",
                )

    def _check_not_empty(self, low: int, high: int, num_frames: int, end_s: float) -> None:
        if low < high:
            return
        if self.start_s is not None and self.start_s >= end_s:
            raise UsageError(
                f"start is {self.start_s:g} s, and the video is {end_s:.3f} s long",
                remedy="choose an earlier `start`",
            )
        start = "the start" if self.start_s is None else f"{self.start_s:g} s"
        end = "the end" if self.end_s is None else f"{self.end_s:g} s"
        raise UsageError(
            f"no frame lies between {start} and {end}; the video has {num_frames} frames from 0 to {end_s:.3f} s"
        )


def _from_file(
    file: BinaryIO,
    sampler: _Sampler,
    limits: VideoLimits,
    interrupting: Interrupting,
    spare: SpareDecoder | None,
    on_picture: Callable[[np.ndarray], None],
) -> Clip:
    with DecoderProcess(limits, file=file.fileno(), spare=spare) as decoder, interrupting(decoder.kill):
        decoder.open(sampler.request)
        if spare is not None:
            spare.refill()
        return _clip_of(decoder, sampler, limits, on_picture)


def _clip_of(
    decoder: DecoderProcess | DecoderHere,
    sampler: _Sampler,
    limits: VideoLimits,
    on_picture: Callable[[np.ndarray], None],
) -> Clip:
    """The clip of the file that a decoder has open."""
    info = decoder.receive()
    has_times = info["end_s"] is not None
    part = sampler.part_of_video(info) if has_times else sampler.part_of_pictures(info["num_frames"], limits)
    indices = sampler.indices(part.low, part.high)
    wanted = sorted(set(indices))
    _check_memory(len(wanted), info["width"] * info["height"] * 3, limits)
    decoder.send({"wanted": wanted})
    pictures: dict[int, np.ndarray] = {}
    times_s: dict[int, float | None] = {}
    for index in wanted:
        header, pictures[index] = decoder.receive_picture()
        on_picture(pictures[index])
        times_s[index] = header["time_s"] if has_times else sampler.time_s(index)
    num_broken: int = decoder.receive()["num_broken"]
    return _clip(indices, pictures, times_s, part, num_broken)


def _from_pictures(
    pictures: Pictures, sampler: _Sampler, limits: VideoLimits, open_images: Callable[[list[str]], list[np.ndarray]]
) -> Clip:
    part = sampler.part_of_pictures(len(pictures.items), limits)
    indices = sampler.indices(part.low, part.high)
    wanted = {index: pictures.items[index] for index in sorted(set(indices))}
    decoded = {index: rgb(item, index) for index, item in wanted.items() if not isinstance(item, str)}
    paths = {index: item for index, item in wanted.items() if isinstance(item, str)}
    if paths:
        decoded |= dict(zip(paths, open_images(list(paths.values())), strict=True))
    return _clip(indices, decoded, {index: sampler.time_s(index) for index in wanted}, part, 0)


def _clip(
    indices: list[int],
    pictures: dict[int, np.ndarray],
    times_s: dict[int, float | None],
    part: _Part,
    num_broken: int,
) -> Clip:
    first = pictures[indices[0]]
    return Clip(
        frames=tuple(pictures[index] for index in indices),
        sampled=tuple(SampledFrame(index, times_s[index]) for index in indices),
        num_source_frames=part.high - part.low,
        duration_s=part.duration_s,
        fps=part.fps,
        width=first.shape[1],
        height=first.shape[0],
        num_broken=num_broken,
    )


def _open_images(paths: list[str], limits: VideoLimits, interrupting: Interrupting) -> list[np.ndarray]:
    pictures: list[np.ndarray] = []
    with DecoderProcess(limits) as decoder, interrupting(decoder.kill):
        decoder.open({"images": paths})
        for _ in paths:
            pictures.append(decoder.receive_picture()[1])
            _check_memory(1, sum(picture.nbytes for picture in pictures), limits)
        decoder.receive()  # the end, with the memory it took
    return pictures


def _check_memory(num_frames: int, frame_bytes: int, limits: VideoLimits) -> None:
    if num_frames * frame_bytes > limits.max_memory_bytes:
        raise VideoTooLargeError(
            f"the sampled frames take {num_frames * frame_bytes} bytes; the limit is {limits.max_memory_bytes} "
            "(max_memory_bytes); sample fewer frames"
        )
