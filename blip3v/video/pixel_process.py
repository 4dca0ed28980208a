"""The process of a ``PixelReader``: decodes and resizes one clip after another, in one thread.

    in   {"video": "a.mp4", "num_frames": 8, "rule": "train", ..., "config": {...}, "limits": {...}}
    out  {"shape": [8, 384, 384, 3]} + uint8 levels
    out  {"failed": "..."}                                  it could not be read here; the process goes on

Each JSON object is one line. It ends when its input does.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

import numpy as np

from blip3v.video.clip import load_clip_here
from blip3v.video.preprocess import PreprocessorConfig, resize
from blip3v.video_decoder.limits import VideoLimits

try:
    import resource
except ImportError:  # Unix only: elsewhere only the reader's timer bounds this process
    resource = None  # type: ignore[assignment]

__all__ = ["main"]

_SLACK_S = 2  # the reader's timer comes first


def main() -> None:
    """Answers requests until there are no more."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # A library that prints must not print into the answers.
    os.dup2(2, 1)
    for line in source:
        try:
            levels_TSSC = _pictures(json.loads(line))
        except Exception as error:  # the reader finds out what it is
            sink.write(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        else:
            sink.write(json.dumps({"shape": levels_TSSC.shape}).encode() + b"\n")
            sink.write(levels_TSSC.data)
        sink.flush()


def _pictures(request: dict[str, Any]) -> np.ndarray:
    limits, config = VideoLimits(**request.pop("limits")), PreprocessorConfig(**request.pop("config"))
    _limit_resources(limits)
    return resize(load_clip_here(**request, limits=limits).frames, config)


def _limit_resources(limits: VideoLimits) -> None:
    """Bounds this clip's processor time, in case the reader is gone, and the memory of the process."""
    if resource is None:
        return
    used_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    # Sums of floats and of enormous limits fit: the system takes any number up to its infinity.
    seconds = math.ceil(min(used_s + limits.timeout_s, 2**31)) + _SLACK_S
    for kind, bound in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, min(limits.max_memory_bytes, 2**62))):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
