"""Decodes the wanted frames of a walked file, and never returns a broken or damaged one (see ``walk.py``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from blip3v.errors import CorruptVideoError
from blip3v.video_decoder.walk import REORDER, Opener, Walk, decode

__all__ = ["pick"]

# Below this, decoding straight on is cheaper than seeking, and every frame on the way is checked.
_MIN_SEEK = 128


def pick(opener: Opener, walk: Walk, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Decodes the frames ``wanted``.

    Seeks over long stretches without a wanted frame. Broken frames found on the way are added to ``walk.broken``.

    Args:
        opener: opens the file again, at its start.
        walk: the file's frames.
        wanted: display indices, strictly increasing.

    Yields:
        (index, picture) for each of ``wanted``, in order.

    Raises:
        CorruptVideoError: a wanted frame is broken or damaged; it names the frame and its time.
    """
    for group, members in _runs(walk, wanted):
        num_yielded = 0
        before = set(walk.broken)
        try:
            for item in _run(opener, walk, group, members):
                yield item
                num_yielded += 1
        except CorruptVideoError:
            if group == 0:
                raise
            # A seek may land late, or the decoder may miss what came before: a run from the first frame decides.
            walk.broken.clear()
            walk.broken.update(before)
            yield from _run(opener, walk, 0, members[num_yielded:])


def _runs(walk: Walk, wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Splits ``wanted`` into decoding runs, each with the group at whose keyframe it starts."""
    runs: list[tuple[int, list[int]]] = []
    place = 0
    for index in wanted:
        group = walk.group[index]
        # A frame displayed before its group's keyframe needs the previous group.
        group -= group > 0 and index < walk.key_index[group]
        key_place = walk.order[walk.key_index[group]]
        seeks = group > 0 and walk.index_of_pts is not None and key_place - place >= _MIN_SEEK
        if seeks or not runs:
            runs.append((group if seeks else 0, []))
        runs[-1][1].append(index)
        place = walk.order[index]
    return runs


def _run(opener: Opener, walk: Walk, group: int, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Decodes from the keyframe of ``group`` to a little past the last of ``wanted``."""
    container, stream = opener()
    with container:
        if group:
            _seek(container, stream, walk, group)
        queue, targets = list(reversed(wanted)), set(wanted)
        held: dict[int, VideoFrame] = {}
        next_index = walk.key_index[group] if group else 0
        for index, frame in _indexed(container, stream, walk):
            if index < next_index:
                continue
            walk.broken.update(range(next_index, index))
            next_index = index + 1
            if frame is None or frame.is_corrupt:
                walk.broken.add(index)
            elif index in targets:
                held[index] = frame
            # A broken frame may be detected after the display of a frame that it damages.
            yield from _settled(walk, queue, held, next_index - REORDER)
            if not queue:
                return
        walk.broken.update(range(next_index, walk.num_frames))
        yield from _settled(walk, queue, held, walk.num_frames)


def _settled(walk: Walk, queue: list[int], held: dict[int, VideoFrame], limit: int) -> Iterator[tuple[int, VideoFrame]]:
    """Yields the wanted frames below ``limit``, whose state can no longer change."""
    while queue and queue[-1] < limit:
        index = queue.pop()
        if walk.is_damaged(index):
            raise _error(walk, index)
        yield index, held.pop(index)


def _indexed(container: InputContainer, stream: VideoStream, walk: Walk) -> Iterator[tuple[int, VideoFrame | None]]:
    for place, frame in enumerate(decode(container, stream)):
        if walk.index_of_pts is None:
            yield place, frame
        elif frame is not None and frame.pts in walk.index_of_pts:
            yield walk.index_of_pts[frame.pts], frame


def _seek(container: InputContainer, stream: VideoStream, walk: Walk, group: int) -> None:
    try:
        container.seek(walk.key_pts[group], stream=stream)
    except av.FFmpegError as error:
        raise _error(walk, walk.key_index[group]) from error


def _error(walk: Walk, index: int) -> CorruptVideoError:
    where = f"frame {index} at {walk.times_s[index]:.3f} s"
    if index not in walk.broken:
        causes = [b for b in walk.broken if walk.order[b] < walk.order[index]]
        cause = max(causes, key=lambda b: walk.order[b])
        return CorruptVideoError(
            f"{where} was sampled, but it may depend on frame {cause}, which cannot be decoded; "
            "repair the file, or pick a part without it (start and end)"
        )
    if index >= walk.num_present:
        return CorruptVideoError(
            f"{where} was sampled, but the file ends before it, after frame {walk.num_present - 1}; get the whole "
            "file, or pick a part that it contains (start and end)"
        )
    return CorruptVideoError(
        f"{where} was sampled, but it cannot be decoded; repair the file, or pick a part without it (start and end)"
    )
