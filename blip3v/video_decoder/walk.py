"""Lists a file's frames in display order, before any picture is kept.

If the container states a time for every packet and the codec has one frame in each, the packets suffice. Otherwise the
file is decoded once just to count. Both ways return the same ``Walk``.

A frame is broken if the file ends before it, if its data is incomplete, or if the decoder returns nothing or a picture
with concealed errors. Frames decoded after a broken frame and before the next keyframe may depend on it, so they are
damaged. Changed bytes that still decode to a whole picture cannot be detected: most formats have no checksums. A
picture that no wanted frame depends on is not decoded (``run.py``), so it is neither found broken nor does it damage
others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from blip3v.errors import CorruptVideoError, UnsupportedVideoError, VideoTooLargeError
from blip3v.video_decoder.limits import VideoLimits

# Other codecs may hide frames in packets (VP8) or put two into one (MPEG-4 part 2 in AVI).
_ONE_FRAME_A_PACKET = {
    "av1", "dnxhd", "ffv1", "gif", "h264", "hevc", "libdav1d", "mjpeg", "mpeg1video", "mpeg2video", "prores", "vp9",
}  # fmt: skip
_NO_TRUE_TIMES = {"avi"}

# No codec holds back more frames than this to bring them into display order.
REORDER = 16

# Four planes of 16 bits.
_MOST_PIXEL_BITS = 64

Opener = Callable[[], tuple[InputContainer, VideoStream]]


@dataclass
class Walk:
    """Every frame of a file, in display order.

    ``group`` is the number of a frame's keyframe interval: from one keyframe to the next, in decode order.
    """

    width: int  # as stored, before any rotation
    height: int
    picture_bytes: int  # of one in the decoder
    times_s: list[float]  # of each frame, the first is 0
    end_s: float  # when the last frame ends
    fps: float  # mean; 0 if a single frame has no duration
    order: list[int]  # a frame's place in decode order
    group: list[int]
    key_index: list[int]  # of each group, the display index of its keyframe
    key_pts: list[int]  # of each group; empty if frames are identified by their place alone
    index_of_pts: dict[int, int] | None  # None: frames are identified by their place alone
    broken: set[int] = field(default_factory=set)
    num_missing: int = 0  # frames at the end that the file should contain and does not

    @property
    def num_frames(self) -> int:
        """Number of frames, including broken and missing ones."""
        return len(self.times_s)

    @property
    def num_present(self) -> int:
        """Number of frames that the file contains."""
        return self.num_frames - self.num_missing

    def is_damaged(self, index: int, broken: set[int]) -> bool:
        """Whether frame ``index`` is in ``broken`` or may depend on a frame in it."""
        group = self.group[index]
        # Frames displayed before their group's keyframe depend on the previous group as well.
        first = group - 1 if index < self.key_index[group] else group
        return any(first <= self.group[b] <= group and self.order[b] <= self.order[index] for b in broken)


def decode(stream: VideoStream, packets: Iterable[Packet[VideoStream] | None]) -> Iterator[VideoFrame | None]:
    """Frames as the decoder returns them; None for a packet that it refused. The packet None ends the stream."""
    for packet in packets:
        try:
            yield from stream.decode(packet)
        except (MemoryError, BlockingIOError):
            raise
        except (av.FFmpegError, EOFError):
            yield None


def walk_file(opener: Opener, limits: VideoLimits, *, truncated: bool) -> Walk:
    """Lists the frames of a file.

    Args:
        opener: opens the file again, at its start.
        limits: bounds on frames and duration.
        truncated: whether the file is shorter than it states.

    Raises:
        VideoTooLargeError: over ``max_frames_walked`` or ``max_duration_s``.
        CorruptVideoError: no frame can be decoded, or the file is truncated and does not say how much is missing.
        UnsupportedVideoError: frames have no times and the file states no frame rate.
    """
    container, stream = opener()
    with container:
        packets = _list_packets(container, stream, limits)
        if not packets:
            raise CorruptVideoError("the video track has no frames; the file ends before the first one")
        walk = _from_packets(stream, packets) if _packets_suffice(container, stream, packets) else None
        if walk is None:
            walk = _from_frames(opener, limits, truncated=truncated)
        if truncated:
            _add_missing(walk, container, stream, packets)
    limits.check_duration(walk.end_s)
    return walk


def read_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Packets up to the first place that cannot be read; the frames after it are missing, which the walk detects."""
    try:
        yield from container.demux(stream)
    except MemoryError:
        raise
    except (av.FFmpegError, EOFError):
        return


@dataclass(frozen=True, slots=True)
class _Entry:
    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    is_partial: bool
    is_shown: bool


def _list_packets(container: InputContainer, stream: VideoStream, limits: VideoLimits) -> list[_Entry]:
    entries: list[_Entry] = []
    for packet in read_packets(container, stream):
        if packet.size:
            shown = not packet.is_discard
            entries.append(
                _Entry(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, packet.is_corrupt, shown)
            )
        _check_count(len(entries), limits)
    return entries


def _check_count(count: int, limits: VideoLimits) -> None:
    if count > limits.max_frames_walked:
        raise VideoTooLargeError(
            f"the video has more than {limits.max_frames_walked} frames, the limit (max_frames_walked); cut it"
        )


def _packets_suffice(container: InputContainer, stream: VideoStream, packets: list[_Entry]) -> bool:
    if container.format.name in _NO_TRUE_TIMES or stream.codec_context.name not in _ONE_FRAME_A_PACKET:
        return False
    times = [packet.pts for packet in packets if packet.is_shown]
    return bool(times) and None not in times and len(set(times)) == len(times) and any(p.is_key for p in packets)


def _from_packets(stream: VideoStream, packets: list[_Entry]) -> Walk:
    first_key = next(i for i, packet in enumerate(packets) if packet.is_key)
    start = packets[first_key].pts
    # Frames before the first keyframe cannot be decoded and no player shows them: the video starts at the keyframe.
    kept = [
        (packet.pts, packet)
        for packet in packets[first_key:]
        if packet.is_shown and packet.pts is not None and (start is None or packet.pts >= start)
    ]
    # From here a frame has an index, its place in display order, and a place in decode order.
    order = sorted(range(len(kept)), key=lambda place: kept[place][0])
    index_of_place = {place: index for index, place in enumerate(order)}
    group_of_place: list[int] = []
    keys: list[int] = []
    for place, (_, packet) in enumerate(kept):
        if packet.is_key or not keys:
            keys.append(place)
        group_of_place.append(len(keys) - 1)
    pts = [kept[place][0] for place in order]
    times_s = _seconds(pts, stream)
    end_s, fps = _end(times_s, float(kept[order[-1]][1].duration * _time_base(stream)), stream)
    return Walk(
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        picture_bytes=_picture_bytes(stream),
        times_s=times_s,
        end_s=end_s,
        fps=fps,
        order=order,
        group=[group_of_place[place] for place in order],
        key_index=[index_of_place[place] for place in keys],
        key_pts=[kept[place][0] for place in keys],
        index_of_pts={value: index for index, value in enumerate(pts)},
        broken={index_of_place[place] for place, (_, packet) in enumerate(kept) if packet.is_partial},
    )


def _from_frames(opener: Opener, limits: VideoLimits, *, truncated: bool) -> Walk:
    pts: list[int | None] = []
    group: list[int] = []
    key_index: list[int] = []
    broken: set[int] = set()
    last_duration = 0
    container, stream = opener()
    with container:
        for index, frame in enumerate(decode(stream, read_packets(container, stream))):
            _check_count(index + 1, limits)
            if frame is None or frame.is_corrupt:
                broken.add(index)
            if not key_index or (frame is not None and frame.key_frame):
                key_index.append(index)
            group.append(len(key_index) - 1)
            pts.append(None if frame is None else frame.pts)
            last_duration = 0 if frame is None or frame.pts is None else frame.duration
        if len(pts) == len(broken):
            raise CorruptVideoError(
                "the file ends too early to hold one whole frame; get the whole file"
                if truncated
                else "no frame of the video can be decoded; get the file again, or convert it to mp4"
            )
        # Still open: what a stream says lies in its container's memory.
        times_s = _times_of_frames(pts, container, stream)
        end_s, fps = _end(times_s, float(last_duration * _time_base(stream)), stream)
        return Walk(
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            picture_bytes=_picture_bytes(stream),
            times_s=times_s,
            end_s=end_s,
            fps=fps,
            order=list(range(len(pts))),
            group=group,
            key_index=key_index,
            key_pts=[],
            index_of_pts=None,
            broken=broken,
        )


def _times_of_frames(pts: list[int | None], container: InputContainer, stream: VideoStream) -> list[float]:
    known = [value for value in pts if value is not None]
    rising = len(known) == len(pts) and all(a < b for a, b in pairwise(known))
    if rising and container.format.name not in _NO_TRUE_TIMES:
        return _seconds(known, stream)
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise UnsupportedVideoError("the file states neither frame times nor a frame rate; convert it to mp4")
    return [float(index / rate) for index in range(len(pts))]


def _add_missing(walk: Walk, container: InputContainer, stream: VideoStream, packets: list[_Entry]) -> None:
    """Appends the frames that a truncated file lacks, as broken ones at the mean rate."""
    if stream.frames and stream.frames <= len(packets):
        return
    num_uncertain = _num_uncertain(walk, stream, packets)
    rate = float(stream.average_rate or walk.fps)
    if stream.frames:
        num_missing = stream.frames - len(packets)
    elif container.duration and "mp4" not in container.format.name:
        num_missing = round(container.duration / av.time_base * rate) - walk.num_frames
    else:
        raise CorruptVideoError(
            f"the file ends too early, after frame {walk.num_frames - 1} at {walk.times_s[-1]:.3f} s, and does not "
            "say how many frames it should have; get the whole file"
        )
    num_missing = max(0, num_missing)
    for _ in range(num_missing):
        walk.order.append(walk.num_frames)
        walk.group.append(walk.group[-1])
        walk.times_s.append(walk.end_s)
        walk.end_s += 1 / rate if rate else 0.0
    walk.num_missing = num_missing + num_uncertain
    walk.broken.update(range(walk.num_present, walk.num_frames))


def _num_uncertain(walk: Walk, stream: VideoStream, packets: list[_Entry]) -> int:
    """Number of frames at the end of a truncated file that may follow a missing one, so that their index is uncertain.

    A missing packet has a later decode time than the last one present, and it is displayed no earlier than that.
    """
    last_dts = max((packet.dts for packet in packets if packet.dts is not None), default=None)
    if walk.index_of_pts is None or last_dts is None:
        return min(REORDER, walk.num_frames) if stream.codec_context.has_b_frames else 0
    return sum(pts > last_dts for pts in walk.index_of_pts)


def _picture_bytes(stream: VideoStream) -> int:
    codec = stream.codec_context
    bits = _MOST_PIXEL_BITS if codec.format is None else codec.format.padded_bits_per_pixel
    return codec.width * codec.height * bits // 8


def _seconds(pts: list[int], stream: VideoStream) -> list[float]:
    time_base = _time_base(stream)
    return [float((value - pts[0]) * time_base) for value in pts]


def _time_base(stream: VideoStream) -> Fraction:
    return stream.time_base or Fraction(1, av.time_base)


def _end(times_s: list[float], last_duration_s: float, stream: VideoStream) -> tuple[float, float]:
    """When the last frame ends, and the mean frame rate."""
    if last_duration_s <= 0:
        rate = stream.average_rate or stream.guessed_rate
        mean_gap_s = times_s[-1] / (len(times_s) - 1) if len(times_s) > 1 else 0.0
        last_duration_s = mean_gap_s or (float(1 / rate) if rate else 0.0)
    end_s = times_s[-1] + last_duration_s
    return end_s, len(times_s) / end_s if end_s > 0 else 0.0
