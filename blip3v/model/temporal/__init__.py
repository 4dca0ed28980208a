"""Temporal encoders: the tokens of T frames, (B, T, N, D), become M tokens, (B, M, D). One encoder a file.

To add one: a module here with an ``nn.Module``, its name in ``config.EncoderName`` and in ``_ENCODERS``, its token
counts in ``config.allowed_tokens``, and a plain formula in the tests.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from blip3v.config import EncoderName, ModelConfig
from blip3v.model.temporal.gttm import GroupedTTM
from blip3v.model.temporal.mean import Mean
from blip3v.model.temporal.none import NoReduction
from blip3v.model.temporal.single_frame import SingleFrame
from blip3v.model.temporal.tokenlearner import SpaceTimeTokenLearner

__all__ = ["build_temporal"]

_ENCODERS: dict[EncoderName, Callable[[ModelConfig], nn.Module]] = {
    "tokenlearner": SpaceTimeTokenLearner,
    "gttm": GroupedTTM,
    "mean": lambda config: Mean(),
    "none": lambda config: NoReduction(),
    "single-frame": lambda config: SingleFrame(),
}


def build_temporal(config: ModelConfig) -> nn.Module:
    """The temporal encoder that ``config.temporal`` names, with random weights."""
    return _ENCODERS[config.temporal.encoder](config)
