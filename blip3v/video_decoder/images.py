"""Opens image files inside the decoder process: those of a folder or list, and one that is given as a video."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from blip3v.errors import CorruptVideoError, VideoTooLargeError
from blip3v.video_decoder.limits import VideoLimits

__all__ = ["ImageFile", "open_image"]

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Of these every picture counts; the others hold one, or more that are not frames, as the preview in a photo.
_SEQUENCES = ("WEBP", "TIFF")

# What players make of a duration of 0.
_NO_DURATION_MS = 100


def open_image(path: str, limits: VideoLimits) -> Image.Image:
    """The picture at ``path`` in RGB, oriented by its EXIF data; the first picture of an animation.

    Raises:
        CorruptVideoError: it is not an image, or an incomplete one.
        VideoTooLargeError: over ``max_bytes`` or ``max_pixels``.
    """
    with _reading(path):
        limits.check_bytes(os.stat(path).st_size, path)
        with _opened(path, limits) as image:
            return _upright(image)


class ImageFile:
    """The pictures of one file: of an animated WebP with their times, of a TIFF without, or a single one.

    Raises:
        CorruptVideoError: it cannot be read.
        VideoTooLargeError: over ``max_pixels``, ``max_frames_walked`` or ``max_duration_s``.
    """

    def __init__(self, file: BinaryIO, limits: VideoLimits) -> None:
        with _reading("the file"):
            file.seek(0)
            self._image = _opened(file, limits)
            self.num_frames: int = getattr(self._image, "n_frames", 1) if self._image.format in _SEQUENCES else 1
        self._limits = limits
        self.width, self.height = self._image.size
        if self.num_frames > limits.max_frames_walked:
            raise VideoTooLargeError(
                f"the file has {self.num_frames} pictures; the limit is {limits.max_frames_walked} (max_frames_walked)"
            )
        self.times_s: list[float] | None = None  # of each picture, and when the last one ends
        if self._image.format == "WEBP" and self.num_frames > 1:
            self.times_s = [ms / 1000 for ms in itertools.accumulate(_webp_durations_ms(file), initial=0)]
            if len(self.times_s) != self.num_frames + 1:
                raise CorruptVideoError(
                    f"the file has {self.num_frames} pictures and {len(self.times_s) - 1} durations; get it again"
                )
            limits.check_duration(self.times_s[-1])

    def pick(self, wanted: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
        """(index, picture in RGB) for each of ``wanted``, which increase."""
        for index in wanted:
            with _reading(f"picture {index} of the file"):
                self._image.seek(index)
                self._limits.check_pixels(*self._image.size)
                picture = _upright(self._image)
            yield index, picture


def _opened(source: str | BinaryIO, limits: VideoLimits) -> Image.Image:
    # Our own limit replaces PIL's, which only warns.
    Image.MAX_IMAGE_PIXELS = None
    image = Image.open(source, formats=_FORMATS)
    limits.check_pixels(image.width, image.height)
    return image


def _webp_durations_ms(file: BinaryIO) -> Iterator[int]:
    """Durations of an animation's pictures, from the headers of their chunks."""
    file.seek(0)
    riff = file.read(12)
    end = 8 + int.from_bytes(riff[4:8], "little")
    while file.tell() < end and len(header := file.read(24)) == 24:
        kind, length = struct.unpack("<4sI", header[:8])
        if kind == b"ANMF":
            yield int.from_bytes(header[20:23], "little") or _NO_DURATION_MS
        file.seek(length + length % 2 - 16, os.SEEK_CUR)


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise CorruptVideoError(f"{name} is not an image of a supported format: {', '.join(_FORMATS)}") from error
    except FileNotFoundError as error:
        raise CorruptVideoError(f"{name} does not exist; check the path of each image") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        why = getattr(error, "strerror", None) or error  # of the system's errors without its number and the path
        raise CorruptVideoError(f"{name} cannot be read as an image ({why}); replace or remove it") from error
