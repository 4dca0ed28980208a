"""Writes real video files with PyAV. Every picture shows its own number, which a test can read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

WIDTH, HEIGHT, NUM_BITS = 96, 64, 10

Film = Callable[..., Path]


def numbered_picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A red-to-blue ramp with ``number`` in its lower half as 10 black or white bars, highest bit on the left."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(250, 5, width)
    picture[..., 2] = np.linspace(5, 250, height)[:, None]
    for bit in range(NUM_BITS):
        left, right = bit * width // NUM_BITS, (bit + 1) * width // NUM_BITS
        picture[height // 2 :, left:right] = 235 if number >> (NUM_BITS - 1 - bit) & 1 else 20
    return picture


def read_number(picture: np.ndarray) -> int:
    """The number that ``numbered_picture`` drew."""
    height, width = picture.shape[:2]
    number = 0
    for bit in range(NUM_BITS):
        column = (2 * bit + 1) * width // (2 * NUM_BITS)
        number = number * 2 + int(picture[3 * height // 4, column].mean() > 127)
    return number


def write_film(
    path: Path,
    num_frames: int,
    *,
    codec: str = "libx264",
    fps: int = 25,
    gop: int = 12,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    file_format: str | None = None,
) -> Path:
    """Encodes ``num_frames`` numbered pictures; ``pts`` in units of 1/fps makes the rate variable."""
    with av.open(str(path), "w", format=file_format, options=container_options or {}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=fps, options=options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, *size), format="rgb24")
            frame.pts = number if pts is None else pts[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def packets(path: Path) -> list[tuple[int, int, int, bool]]:
    """(display index, byte position, bytes, is a keyframe) of each packet, in decode order."""
    with av.open(str(path)) as container:
        found = [(p.pts or 0, p.pos or 0, p.size, p.is_keyframe) for p in container.demux(video=0) if p.size]
    rank = {pts: index for index, pts in enumerate(sorted(pts for pts, *_ in found))}
    return [(rank[pts], pos, size, is_key) for pts, pos, size, is_key in found]


def reference_frames(path: Path) -> list[np.ndarray]:
    """Every frame as PyAV decodes it, in this process."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
