"""Maximum over windows of neighbouring tokens across all frames: space-time pooling without weights."""

# Shapes: B batch, T frames, N tokens per frame, M tokens out, W = N/M tokens per window, D width.

from __future__ import annotations

from torch import Tensor

from blip3v.config import ModelConfig
from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.spec import LEARNED_TOKENS, ClipSize, EncoderSpec, NoSettings, TokenCounts
from blip3v.model.temporal.stored import weightless

__all__ = ["ENCODER"]


class SpaceTimePool(TemporalEncoder):
    """(B, T, N, D) to (B, M, D): a window is N/M tokens of every frame (released: 4 tokens, 8 frames); any T."""

    def __init__(self, config: ModelConfig, settings: NoSettings) -> None:
        super().__init__(config, settings)
        self.num_video_tokens = config.num_video_tokens

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Takes the elementwise maximum of each window."""
        *lead, num_tokens, dim = x_BTND.shape
        windows_BTMWD = x_BTND.reshape(*lead, self.num_video_tokens, num_tokens // self.num_video_tokens, dim)
        return windows_BTMWD.amax(dim=(1, 3))


def _token_counts(settings: NoSettings, clip: ClipSize) -> TokenCounts:
    divisors = {count for count in LEARNED_TOKENS if clip.num_latents % count == 0}
    return TokenCounts(tuple(sorted(divisors | {clip.num_latents})))


ENCODER = EncoderSpec(settings=NoSettings, module=SpaceTimePool, token_counts=_token_counts, find=weightless)
