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
        UsageError: a bound that is not a number above 0, ``max_memory_bytes`` below 192 MiB, which the decoder alone
            needs, or ``allow_private_url`` without ``allow_url``.
    """

    max_bytes: int = 8 * 1024**3  # of the file, or of one image
    max_pixels: int = 8192 * 4320  # width x height of one frame
    max_frames_walked: int = 1_000_000  # frames in the file, folder or array
    max_duration_s: float = 6 * 3600.0  # of the whole file, even if only a part is loaded
    max_memory_bytes: int = 2 * 1024**3  # address space of the decoder process; also the frames that a load returns
    timeout_s: float = 120.0  # wall clock of one load, without a download; also of reading an iterator or a file object
    allow_url: bool = False  # fetch videos whose path is an http or https URL
    allow_private_url: bool = False  # also from addresses that are not on the public internet
    download_timeout_s: float = 600.0  # wall clock of a whole download
    connect_timeout_s: float = 10.0  # until a host is found, and until it answers a connection
    read_timeout_s: float = 30.0  # of a download that receives nothing
    max_redirects: int = 5  # of a download; may be 0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name), str(field.type))
        if self.max_memory_bytes < _LEAST_MEMORY_BYTES:
            raise UsageError(
                f"max_memory_bytes is {self.max_memory_bytes}; the decoder alone needs {_LEAST_MEMORY_BYTES}"
            )
        if self.allow_private_url and not self.allow_url:
            raise UsageError(
                "downloads from private addresses are allowed, and downloads are not",
                remedy="`allow_private_url=True` has no effect alone: pass `allow_url=True` too",
            )

    def check_pixels(self, width: int, height: int) -> None:
        """Refuses a picture of more than ``max_pixels``.

        Raises:
            VideoTooLargeError: with the size and the limit.
        """
        if width * height > self.max_pixels:
            raise VideoTooLargeError(
                f"a frame is {width}x{height} = {width * height} pixels; the limit is {self.max_pixels} "
                "(max_pixels); scale it down"
            )

    def check_duration(self, duration_s: float) -> None:
        """Refuses a video of more than ``max_duration_s``.

        Raises:
            VideoTooLargeError: with the duration and the limit.
        """
        if duration_s > self.max_duration_s:
            raise VideoTooLargeError(
                f"the video lasts {duration_s:.1f} s; the limit is {self.max_duration_s:g} s (max_duration_s); cut it"
            )

    def check_bytes(self, num_bytes: int, name: str) -> None:
        """Refuses a file of more than ``max_bytes``.

        Raises:
            VideoTooLargeError: with the size and the limit.
        """
        if num_bytes > self.max_bytes:
            raise VideoTooLargeError(
                f"{name} has {num_bytes} bytes; the limit is {self.max_bytes} (max_bytes); use a smaller file"
            )


def _check(name: str, value: object, kind: str) -> None:
    if kind == "bool":
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {value!r}; True or False is expected")
    elif name == "max_redirects" and value == 0 and not isinstance(value, bool):
        return
    elif isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UsageError(f"{name} is {value!r}; a limit must be a number above 0")
    elif kind == "int" and not isinstance(value, int):
        raise UsageError(f"{name} is {value!r}; a whole number is expected")
