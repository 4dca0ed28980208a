"""Decodes one stretch of a walked file, and never returns a broken or damaged frame (see ``walk.py``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from blip3v.errors import CorruptVideoError
from blip3v.video_decoder.h264 import Gap, Pictures, pictures_of
from blip3v.video_decoder.walk import REORDER, Opener, Walk, decode, read_packets

__all__ = ["Run"]


class Run:
    """The wanted frames from the keyframe of ``group`` on. Independent of other runs, so that threads may share them.

    ``broken`` are the frames that cannot be decoded: those of the walk, and those found while ``frames`` runs.
    """

    def __init__(self, opener: Opener, walk: Walk, group: int, wanted: Sequence[int], *, everything: bool) -> None:
        """Describes the run; nothing is opened.

        Args:
            opener: opens the file again, at its start.
            walk: the file's frames.
            group: where to start; 0 is the start of the file.
            wanted: display indices, strictly increasing.
            everything: decode every packet on the way, also of pictures that no other one refers to.
        """
        self.group = group
        self.wanted = wanted
        self.broken = set(walk.broken)
        self.skipped: set[int] = set()
        self._opener = opener
        self._walk = walk
        self._everything = everything
        self._stopped = False
        # Of the last packet that matters, in decode order: what follows it cannot change a wanted frame.
        self._last = max(walk.order[index] for index in wanted)

    def stop(self) -> None:
        """Has ``frames`` end before the next packet, from any thread; what it yields then is not to be used."""
        self._stopped = True

    def frames(self) -> Iterator[tuple[int, VideoFrame]]:
        """Yields (index, picture) for each wanted frame, in order.

        Raises:
            CorruptVideoError: a wanted frame is broken or damaged; it names the frame and its time.
            Gap: a packet that was left out may have been needed.
        """
        container, stream = self._opener()
        with container:
            if self.group:
                self._seek(container, stream)
            queue, targets = list(reversed(self.wanted)), set(self.wanted)
            held: dict[int, VideoFrame] = {}
            next_index = self._walk.key_index[self.group] if self.group else 0
            for index, frame in self._indexed(container, stream, targets):
                if index < next_index:
                    continue
                self._miss(range(next_index, index))
                next_index = index + 1
                if frame is None or frame.is_corrupt:
                    self.broken.add(index)
                elif index in targets:
                    held[index] = frame
                # A broken frame may be detected after the display of a frame that it damages.
                yield from self._settled(queue, held, next_index - REORDER)
                if not queue:
                    return
            # What is displayed later than this was not given to the decoder.
            self._miss(range(next_index, min(self._walk.num_frames, self.wanted[-1] + REORDER + 1)))
            yield from self._settled(queue, held, self._walk.num_frames)

    def _settled(self, queue: list[int], held: dict[int, VideoFrame], limit: int) -> Iterator[tuple[int, VideoFrame]]:
        """Yields the wanted frames below ``limit``, whose state can no longer change."""
        while queue and queue[-1] < limit:
            index = queue.pop()
            if self._walk.is_damaged(index, self.broken):
                raise self._error(index)
            yield index, held.pop(index)

    def _miss(self, indices: range) -> None:
        """Frames that did not come back are broken, unless their packets were left out."""
        order = self._walk.order
        self.broken.update(i for i in indices if order[i] <= self._last and i not in self.skipped)

    def _indexed(
        self, container: InputContainer, stream: VideoStream, targets: set[int]
    ) -> Iterator[tuple[int, VideoFrame | None]]:
        index_of_pts = self._walk.index_of_pts
        if index_of_pts is None:
            yield from enumerate(decode(stream, read_packets(container, stream)))
            return
        for frame in decode(stream, self._needed(container, stream, index_of_pts, targets)):
            if frame is not None and frame.pts in index_of_pts:
                yield index_of_pts[frame.pts], frame

    def _needed(
        self, container: InputContainer, stream: VideoStream, index_of_pts: dict[int, int], targets: set[int]
    ) -> Iterator[Packet[VideoStream] | None]:
        """Packets up to the last that matters, without those that no wanted frame needs."""
        pictures = None if self._everything else _pictures(stream)
        for packet in read_packets(container, stream):
            if self._stopped:
                return
            index = None if packet.pts is None else index_of_pts.get(packet.pts)
            if pictures is not None and packet.size:
                try:
                    is_unreferenced = _is_unreferenced(pictures, packet)
                except Gap:
                    if self.skipped:
                        raise
                    pictures, is_unreferenced = None, False
                if is_unreferenced and index is not None and index not in targets:
                    self.skipped.add(index)
                    continue
            yield packet
            if index is not None and self._walk.order[index] >= self._last:
                yield None
                return

    def _seek(self, container: InputContainer, stream: VideoStream) -> None:
        try:
            container.seek(self._walk.key_pts[self.group], stream=stream)
        except av.FFmpegError as error:
            raise self._error(self._walk.key_index[self.group]) from error

    def _error(self, index: int) -> CorruptVideoError:
        walk = self._walk
        where = f"frame {index} at {walk.times_s[index]:.3f} s"
        if index not in self.broken:
            causes = [b for b in self.broken if walk.order[b] < walk.order[index]]
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


def _pictures(stream: VideoStream) -> Pictures | None:
    codec = stream.codec_context
    return pictures_of(codec.extradata) if codec.name == "h264" else None


def _is_unreferenced(pictures: Pictures, packet: Packet[VideoStream]) -> bool:
    if packet.has_sidedata("new_extradata"):
        raise Gap
    return pictures.is_unreferenced(bytes(packet))
