"""Writes a film as an H.264 file: 4:3, with the film's own length and frame rate. ``blip3v.video`` reads files.

PyAV is imported when a file is written: films are rendered, and models exported, where it is not installed.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from blip3v.data.film import Film
from blip3v.data.render import render
from blip3v.errors import UsageError, VideoError
from blip3v.extras import reinstall_line
from blip3v.publishing import in_words

__all__ = ["FILE_SIZES", "write_mp4"]

FILE_SIZES: dict[int, int] = {240: 320, 480: 640, 720: 960}  # height: width

_CODEC: Literal["libx264"] = "libx264"
# Constant quality; one thread and no tool names in the file, so that a film always has the same bytes.
_ENCODER_OPTIONS = {"crf": "20", "preset": "medium", "threads": "1", "flags": "+bitexact"}
_MUXER_OPTIONS = {"movflags": "+faststart", "fflags": "+bitexact"}
_FRAMES_AT_ONCE = 16  # bounds memory: the whole film is never in it


def write_mp4(film: Film, path: Path, *, height: int = 480) -> None:
    """Writes every frame of ``film`` to ``path`` (yuv420p).

    Args:
        film: the film.
        path: the file; an existing one is replaced.
        height: a key of ``FILE_SIZES``.

    Raises:
        UsageError: the height is not allowed.
        VideoError: the installed PyAV cannot encode H.264, or the file cannot be written.
    """
    if height not in FILE_SIZES:
        raise UsageError(f"height is {height}; allowed: {', '.join(map(str, FILE_SIZES))}")
    import av  # see above

    _check_encoder()
    try:
        _write(film, path, height, FILE_SIZES[height])
    except (OSError, av.FFmpegError) as error:
        cause = in_words(error, path) if isinstance(error, OSError) else error
        raise VideoError(f"{path} cannot be written: {cause}") from error


def _check_encoder() -> None:
    import av

    try:
        av.codec.Codec(_CODEC, "w")
    except ValueError as error:
        raise VideoError(
            f"PyAV {av.__version__} has no {_CODEC} encoder, so no film can be written; "
            f"its wheels include one: {reinstall_line('av')}"
        ) from error


def _write(film: Film, path: Path, height: int, width: int) -> None:
    import av

    with av.open(str(path), "w", format="mp4", options=_MUXER_OPTIONS) as container:
        stream = container.add_stream(_CODEC, rate=film.fps, options=_ENCODER_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for first in range(0, film.num_frames, _FRAMES_AT_ONCE):
            numbers = np.arange(first, min(first + _FRAMES_AT_ONCE, film.num_frames))
            for number, picture in zip(numbers, render(film, numbers / film.num_frames, height, width), strict=True):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = int(number), Fraction(1, film.fps)
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
