"""Temporal encoders: they turn the tokens of T frames, (B, T, N, D), into M tokens, (B, M, D). One encoder per file.

An encoder's file holds everything about it: settings, token counts, its form in a checkpoint, the patches it wants, and
the module; ``spec.py`` says how. Importing this package does not import torch, so that the command line can list
encoders. To add one, see CONTRIBUTING.md; ``docs/encoders.md`` says what each computes.
"""

from __future__ import annotations

from blip3v.model.temporal.choice import (
    build_temporal,
    frames_read,
    has_resampler,
    resampler_depth,
    temporal_settings,
    with_encoder,
    with_frames,
)
from blip3v.model.temporal.registry import BUILT_IN, encoder_names, find_encoder
from blip3v.model.temporal.spec import CheckpointForm, ClipSize, EncoderSpec, NoSettings, TokenCounts

__all__ = [
    "BUILT_IN",
    "CheckpointForm",
    "ClipSize",
    "EncoderSpec",
    "NoSettings",
    "TokenCounts",
    "build_temporal",
    "encoder_names",
    "find_encoder",
    "frames_read",
    "has_resampler",
    "resampler_depth",
    "temporal_settings",
    "with_encoder",
    "with_frames",
]
