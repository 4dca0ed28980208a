"""Temporal encoders: the tokens of T frames, (B, T, N, D), become M tokens, (B, M, D). One encoder a file.

Most read what the resampler makes of each frame. One with a method ``arrange`` first says what the resampler is to
attend to. To add an encoder see CONTRIBUTING.md; what each one computes stands in ``docs/encoders.md``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from blip3v.config import EncoderName, ModelConfig
from blip3v.model.temporal.gttm import GroupedTTM
from blip3v.model.temporal.mambalike import GatedRecurrence
from blip3v.model.temporal.max import Max
from blip3v.model.temporal.mean import Mean
from blip3v.model.temporal.none import NoReduction
from blip3v.model.temporal.per_frame import PerFrameTokenLearner
from blip3v.model.temporal.perceiver import JointPerceiver
from blip3v.model.temporal.single_frame import SingleFrame
from blip3v.model.temporal.space_time_pool import SpaceTimePool
from blip3v.model.temporal.tokenlearner import SpaceTimeTokenLearner
from blip3v.model.temporal.transformer import SpaceTimeTransformer
from blip3v.model.temporal.ttm import VanillaTTM

__all__ = ["build_temporal"]

_ENCODERS: dict[EncoderName, Callable[[ModelConfig], nn.Module]] = {
    "tokenlearner": SpaceTimeTokenLearner,
    "gttm": GroupedTTM,
    "ttm": VanillaTTM,
    "transformer": SpaceTimeTransformer,
    "perceiver": JointPerceiver,
    "mean": Mean,
    "max": lambda config: Max(),
    "per-frame": PerFrameTokenLearner,
    "space-time-pool": SpaceTimePool,
    "none": lambda config: NoReduction(),
    "single-frame": lambda config: SingleFrame(),
    "mambalike": GatedRecurrence,
}


def build_temporal(config: ModelConfig) -> nn.Module:
    """The temporal encoder that ``config.temporal`` names, with random weights."""
    return _ENCODERS[config.temporal.encoder](config)
