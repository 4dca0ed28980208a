"""Decodes the wanted frames of a walked file: where it starts, in how many threads, and what decides if that fails.

Never returns a broken or damaged frame (see ``walk.py``). Each run from a keyframe has a decoder of its own with one
thread, so that frames and errors do not depend on how many run at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from queue import SimpleQueue

from av.video.frame import VideoFrame

from blip3v.errors import CorruptVideoError
from blip3v.video_decoder.h264 import Gap
from blip3v.video_decoder.run import Run
from blip3v.video_decoder.walk import Opener, Walk

__all__ = ["pick"]

_Frames = Iterator[tuple[int, VideoFrame]]
_Output = SimpleQueue[tuple[int, VideoFrame] | BaseException | None]

# Decoding on is cheaper than opening the file again and seeking over fewer frames, or over fewer pixels. Opening takes
# the time of some frames, whatever their size.
_SEEK_FRAMES = 128
_SEEK_PIXELS = 1 << 25
_LEAST_SEEK_FRAMES = 24


def pick(opener: Opener, walk: Walk, wanted: Sequence[int], *, num_threads: int = 1) -> _Frames:
    """Decodes the frames ``wanted``.

    Seeks over long stretches without a wanted frame, and leaves out pictures that no other one refers to. Broken
    frames found on the way are added to ``walk.broken``.

    Args:
        opener: opens the file again, at its start; from several threads at once if there are more than one.
        walk: the file's frames.
        wanted: display indices, strictly increasing.
        num_threads: stretches that are decoded at once. With more than one, decoding goes on while the caller has a
            frame, so that all of them may be held at a time.

    Yields:
        (index, picture) for each of ``wanted``, in order.

    Raises:
        CorruptVideoError: a wanted frame is broken or damaged; it names the frame and its time.
    """
    runs = [Run(opener, walk, group, members, everything=False) for group, members in _runs(walk, wanted)]
    try:
        outputs = _in_threads(runs, num_threads) if num_threads > 1 else [run.frames() for run in runs]
        for run, frames in zip(runs, outputs, strict=True):
            yield from _decided(opener, walk, run, frames)
    finally:
        for run in runs:
            run.stop()


def _decided(opener: Opener, walk: Walk, run: Run, frames: _Frames) -> _Frames:
    """The frames of a run; where it fails, a run over everything from the first frame on decides.

    A seek may land late, the decoder may miss what came before, and what was left out may have been needed.
    """
    num_yielded = 0
    try:
        for item in frames:
            yield item
            num_yielded += 1
    except (CorruptVideoError, Gap) as error:
        if isinstance(error, CorruptVideoError) and run.group == 0 and not run.skipped:
            raise
        run = Run(opener, walk, 0, run.wanted[num_yielded:], everything=True)
        yield from run.frames()
    walk.broken.update(run.broken)


def _runs(walk: Walk, wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Splits ``wanted`` into decoding runs, each with the group at whose keyframe it starts."""
    runs: list[tuple[int, list[int]]] = []
    place = 0
    least = min(_SEEK_FRAMES, max(_LEAST_SEEK_FRAMES, _SEEK_PIXELS // (walk.width * walk.height or 1)))
    for index in wanted:
        group = walk.group[index]
        # A frame displayed before its group's keyframe needs the previous group.
        group -= group > 0 and index < walk.key_index[group]
        key_place = walk.order[walk.key_index[group]]
        seeks = group > 0 and walk.index_of_pts is not None and key_place - place >= least
        if seeks or not runs:
            runs.append((group if seeks else 0, []))
        runs[-1][1].append(index)
        place = walk.order[index]
    return runs


def _in_threads(runs: Sequence[Run], num_threads: int) -> list[_Frames]:
    """Starts to decode the runs, the first ones first, and returns the frames of each."""
    outputs: list[_Output] = [SimpleQueue() for _ in runs]
    waiting = deque(zip(runs, outputs, strict=True))

    def work() -> None:
        while waiting:
            try:
                run, output = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            _put(run, output)

    for number in range(min(num_threads, len(runs))):
        try:
            # Daemons: a packet that takes long does not keep the process from ending after an error.
            threading.Thread(target=work, daemon=True).start()
        except RuntimeError:  # the user has as many as the system allows; those that run do the work
            if number == 0:
                return [run.frames() for run in runs]
            break
    return [_taken(output) for output in outputs]


def _put(run: Run, output: _Output) -> None:
    try:
        for item in run.frames():
            output.put(item)
        output.put(None)
    except BaseException as error:  # it is raised where the frames are taken
        output.put(error)


def _taken(output: _Output) -> _Frames:
    while (item := output.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item
