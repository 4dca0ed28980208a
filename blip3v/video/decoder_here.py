"""Decodes in the calling process: what ``DecoderProcess`` asks another one for, without its limits and its safety."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from blip3v.video.decoder_process import oriented
from blip3v.video_decoder.contents import info_of, orientation, walk_of
from blip3v.video_decoder.images import open_image
from blip3v.video_decoder.limits import VideoLimits
from blip3v.video_decoder.pick import pick

__all__ = ["DecoderHere", "open_images"]


class DecoderHere:
    """Answers about one open video file as a ``DecoderProcess`` does, in the same order, by one thread."""

    def __init__(self, file: BinaryIO, request: Mapping[str, Any], limits: VideoLimits) -> None:
        """Lists the file's frames.

        Args:
            file: the video; it stays open while this is used.
            request: ``start_s`` and ``end_s``, of the frames that ``receive`` tells first.
            limits: of frames, pixels and duration; those on time and on the process's memory do not apply.

        Raises:
            VideoError: one of its kinds: not a video, a broken one, or one over a limit.
        """
        self._limits = limits
        self._walk, self._opener = walk_of(file, limits)
        times_s = [*self._walk.times_s, self._walk.end_s]
        self._info = info_of(self._walk.width, self._walk.height, self._walk.num_frames, times_s, request)
        self._info["fps"] = self._walk.fps
        self._reformatter = VideoReformatter()
        self._wanted: list[int] | None = None  # None: not said yet
        self._frames: Iterator[tuple[int, VideoFrame]] = iter(())

    def receive(self) -> dict[str, Any]:
        """What the file contains; after ``send`` and the pictures, how many frames were broken."""
        if self._wanted is None:
            return self._info
        return {"num_broken": len(self._walk.broken - set(self._wanted))}

    def send(self, message: Mapping[str, Any]) -> None:
        """Says which frames are wanted, by display index, increasing."""
        wanted: list[int] = message["wanted"]
        self._wanted = wanted
        self._frames = pick(self._opener, self._walk, wanted, num_threads=1)

    def receive_picture(self) -> tuple[dict[str, Any], np.ndarray]:
        """The next wanted picture, oriented for display, uint8 (H, W, 3).

        Raises:
            CorruptVideoError: it cannot be decoded.
        """
        index, frame = next(self._frames)
        self._limits.check_pixels(frame.width, frame.height)
        picture_HWC = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        return {"time_s": self._walk.times_s[index]}, oriented(picture_HWC, orientation(frame))


def open_images(paths: Sequence[str], limits: VideoLimits) -> list[np.ndarray]:
    """The pictures of image files, uint8 (H, W, 3) each.

    Raises:
        VideoError: one of its kinds, as ``open_image``.
    """
    return [np.asarray(open_image(path, limits)) for path in paths]
