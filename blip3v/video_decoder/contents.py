"""What a video file contains, as the decoder answers it: its frames, the range that is asked for, how to show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from blip3v.errors import UnsupportedVideoError
from blip3v.video_decoder.limits import VideoLimits
from blip3v.video_decoder.ranges import frames_between

if TYPE_CHECKING:
    from av.buffer import Buffer
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from blip3v.video_decoder.walk import Opener, Walk

__all__ = ["info_of", "orientation", "walk_of"]


def walk_of(file: BinaryIO, limits: VideoLimits) -> tuple[Walk, Opener]:
    """The frames of a video file, and what opens it again.

    Raises:
        UnsupportedVideoError: not a video.
        CorruptVideoError: it cannot be read.
        VideoTooLargeError: over a limit.
    """
    # Imported under the memory limit, and not at all for images.
    from blip3v.video_decoder.container import is_truncated, open_container, video_stream
    from blip3v.video_decoder.walk import walk_file

    def opener() -> tuple[InputContainer, VideoStream]:
        container = open_container(file)
        return container, video_stream(container, limits)

    return walk_file(opener, limits, truncated=is_truncated(file)), opener


def info_of(
    width: int, height: int, num_frames: int, times_s: list[float] | None, request: Mapping[str, Any]
) -> dict[str, Any]:
    """What the file holds, and which frames are in the range. ``times_s`` includes the end of the last frame."""
    size = {"num_frames": num_frames, "width": width, "height": height}
    if times_s is None:
        return size | {"low": None, "high": None, "duration_s": None, "end_s": None}
    low, high = frames_between(times_s[:-1], request["start_s"], request["end_s"])
    return size | {"low": low, "high": high, "duration_s": times_s[high] - times_s[low], "end_s": times_s[-1]}


def orientation(frame: VideoFrame) -> list[bool]:
    """How to orient the picture for display: [transpose, flip left-right, flip top-bottom], in that order.

    Raises:
        UnsupportedVideoError: by something other than quarter turns.
    """
    # PyAV's stub knows only one kind of side data.
    stored = cast("Buffer | None", frame.side_data.get("DISPLAYMATRIX"))
    if stored is None:
        return [False, False, False]
    matrix = memoryview(bytes(stored)).cast("i")
    # x' = a x + c y, y' = b x + d y, with y downwards.
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if a == d == 0 and b and c:
        return [True, c < 0, b < 0]
    if b == c == 0 and a and d:
        return [False, a < 0, d < 0]
    raise UnsupportedVideoError(
        "the file tells players to rotate its pictures by something other than quarter turns; convert it first"
    )
