"""Mean over the frames, as in the authors' code, or their sum, as in the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from blip3v.config import ModelConfig
from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.spec import EncoderSpec, TokenCounts
from blip3v.model.temporal.stored import weightless

__all__ = ["ENCODER"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The defaults are the released form."""

    pooling: Literal["mean", "sum"] = "mean"  # over the frames


class Mean(TemporalEncoder):
    """(B, T, N, D) to (B, N, D), any T."""

    def __init__(self, config: ModelConfig, settings: Settings) -> None:
        super().__init__(config, settings)
        self.pooling = settings.pooling

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Averages or sums over T."""
        return x_BTND.sum(dim=1) if self.pooling == "sum" else x_BTND.mean(dim=1)


ENCODER = EncoderSpec(
    settings=Settings,
    module=Mean,
    token_counts=lambda settings, clip: TokenCounts((clip.num_latents,)),
    find=weightless,
)
