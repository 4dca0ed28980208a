"""The decoder process: ``python -m blip3v.video_decoder``. It reads requests on stdin and answers on stdout.

    out  {"blip3v": "blip3v 0.1.0", "python": "cpython-311"}           who answers, before anything is asked

    in   {"fd": 5, "start_s": null, "end_s": 2.5, "limits": {...}}     a video, open as file descriptor 5
    out  {"num_frames": 75, "low": 0, "high": 62, ...}                 its contents; the range is [low, high),
                                                                       or null if its pictures have no times
    in   {"wanted": [4, 12, 20]}                                       display indices, increasing
    out  {"index": 4, "time_s": 0.16, "width": ..., "orientation": ...} + raw RGB bytes, for each
    out  {"num_broken": 0, "peak_rss_bytes": 61865984}                 the process's own memory; null if unknown

    in   {"images": ["a.jpg", "b.jpg"], "limits": {...}}
    out  {"width": ..., "height": ..., "orientation": ...} + raw RGB bytes, for each
    out  {"peak_rss_bytes": 61865984}

A process that is started ahead, with the number of a socket as its argument, is sent the file through that socket after
the request, whose "fd" is null. It prepares itself while it waits.

Each JSON object is one line. An error is {"error": class name, "message": text}, and ends the process. Native code that
crashes, hangs or exhausts memory does so here and not in the caller. numpy is not imported, so that the start is quick.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from blip3v.errors import Blip3vError, CorruptVideoError, UnsupportedVideoError, VideoTooLargeError
from blip3v.video_decoder.contents import info_of, orientation, walk_of
from blip3v.video_decoder.greeting import greeting
from blip3v.video_decoder.kind import is_image, is_jpeg
from blip3v.video_decoder.limits import VideoLimits

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from PIL.Image import Image

    from blip3v.video_decoder.walk import Opener, Walk

try:
    import resource
except ImportError:  # Unix only: elsewhere only the caller's timer bounds this process
    resource = None  # type: ignore[assignment]

# Size of an 8K picture, for which a decoder allocates memory at once.
_PICTURE_BYTES = 56 * 1024**2
# What a decoder holds at most: references, pictures that wait for their turn, the one in progress.
_DECODER_PICTURES = 20
# Stack, and what demuxing needs.
_THREAD_BYTES = 24 * 1024**2
_MOST_THREADS = 8
# The highest that the system takes as limits; it counts processor time in nanoseconds.
_LARGEST_BOUND, _LONGEST_S = 2**62, 2**31


def main() -> None:
    """Serves one load, then exits; the program's argument is the socket of a process that is started ahead."""
    serve(int(sys.argv[1]) if sys.argv[1:] else None)


def serve(files: int | None = None) -> None:
    """Serves one load over stdin and stdout, then exits, or returns if nothing is asked.

    Args:
        files: number of the socket through which the file comes; None: the request names it.
    """
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # A library that prints must not print into the answers.
    os.dup2(2, 1)
    _send(sink, greeting())
    sink.flush()
    request = _first_request(source, files)
    if request is None:
        return
    limits = VideoLimits(**request["limits"])
    try:
        _limit_resources(limits)
        if "images" in request:
            _serve_images(request["images"], limits, sink)
        else:
            _serve_video(request, limits, source, sink)
    # BlockingIOError: no memory for a thread.
    except (MemoryError, BlockingIOError):
        _send_error(sink, _out_of_memory(limits))
    except CorruptVideoError as error:
        _send_error(sink, _out_of_memory(limits) if _memory_was_short(limits) else error)
    except Blip3vError as error:
        _send_error(sink, error)
    except Exception as error:
        _send_error(sink, CorruptVideoError(f"the decoder failed with {type(error).__name__}: {error}"))
    sink.flush()
    # Threads that still decode after an error are not waited for.
    os._exit(0)


def _first_request(source: BinaryIO, files: int | None) -> dict[str, Any] | None:
    """What is asked; None if the caller ended before it asked. A file that was sent is open as ``fd`` then."""
    if files is None:
        line = source.readline()
        return json.loads(line) if line else None
    # Not needed by a process that is asked at once.
    from blip3v.video_decoder import ahead

    ahead.start_waiting()
    ahead.prepare()
    line = source.readline()
    ahead.stop_waiting()
    return json.loads(line) | {"fd": ahead.received_file(files)} if line else None


def _limit_resources(limits: VideoLimits) -> None:
    if resource is None:
        return
    bounds = {
        resource.RLIMIT_AS: limits.max_memory_bytes,
        # A backstop in case the parent was killed: otherwise the parent's timer comes first. Threads add up.
        resource.RLIMIT_CPU: math.ceil(min(limits.timeout_s * _num_cpus(), _LONGEST_S)) + 2,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
    }
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        bound = min(bound, _LARGEST_BOUND if hard == resource.RLIM_INFINITY else hard)
        resource.setrlimit(kind, (bound, bound))


def _serve_video(request: Mapping[str, Any], limits: VideoLimits, source: BinaryIO, sink: BinaryIO) -> None:
    with os.fdopen(request["fd"], "rb") as file:
        if is_image(file):
            _serve_image_file(file, request, limits, source, sink)
            return
        try:
            walk, opener = walk_of(file, limits)
        except UnsupportedVideoError:
            if not is_jpeg(file):
                raise
            _serve_image_file(file, request, limits, source, sink)
            return
        _serve_walk(walk, opener, request, limits, source, sink)


def _serve_walk(
    walk: Walk, opener: Opener, request: Mapping[str, Any], limits: VideoLimits, source: BinaryIO, sink: BinaryIO
) -> None:
    from av.video.reformatter import VideoReformatter

    from blip3v.video_decoder.pick import pick

    reformatter = VideoReformatter()  # for all frames, since each one of its own would start threads
    times_s = [*walk.times_s, walk.end_s]
    info = info_of(walk.width, walk.height, walk.num_frames, times_s, request) | {"fps": walk.fps}
    wanted = _wanted(info, source, sink)
    for index, frame in pick(opener, walk, wanted, num_threads=_num_threads(walk, len(wanted), limits)):
        limits.check_pixels(frame.width, frame.height)
        _send_frame(sink, frame, reformatter, {"index": index, "time_s": walk.times_s[index]})
    _send(sink, {"num_broken": len(walk.broken - set(wanted)), "peak_rss_bytes": _status_bytes("VmHWM")})


def _num_threads(walk: Walk, num_wanted: int, limits: VideoLimits) -> int:
    """How many decoders may run at once: one for each CPU, while all take at most half of the memory that is left.

    One where the system does not say how much is used, as outside Linux.
    """
    from blip3v.video_decoder.shared_file import CAN_SHARE

    used_bytes = _status_bytes("VmSize")
    if not CAN_SHARE or used_bytes is None:
        return 1
    room_bytes = (limits.max_memory_bytes - used_bytes) // 2 - num_wanted * walk.picture_bytes
    return max(1, min(_num_cpus(), room_bytes // (_DECODER_PICTURES * walk.picture_bytes + _THREAD_BYTES)))


def _num_cpus() -> int:
    """CPUs that the process may use, up to a number that no video needs."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_THREADS)


def _serve_image_file(
    file: BinaryIO, request: Mapping[str, Any], limits: VideoLimits, source: BinaryIO, sink: BinaryIO
) -> None:
    from blip3v.video_decoder.images import ImageFile

    images = ImageFile(file, limits)
    times_s = images.times_s
    info = info_of(images.width, images.height, images.num_frames, times_s, request)
    info["fps"] = None if times_s is None else images.num_frames / times_s[-1]
    for index, picture in images.pick(_wanted(info, source, sink)):
        _send_image(sink, picture, {"index": index, "time_s": None if times_s is None else times_s[index]})
    _send(sink, {"num_broken": 0, "peak_rss_bytes": _status_bytes("VmHWM")})


def _wanted(info: Mapping[str, Any], source: BinaryIO, sink: BinaryIO) -> list[int]:
    _send(sink, info)
    sink.flush()
    wanted: list[int] = json.loads(source.readline())["wanted"]
    return wanted


def _send_frame(sink: BinaryIO, frame: VideoFrame, reformatter: VideoReformatter, header: dict[str, Any]) -> None:
    picture = reformatter.reformat(frame, format="rgb24")
    plane = picture.planes[0]
    _send(sink, header | {"width": picture.width, "height": picture.height, "orientation": orientation(frame)})
    rows = memoryview(plane)
    row_bytes = picture.width * 3
    if plane.line_size == row_bytes:
        sink.write(rows[: row_bytes * picture.height])
        return
    for start in range(0, plane.line_size * picture.height, plane.line_size):
        sink.write(rows[start : start + row_bytes])


def _serve_images(paths: list[str], limits: VideoLimits, sink: BinaryIO) -> None:
    # Imported under the memory limit, and not at all for a video.
    from blip3v.video_decoder.images import open_image

    for path in paths:
        _send_image(sink, open_image(path, limits), {})
    _send(sink, {"peak_rss_bytes": _status_bytes("VmHWM")})


def _send_image(sink: BinaryIO, picture: Image, header: dict[str, Any]) -> None:
    pixels = picture.tobytes()
    _send(sink, header | {"width": picture.width, "height": picture.height, "orientation": [False, False, False]})
    sink.write(pixels)


def _send(sink: BinaryIO, message: Mapping[str, Any]) -> None:
    sink.write(json.dumps(message).encode() + b"\n")


def _out_of_memory(limits: VideoLimits) -> VideoTooLargeError:
    return VideoTooLargeError(
        f"decoding needs more than {limits.max_memory_bytes} bytes of memory, the limit (max_memory_bytes); "
        "scale the video down"
    )


def _memory_was_short(limits: VideoLimits) -> bool:
    """Whether the address space came so close to its limit that a picture may not have fitted.

    The H.264 decoder reports a frame as broken if it has no memory for it.
    """
    return (_status_bytes("VmPeak") or 0) + _PICTURE_BYTES > limits.max_memory_bytes


def _status_bytes(name: str) -> int | None:
    """A size that the system keeps of this process; None unless it is Linux."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            found = next((line for line in file if line.startswith(f"{name}:")), None)
    except OSError:
        return None
    return None if found is None else int(found.split()[1]) * 1024


def _send_error(sink: BinaryIO, error: Blip3vError) -> None:
    _send(sink, {"error": type(error).__name__, "message": str(error)})


if __name__ == "__main__":
    main()
