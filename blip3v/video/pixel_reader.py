"""Resized pictures of one clip after another, for training: from a process that lives as long as its reader.

The trade-off: ``load_clip`` gives every file a process of its own, whose start and whose pipe of whole pictures cost as
much as the decoding of a short clip. Here one process decodes and resizes many, so that a file could disturb those
after it, and only the sum of their memory is bounded. That is acceptable for a user's own clips. Still, no file ends or
stops the caller: a process that crashes, or takes longer than the limit on time, is ended and replaced. And it never
has the last word: a clip that it does not read is loaded again by ``load_clip``, within all limits, so that whether a
clip is broken depends on the clip alone. A server reads strangers' files with ``load_clip``.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import threading
import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import cast

import numpy as np

from blip3v.python_arguments import code_arguments
from blip3v.video.clip import Clip, load_clip
from blip3v.video.decoder_process import launch, widen
from blip3v.video.interpreter import find_python
from blip3v.video.preprocess import PreprocessorConfig, resize
from blip3v.video.sampling import SamplingRule
from blip3v.video_decoder.limits import VideoLimits

__all__ = ["ClipRequest", "PixelReader"]

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# The C library (glibc) keeps so much memory for the next clip instead of giving each picture's back to the system.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2), "MALLOC_TRIM_THRESHOLD_": str(128 * 1024**2)}


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """Which frames of which file, as ``load_clip`` takes them."""

    video: str
    num_frames: int
    rule: SamplingRule
    start_s: float | None = None
    end_s: float | None = None
    seed: int | None = None

    def load(self, limits: VideoLimits) -> Clip:
        """The clip, decoded in a process of its own.

        Raises:
            VideoError: one of its kinds, as ``load_clip``.
            UsageError: no frame lies in the range.
        """
        return load_clip(**vars(self), limits=limits)


class PixelReader:
    """Reads one clip at a time. A context manager; also without ``close`` its process ends with the caller's.

    It can be pickled, which copies its limits alone.
    """

    def __init__(self, limits: VideoLimits) -> None:
        """Starts nothing: the first clip does."""
        self._limits = limits
        self._held = _Held()
        self._finalizer = weakref.finalize(self, _Held.end, self._held)

    def __reduce__(self) -> tuple[type[PixelReader], tuple[VideoLimits]]:
        return PixelReader, (self._limits,)

    def __enter__(self) -> PixelReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pictures(self, request: ClipRequest, config: PreprocessorConfig) -> np.ndarray:
        """Decodes and resizes a clip: uint8 (T, S, S, 3), as ``load_clip`` and ``resize`` do.

        Raises:
            VideoError: one of its kinds, as ``load_clip``.
            UsageError: no frame lies in the range.
        """
        found = self._ask(request, config)
        if found is not None:
            return found
        return resize(request.load(self._limits).frames, config)

    def close(self) -> None:
        """Ends the process. May be called more than once."""
        self._held.end()

    def _ask(self, request: ClipRequest, config: PreprocessorConfig) -> np.ndarray | None:
        """The pictures; None if the process cannot tell. One that did not answer is ended."""
        process = self._held.process = self._held.process or _start()
        timer = threading.Timer(min(self._limits.timeout_s, threading.TIMEOUT_MAX), process.kill)
        timer.daemon = True
        timer.start()
        try:
            answered, pictures = _exchange(process, self._message(request, config))
        finally:
            timer.cancel()
        if not answered:
            self.close()
        return pictures

    def _message(self, request: ClipRequest, config: PreprocessorConfig) -> bytes:
        fields = vars(request) | {"config": config.to_dict(), "limits": dataclasses.asdict(self._limits)}
        return json.dumps(fields).encode() + b"\n"


class _Held:
    """The process of a reader, apart from it, so that it can be ended when the reader is gone."""

    process: subprocess.Popen[bytes] | None = None

    def end(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # what a dead process did not read does not matter
                continue


def _exchange(process: subprocess.Popen[bytes], message: bytes) -> tuple[bool, np.ndarray | None]:
    """Whether the process answered, and the pictures if it could read the clip."""
    assert process.stdin is not None
    # Popen's type does not say that its pipe is buffered, and only a buffered one fills the whole array.
    answers = cast(io.BufferedReader, process.stdout)
    try:
        process.stdin.write(message)
        process.stdin.flush()
        line = answers.readline()
        if not line.endswith(b"\n"):
            return False, None
        header = json.loads(line)
        if "failed" in header:
            return True, None
        levels_TSSC = np.empty(header["shape"], np.uint8)
        if answers.readinto(levels_TSSC.reshape(-1).data) != levels_TSSC.nbytes:
            return False, None
    except (BrokenPipeError, ValueError):
        return False, None
    return True, levels_TSSC


def _start() -> subprocess.Popen[bytes]:
    command = (find_python(), *code_arguments("from blip3v.video.pixel_process import main; main()"))
    environment = launch().environment | dict.fromkeys(_ONE_THREAD, "1") | _KEPT_MEMORY
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what a crash prints; load_clip says what is wrong with the clip
        env=environment,
        start_new_session=os.name != "nt",  # Ctrl-C reaches the caller only, which then ends this process
    )
    widen(process.stdout)
    return process
