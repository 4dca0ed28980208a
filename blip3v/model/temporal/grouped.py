"""What gttm and mambalike share: a small memory per group, carried from frame to frame, and its pooling.

Every resampler token position is a group; groups never mix before the pooling. The released form averages the slots of
each group; the paper pools all memories by attention.
"""

# Shapes: B batch, T frames, N groups, G memory slots, D width, R rows = B*N, M tokens out.

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from blip3v.config import ModelConfig
from blip3v.model.blocks import TimeStamps, TokenLearner
from blip3v.model.temporal.recurrence import Recurrence
from blip3v.model.temporal.spec import LEARNED_TOKENS, ClipSize, TokenCounts, at_least_one

__all__ = ["GroupedRecurrence", "GroupedSettings", "grouped_token_counts", "pooling_forms"]


@dataclass(frozen=True, kw_only=True)
class GroupedSettings:
    """The defaults are the released form."""

    num_slots: int = 4  # memory slots per group
    pooling: Literal["mean", "attention"] = "mean"  # over the slots of each group, or over all memories

    def __post_init__(self) -> None:
        at_least_one(self, "num_slots")


G = TypeVar("G", bound=GroupedSettings)


class GroupedRecurrence(Recurrence):
    """(B, T, N, D) to (B, N, D) by the mean over the slots, or to (B, M, D) by attention; any T."""

    def __init__(self, config: ModelConfig, settings: GroupedSettings) -> None:
        super().__init__(config, settings)
        dim = config.vision.hidden_size
        self.initial_memory = nn.Parameter(torch.randn(config.resampler.num_latents, settings.num_slots, dim))
        self.pos_emb = TimeStamps(dim)
        self.final_output = (
            None if settings.pooling == "mean" else TokenLearner(dim, num_tokens=config.num_video_tokens)
        )

    def start(self, x_BTND: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the initial memory (R, G, D) and the time-stamped tokens by frame (T, R, D)."""
        memory_RGD = self.initial_memory.expand(x_BTND.shape[0], -1, -1, -1).flatten(0, 1)
        tokens_TRD = self.pos_emb(x_BTND).transpose(0, 1).flatten(1, 2)
        return memory_RGD, tokens_TRD

    def finish(self, memory_RGD: Tensor, outputs: Tensor) -> Tensor:
        """Pools the final memories: (R, G, D) to (B, M, D)."""
        memory_BNGD = memory_RGD.view(-1, *self.initial_memory.shape)
        if self.final_output is None:
            return memory_BNGD.mean(dim=2)
        pooled_BMD: Tensor = self.final_output(memory_BNGD.flatten(1, 2))
        return pooled_BMD


def grouped_token_counts(settings: GroupedSettings, clip: ClipSize) -> TokenCounts:
    """Returns one token per group for the mean, and any learned count for attention."""
    return TokenCounts((clip.num_latents,) if settings.pooling == "mean" else LEARNED_TOKENS)


def pooling_forms(settings: G, given: Collection[str], num_video_tokens: int | None) -> Sequence[G]:
    """Returns the pooling of ``settings`` first, then the other one unless the user gave the pooling."""
    if "pooling" in given:
        return (settings,)
    others = (dataclasses.replace(settings, pooling=pooling) for pooling in ("mean", "attention"))
    return (settings, *others)
