"""Brings whatever a caller may pass as a video into one of two forms: an open file, or pictures.

Not here: decoding (``clip.py``), the forms of pictures (``pictures.py``), and URLs (``url.py``, ``download.py``).
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from PIL import Image

from blip3v.errors import UnsupportedVideoError, UsageError, VideoError
from blip3v.video.interruption import Interrupting, between_steps, uninterrupted
from blip3v.video.pictures import ArrayLike, Pictures, as_array, collect, frames_of_array, picture
from blip3v.video.url import check_allowed, url_in
from blip3v.video_decoder.limits import VideoLimits

__all__ = ["IMAGE_SUFFIXES", "VideoInput", "check_path", "open_source"]

VideoInput = (
    str
    | Path
    | bytes
    | BinaryIO
    | Image.Image
    | ArrayLike
    | Sequence[str | Path | Image.Image | ArrayLike]
    | Iterator[str | Path | Image.Image | ArrayLike]
)
"""A video or image file as a path, bytes or a binary file object; an http or https URL, if the limits allow it; or
pictures: a folder of image files, a sequence or an iterator of image paths, PIL images and arrays, one PIL image, or
one array of frames. An array, or a torch tensor on the CPU, is uint8 (T, H, W, 3) or (T, 3, H, W), a single frame
(H, W, 3) or, in a sequence, (3, H, W). Colours are RGB. An iterator is read to its end."""

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_COPY_BYTES = 1 << 20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def open_source(
    video: VideoInput, limits: VideoLimits, interrupting: Interrupting = uninterrupted
) -> Iterator[BinaryIO | Pictures]:
    """Opens ``video``; when the block ends, opened files are closed and copies are deleted.

    Bytes, file objects and downloads are copied to an unnamed temporary file, so that none can be left behind.

    Yields:
        A readable file with a descriptor, or ``Pictures``.

    Raises:
        UsageError: something that is not a ``VideoInput``.
        VideoError: no such file, no room for a copy, or interrupted.
        UnsupportedVideoError: a URL that the limits do not allow, a device, or a folder without images.
        VideoTooLargeError: over ``max_bytes``, ``max_frames_walked``, ``max_pixels`` or ``max_memory_bytes``.
        VideoTimeoutError: over ``timeout_s``, or over one of the limits on the time of a download.
    """
    if isinstance(video, str | Path):
        with _open_path(video, limits, interrupting) as source:
            yield source
    elif isinstance(video, bytes | bytearray | memoryview):
        view = memoryview(video)
        limits.check_bytes(view.nbytes, "the video")
        if not view.c_contiguous:
            raise UsageError("the memoryview skips bytes of its memory; give `bytes(view)`, a copy without gaps")
        with _temporary_file(lambda file: file.write(view)) as file:
            yield file
    elif hasattr(video, "read"):
        readable = cast(BinaryIO, video)  # hasattr does not narrow the type
        with _temporary_file(lambda file: _copy(readable, file, limits, interrupting)) as file:
            yield file
    else:
        pictures = _pictures(video, limits, interrupting)
        pictures.check(limits)
        yield pictures


def check_path(path: str | Path, limits: VideoLimits) -> None:
    """Refuses a path or URL that ``open_source`` would refuse; nothing is decoded, and nothing is fetched.

    Raises:
        VideoError: one of its kinds, as ``open_source``.
    """
    url = url_in(path)
    if url is not None:
        check_allowed(url, limits)
        return
    with open_source(path, limits):
        pass


@contextmanager
def _open_path(path: str | Path, limits: VideoLimits, interrupting: Interrupting) -> Iterator[BinaryIO | Pictures]:
    url = url_in(path)
    if url is not None:
        check_allowed(url, limits)
        # Only a URL needs it, with http.client and ssl behind it.
        from blip3v.video.download import download

        with _temporary_file(lambda file: download(url, file, limits, interrupting)) as file:
            yield file
    elif os.path.isdir(path):
        pictures = Pictures(_images_of_folder(Path(path)))
        pictures.check(limits)
        yield pictures
    else:
        with _open_file(path, limits) as file:
            yield file


def _pictures(video: object, limits: VideoLimits, interrupting: Interrupting) -> Pictures:
    if isinstance(video, Image.Image):
        if getattr(video, "is_animated", False):
            raise UsageError(
                "the PIL image is an animation, of which only one picture would be seen; give the path of its file, "
                "or its pictures, with PIL.ImageSequence.Iterator"
            )
        return Pictures((video,))
    array = as_array(video)
    if array is not None:
        return frames_of_array(array)
    if isinstance(video, Sequence):
        return Pictures(tuple(picture(item, index) for index, item in enumerate(video)))
    if isinstance(video, Iterator):
        return collect(video, limits, interrupting)
    raise UsageError(
        f"an object of type {type(video).__name__} is not a video; give a path, bytes, a binary file object, a uint8 "
        "(T, H, W, 3) array, or a sequence or iterator of image paths, PIL images or arrays"
    )


@contextmanager
def _temporary_file(fill: Callable[[BinaryIO], object]) -> Iterator[BinaryIO]:
    """An unnamed file with what ``fill`` writes to it."""
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (closed below)
    except OSError as error:
        raise VideoError(f"no copy of the video can be made ({error}); set TMPDIR to a folder for it") from error
    with file:
        try:
            fill(file)
            file.flush()
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            raise VideoError(
                f"the disk of {tempfile.gettempdir()} is too full for a copy of the video ({error.strerror}); "
                "free some of it, or set TMPDIR to a folder on another disk"
            ) from error
        yield file


def _open_file(path: str | Path, limits: VideoLimits) -> BinaryIO:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UnsupportedVideoError(f"{path} is neither a file nor a folder; give a video file")
        limits.check_bytes(status.st_size, str(path))
        return open(path, "rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VideoError(f"{path} cannot be opened ({reason}); give the path of a video file") from error


def _copy(source: BinaryIO, target: BinaryIO, limits: VideoLimits, interrupting: Interrupting) -> None:
    num_bytes = 0
    with between_steps(interrupting, limits.timeout_s) as check:
        while chunk := source.read(_COPY_BYTES):
            if not isinstance(chunk, bytes):
                raise UsageError("the file object returns text; open it in binary mode, 'rb'")
            num_bytes += len(chunk)
            limits.check_bytes(num_bytes, "the video so far")
            target.write(chunk)
            check(f"{num_bytes} bytes")


def _images_of_folder(folder: Path) -> tuple[str, ...]:
    """Image files of a folder in natural order (2 before 10), without hidden files and other suffixes."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
    except OSError as error:
        raise VideoError(f"the folder {folder} cannot be read ({error.strerror}); check its permissions") from error
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        raise UnsupportedVideoError(
            f"{folder} contains no images; a folder of {', '.join(IMAGE_SUFFIXES)} files is a video"
        )
    return tuple(os.path.join(folder, name) for name in sorted(images, key=_natural))


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in parts], name
