"""Video in: open a file, sample frames, resize and normalise. Torch-free.

``load_pixels`` is the way from a video to what the model takes; the other names are its steps. Names are imported when
they are first used, because the decoder process is part of this package and has to start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip3v.video.clip import Clip, SampledFrame, load_clip, load_pixels
    from blip3v.video.limits import VideoLimits
    from blip3v.video.preprocess import PreprocessorConfig, ResizeMode, preprocess
    from blip3v.video.sampling import SAMPLING_RULES, SamplingRule, sample_indices
    from blip3v.video.source import IMAGE_SUFFIXES, VideoInput

__all__ = [
    "IMAGE_SUFFIXES",
    "SAMPLING_RULES",
    "Clip",
    "PreprocessorConfig",
    "ResizeMode",
    "SampledFrame",
    "SamplingRule",
    "VideoInput",
    "VideoLimits",
    "load_clip",
    "load_pixels",
    "preprocess",
    "sample_indices",
]

_MODULES = {
    "clip": ("Clip", "SampledFrame", "load_clip", "load_pixels"),
    "limits": ("VideoLimits",),
    "preprocess": ("PreprocessorConfig", "ResizeMode", "preprocess"),
    "sampling": ("SAMPLING_RULES", "SamplingRule", "sample_indices"),
    "source": ("IMAGE_SUFFIXES", "VideoInput"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"blip3v.video.{module}"), name)
    raise AttributeError(f"module 'blip3v.video' has no attribute {name!r}")
