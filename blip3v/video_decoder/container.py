"""Opens a video file inside the decoder process, and detects truncated files.

Only formats that contain their own pictures are allowed: playlists (hls, dash, concat) and picture patterns (image2)
would make ffmpeg open other files. The content decides, not the file's name.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import BinaryIO

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from blip3v.errors import CorruptVideoError, UnsupportedVideoError
from blip3v.video_decoder.limits import VideoLimits
from blip3v.video_decoder.shared_file import reader

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,apng,ivf,nut,mxf,wtv,"
    "h264,hevc,av1,obu,m4v,mpegvideo,mjpeg,yuv4mpegpipe"
)
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<MPD")
_KNOWN_STARTS = {4: (b"ftyp", b"moov", b"mdat"), 0: (b"\x1a\x45\xdf\xa3", b"RIFF", b"FLV", b"OggS", b"GIF8")}
_BUFFER_BYTES = 1 << 20
# Video streams that are listed here are covers: one that is not would have been taken.
_STREAMS = {"audio": "sound", "video": "a cover picture", "subtitle": "subtitles", "data": "data"}


def open_container(file: BinaryIO) -> InputContainer:
    """Opens ``file`` for demuxing from its start, independently of other containers of it (see ``shared_file.py``).

    Raises:
        UnsupportedVideoError: not a video, or a format that may reach other files.
        CorruptVideoError: it starts like a video, but the rest cannot be read.
    """
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        return av.open(reader(file), mode="r", options=options, buffer_size=_BUFFER_BYTES, metadata_errors="replace")
    except MemoryError:
        raise
    except (av.FFmpegError, EOFError) as error:
        raise _refusal(file, error) from error


def video_stream(container: InputContainer, limits: VideoLimits) -> VideoStream:
    """The video stream, set up to decode; cover art does not count.

    Raises:
        UnsupportedVideoError: no video stream, or no decoder for it.
        VideoTooLargeError: its pictures are over ``limits.max_pixels``.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise UnsupportedVideoError(f"the file holds {_contents(container)} but no video; give one with a video track")
    best = container.streams.best("video")
    stream = next((s for s in streams if best is not None and s.index == best.index), streams[0])
    codec = stream.codec_context
    if codec is None:
        raise UnsupportedVideoError(
            "this build of PyAV has no decoder for the video track; convert the file to H.264 mp4"
        )
    limits.check_pixels(codec.width, codec.height)
    # One thread: with frame threads the decoder may return a picture with concealed errors before it knows of them.
    codec.thread_count = 1
    return stream


def is_truncated(file: BinaryIO) -> bool:
    """Whether the container's own sizes reach beyond the end of the file (mp4, mov, mkv, webm, avi).

    False for formats that state no size. The file's position does not matter and is preserved.
    """
    position = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(12)
        if head[:4] == b"RIFF":
            return _chunks_end(file, size, _riff_chunk) > size
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_end(file, size) > size
        if head[4:8] in _KNOWN_STARTS[4]:
            return _chunks_end(file, size, _mp4_box) > size
        return False
    finally:
        file.seek(position)


def _refusal(file: BinaryIO, error: Exception) -> UnsupportedVideoError | CorruptVideoError:
    file.seek(0)
    head = file.read(1024)
    if not head:
        return UnsupportedVideoError("the file is empty (0 bytes); give a video file")
    if any(start in head for start in _PLAYLISTS):
        return UnsupportedVideoError("the file is a playlist, which names other files; give the video file itself")
    if any(head[offset:].startswith(starts) for offset, starts in _KNOWN_STARTS.items()):
        if is_truncated(file):
            return CorruptVideoError(
                f"the file starts like a video but ends too early, at {file.seek(0, os.SEEK_END)} bytes, before the "
                "list of its frames; get the whole file"
            )
        return CorruptVideoError(
            f"the file starts like a video, but the list of its frames cannot be read ({_reason(error)}); "
            "get it again, or convert it to mp4"
        )
    return UnsupportedVideoError(
        f"the file is not a video in a supported format, such as mp4, mov, mkv, webm, avi or mpeg ({_reason(error)}); "
        "convert it to mp4"
    )


def _contents(container: InputContainer) -> str:
    """What a file without a video stream holds, in words: sound, a cover picture and subtitles."""
    kinds = {stream.type for stream in container.streams}
    words = [_STREAMS.get(kind, f"{kind} data") for kind in sorted(kinds)] or ["no streams"]
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _reason(error: Exception) -> str:
    # strerror, since the full text names an object of this process.
    return str(getattr(error, "strerror", None) or type(error).__name__)


def _chunks_end(file: BinaryIO, size: int, length_of: Callable[[bytes, int], int | None]) -> int:
    """Offset at which the last top-level chunk should end, by its own size."""
    end = 0
    while end < size:
        file.seek(end)
        length = length_of(file.read(16), size - end)
        if length is None:
            # Not a chunk: bytes after the last one are ignored.
            return size
        end += length
    return end


def _mp4_box(header: bytes, remaining: int) -> int | None:
    """Length of the box that starts with ``header``; None if it is not a box."""
    if len(header) < 8:
        return remaining + 1
    length, kind = struct.unpack(">I4s", header[:8])
    if not all(32 <= byte < 127 for byte in kind):
        return None
    if length == 0:
        return remaining
    if length == 1:
        length = int.from_bytes(header[8:16], "big")
    return length if length >= 8 else None


def _riff_chunk(header: bytes, remaining: int) -> int | None:
    """Length of the RIFF chunk that starts with ``header``; None if it is not a RIFF chunk."""
    if header[:4] != b"RIFF":
        return None
    return 8 + int.from_bytes(header[4:8], "little") if len(header) >= 8 else remaining + 1


def _matroska_end(file: BinaryIO, size: int) -> int:
    """Offset at which the Segment should end, by its own size; ``size`` if it states none."""
    file.seek(4)
    header_length = _vint(file)
    if header_length is None:
        return size
    file.seek(header_length, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return size
    length = _vint(file)
    return size if length is None else file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """EBML's variable-length size; None if it is unknown or missing."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    num_more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> num_more)]) + file.read(num_more), "big")
    return None if value == (1 << (7 * (num_more + 1))) - 1 else value
