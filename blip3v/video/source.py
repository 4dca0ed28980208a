"""Brings whatever a caller may pass as a video into one of three forms: an open file, image files, or arrays.

Paths are local files; URLs are never fetched. Not here: decoding (``clip.py``).
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from blip3v.errors import UnsupportedVideoError, UsageError, VideoError, VideoTooLargeError
from blip3v.video_decoder.limits import VideoLimits

__all__ = ["IMAGE_SUFFIXES", "Pictures", "VideoInput", "open_source"]

VideoInput = str | Path | bytes | BinaryIO | np.ndarray | Sequence[str | Path | np.ndarray]
"""A video file as a path, bytes or a binary file object; or pictures: a folder of image files, a sequence of image
paths and uint8 (H, W, 3) arrays, or one uint8 (T, H, W, 3) array. Colours are RGB."""

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Pictures:
    """Pictures without timestamps, in order: paths of image files, or uint8 (H, W, 3) arrays."""

    items: tuple[str | np.ndarray, ...]


@contextmanager
def open_source(video: VideoInput, limits: VideoLimits) -> Iterator[BinaryIO | Pictures]:
    """Opens ``video``; when the block ends, opened files are closed and copies are deleted.

    Bytes and file objects are copied to an unnamed temporary file, so that none can be left behind.

    Yields:
        A readable file with a descriptor, or ``Pictures``.

    Raises:
        UsageError: something that is not a ``VideoInput``.
        VideoError: no such file.
        UnsupportedVideoError: a URL, a device, or a folder without images.
        VideoTooLargeError: over ``max_bytes``, ``max_frames_walked`` or ``max_pixels``.
    """
    if isinstance(video, str | Path):
        if os.path.isdir(video):
            yield _checked(Pictures(_images_of_folder(Path(video))), limits)
            return
        with _open_file(video, limits) as file:
            yield file
    elif isinstance(video, bytes | bytearray | memoryview):
        limits.check_bytes(len(video), "the video")
        with tempfile.TemporaryFile() as file:
            file.write(video)
            file.flush()
            yield file
    elif isinstance(video, np.ndarray):
        yield _checked(Pictures(tuple(_checked_array(video))), limits)
    elif isinstance(video, Sequence):
        yield _checked(Pictures(tuple(_item(item, index) for index, item in enumerate(video))), limits)
    elif hasattr(video, "read"):
        with tempfile.TemporaryFile() as file:
            _copy(video, file, limits)
            yield file
    else:
        raise UsageError(
            f"an object of type {type(video).__name__} is not a video; give a path, bytes, a binary file object, a "
            "uint8 (T, H, W, 3) array, or a sequence of image paths or arrays"
        )


def _open_file(path: str | Path, limits: VideoLimits) -> BinaryIO:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UnsupportedVideoError(f"{path} is neither a file nor a folder; give a video file")
        limits.check_bytes(status.st_size, str(path))
        return open(path, "rb")
    except (OSError, ValueError) as error:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(path)):
            raise UnsupportedVideoError(f"{path} is a URL, which blip3v does not fetch; download the video") from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise VideoError(f"{path} cannot be opened ({reason}); give the path of a video file") from error


def _copy(source: BinaryIO, target: BinaryIO, limits: VideoLimits) -> None:
    num_bytes = 0
    while chunk := source.read(_COPY_BYTES):
        if not isinstance(chunk, bytes):
            raise UsageError("the file object returns text; open it in binary mode, 'rb'")
        num_bytes += len(chunk)
        limits.check_bytes(num_bytes, "the video so far")
        target.write(chunk)
    target.flush()


def _images_of_folder(folder: Path) -> tuple[str, ...]:
    """Image files of a folder in natural order (2 before 10), without hidden files and other suffixes."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        raise UnsupportedVideoError(
            f"{folder} contains no images; a folder of {', '.join(IMAGE_SUFFIXES)} files is a video"
        )
    return tuple(os.path.join(folder, name) for name in sorted(images, key=_natural))


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in parts], name


def _item(item: object, index: int) -> str | np.ndarray:
    if isinstance(item, str | Path):
        return os.fspath(item)
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or 0 in item.shape:
            raise UsageError(f"picture {index} is {item.dtype} {item.shape}; RGB, uint8 (H, W, 3), is needed")
        return item
    raise UsageError(f"picture {index} has type {type(item).__name__}; a path or a uint8 (H, W, 3) array is needed")


def _checked_array(video_THWC: np.ndarray) -> np.ndarray:
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[3] != 3 or 0 in video_THWC.shape:
        raise UsageError(f"the array is {video_THWC.dtype} {video_THWC.shape}; RGB, uint8 (T, H, W, 3), is needed")
    return video_THWC


def _checked(pictures: Pictures, limits: VideoLimits) -> Pictures:
    if not pictures.items:
        raise UsageError("the sequence is empty; at least 1 picture is needed")
    if len(pictures.items) > limits.max_frames_walked:
        raise VideoTooLargeError(
            f"there are {len(pictures.items)} pictures; the limit is {limits.max_frames_walked} (max_frames_walked)"
        )
    for item in pictures.items:
        if isinstance(item, np.ndarray):
            limits.check_pixels(item.shape[1], item.shape[0])
    return pictures
