"""Pictures that a caller holds: arrays and tensors, PIL images, image paths, and iterators of them.

Tensors are read through the DLPack and array protocols, so that no framework is imported. Pictures have no times.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

from blip3v.errors import CorruptVideoError, UsageError, VideoTooLargeError
from blip3v.video.interruption import Interrupting, between_steps
from blip3v.video.url import check_no_url
from blip3v.video_decoder.limits import VideoLimits

__all__ = ["ArrayLike", "Picture", "Pictures", "as_array", "collect", "frames_of_array", "picture", "rgb"]

_DLPACK_CPU = 1


@runtime_checkable
class ArrayLike(Protocol):
    """What converts itself to a numpy array, such as a torch tensor in host memory."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray: ...


Picture = str | np.ndarray | Image.Image
"""A path of an image file, a uint8 (H, W, 3) array in RGB, or a PIL image."""


@dataclass(frozen=True)
class Pictures:
    """Pictures in order."""

    items: tuple[Picture, ...]

    def check(self, limits: VideoLimits) -> None:
        """Refuses too many, and arrays and PIL images that are too large.

        Raises:
            UsageError: there are none.
            VideoTooLargeError: over ``max_frames_walked`` or ``max_pixels``.
        """
        if not self.items:
            raise UsageError("there are no pictures; at least 1 is needed")
        if len(self.items) > limits.max_frames_walked:
            raise VideoTooLargeError(
                f"there are {len(self.items)} pictures; the limit is {limits.max_frames_walked} (max_frames_walked)"
            )
        for item in self.items:
            _check_size(item, limits)


def as_array(value: object) -> np.ndarray | None:
    """The array that ``value`` is or can be read as without a copy; None for anything else.

    Raises:
        UsageError: a tensor that is not in host memory, or that has no numpy form.
    """
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, ArrayLike):
        return None
    kind = f"the {type(value).__module__.partition('.')[0]} {type(value).__name__}"
    try:
        device = getattr(value, "__dlpack_device__", lambda: (_DLPACK_CPU, 0))()
        if int(device[0]) == _DLPACK_CPU:
            return np.asarray(value)
    except Exception as error:  # whatever that framework raises
        raise UsageError(f"{kind} cannot be read as an array ({error}); give a uint8 array in host memory") from error
    raise UsageError(f"{kind} is on a device (DLPack type {int(device[0])}); copy it to the CPU first, with .cpu()")


def frames_of_array(array: np.ndarray) -> Pictures:
    """The pictures of uint8 (T, H, W, 3), (T, 3, H, W), or (H, W, 3), which is one; RGB, not copied.

    Raises:
        UsageError: another shape or dtype, or (T, 3, H, 3), which may be either.
    """
    allowed = "uint8 (T, H, W, 3) or (T, 3, H, W) in RGB, or one picture (H, W, 3), is needed"
    if array.dtype == np.uint8 and 0 not in array.shape:
        if array.ndim == 3 and array.shape[2] == 3:
            return Pictures((array,))
        if array.ndim == 4:
            video_THWC = _colours_last(array, "the array", allowed)
            return Pictures(tuple(video_THWC))
    raise UsageError(f"the array is {array.dtype} {array.shape}; {allowed}")


def picture(item: object, index: int) -> Picture:
    """One picture of a list or an iterator.

    Raises:
        UsageError: it is none.
    """
    if isinstance(item, str | Path):
        check_no_url(item, f"picture {index}")
        return os.fspath(item)
    if isinstance(item, Image.Image):
        return item
    array = as_array(item)
    if array is None:
        raise UsageError(
            f"picture {index} has type {type(item).__name__}; a path, a PIL image, or a uint8 (H, W, 3) array is needed"
        )
    allowed = "RGB, uint8 (H, W, 3) or (3, H, W), is needed"
    if array.dtype != np.uint8 or array.ndim != 3 or 0 in array.shape:
        raise UsageError(f"picture {index} is {array.dtype} {array.shape}; {allowed}")
    return _colours_last(array, f"picture {index}", allowed)


def collect(frames: Iterable[object], limits: VideoLimits, interrupting: Interrupting) -> Pictures:
    """The pictures of an iterator, which is read to its end once; each is copied, since a source may reuse its memory.

    Args:
        frames: arrays, tensors, PIL images and paths.
        limits: ``max_frames_walked`` bounds their number, ``max_memory_bytes`` their sum, ``timeout_s`` the time.
        interrupting: ends the reading before the next frame.

    Raises:
        UsageError: something that is no picture.
        VideoTooLargeError, VideoTimeoutError: over a limit.
        VideoError: interrupted.
    """
    items: list[Picture] = []
    num_bytes = 0
    with between_steps(interrupting, limits.timeout_s) as check:
        for index, frame in enumerate(frames):
            check(f"{index} frames")
            _check_count(index, limits)
            item = picture(frame, index)
            _check_size(item, limits)
            if not isinstance(item, str):
                item = rgb(item, index).copy()
                num_bytes += item.nbytes
                if num_bytes > limits.max_memory_bytes:
                    raise VideoTooLargeError(
                        f"the first {index + 1} frames take {num_bytes} bytes; the limit is {limits.max_memory_bytes} "
                        "(max_memory_bytes); which frames are sampled depends on how many there are, so all are kept: "
                        "make them smaller or fewer, or write them to a video file"
                    )
            items.append(item)
    return Pictures(tuple(items))


def rgb(item: np.ndarray | Image.Image, index: int) -> np.ndarray:
    """The picture as uint8 (H, W, 3); a PIL image is decoded now and oriented by its EXIF data.

    Raises:
        CorruptVideoError: a PIL image whose file cannot be decoded.
    """
    if isinstance(item, np.ndarray):
        return item
    try:
        return np.asarray(ImageOps.exif_transpose(item).convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # whatever Pillow raises: struct.error for EXIF data that are cut off
        raise CorruptVideoError(f"picture {index} cannot be decoded ({error}); replace or remove it") from error


def _colours_last(array: np.ndarray, name: str, allowed: str) -> np.ndarray:
    first = array.shape[-3] == 3
    last = array.shape[-1] == 3
    if first and last:
        raise UsageError(
            f"{name} has shape {array.shape}, in which colours may come first or last; resize it: {allowed}"
        )
    if not first and not last:
        raise UsageError(f"{name} is {array.dtype} {array.shape}; {allowed}")
    return array if last else np.moveaxis(array, -3, -1)


def _check_size(item: Picture, limits: VideoLimits) -> None:
    if isinstance(item, np.ndarray):
        limits.check_pixels(item.shape[1], item.shape[0])
    elif isinstance(item, Image.Image):
        limits.check_pixels(item.width, item.height)


def _check_count(num_frames: int, limits: VideoLimits) -> None:
    if num_frames >= limits.max_frames_walked:
        raise VideoTooLargeError(
            f"there are more than {limits.max_frames_walked} frames, the limit (max_frames_walked); give fewer"
        )
