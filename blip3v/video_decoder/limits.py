"""Limits on what one load of a video may cost. Separate from the rest, so that the decoder process imports little."""

from __future__ import annotations

from dataclasses import dataclass, fields

from blip3v.errors import UsageError, VideoTooLargeError

__all__ = ["VideoLimits"]


# For Python and the video libraries, before the first picture.
_LEAST_MEMORY_BYTES = 192 * 1024**2


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """Upper bounds; a video over one of them raises a ``VideoTooLargeError`` or a ``VideoTimeoutError``.

    The defaults allow 8K pictures and films of several hours. A server that reads untrusted files should lower them.

    Raises:
        UsageError: a bound that is not above 0, or ``max_memory_bytes`` below 192 MiB, which the decoder alone needs.
    """

    max_bytes: int = 8 * 1024**3  # of the file, or of one image
    max_pixels: int = 8192 * 4320  # width x height of one frame
    max_frames_walked: int = 1_000_000  # frames in the file, folder or array
    max_duration_s: float = 6 * 3600.0  # of the whole file, even if only a part is loaded
    max_memory_bytes: int = 2 * 1024**3  # address space of the decoder process; also the frames that a load returns
    timeout_s: float = 120.0  # wall clock of one load

    def __post_init__(self) -> None:
        if self.max_memory_bytes < _LEAST_MEMORY_BYTES:
            raise UsageError(
                f"max_memory_bytes is {self.max_memory_bytes}; the decoder alone needs {_LEAST_MEMORY_BYTES}"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise UsageError(f"{field.name} is {value}; a limit must be above 0")

    def check_pixels(self, width: int, height: int) -> None:
        """Refuses a picture of more than ``max_pixels``.

        Raises:
            VideoTooLargeError: with the size and the limit.
        """
        if width * height > self.max_pixels:
            raise VideoTooLargeError(
                f"a frame is {width}x{height} = {width * height} pixels; the limit is {self.max_pixels} (max_pixels)"
            )

    def check_bytes(self, num_bytes: int, name: str) -> None:
        """Refuses a file of more than ``max_bytes``.

        Raises:
            VideoTooLargeError: with the size and the limit.
        """
        if num_bytes > self.max_bytes:
            raise VideoTooLargeError(f"{name} has {num_bytes} bytes; the limit is {self.max_bytes} (max_bytes)")
