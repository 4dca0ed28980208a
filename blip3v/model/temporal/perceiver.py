"""The resampler itself as the temporal encoder: its latents attend to the patches of all frames at once.

The first M latents are the output. There are no weights besides the resampler's, and nothing encodes the frame order.
"""

from __future__ import annotations

from torch import Tensor

from blip3v.config import ModelConfig
from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.spec import LEARNED_TOKENS, ClipSize, EncoderSpec, NoSettings, TokenCounts
from blip3v.model.temporal.stored import weightless

__all__ = ["ENCODER"]


class JointPerceiver(TemporalEncoder):
    """(B, 1, L, D), the resampler's output for ``arrange``, to (B, M, D); any T."""

    def __init__(self, config: ModelConfig, settings: NoSettings) -> None:
        super().__init__(config, settings)
        self.num_video_tokens = config.num_video_tokens

    def arrange(self, patches_BTPD: Tensor) -> Tensor:
        """Joins the patches of all frames into one frame: (B, T, P, D) to (B, 1, T*P, D)."""
        return patches_BTPD.flatten(1, 2)[:, None]

    def forward(self, x_B1LD: Tensor) -> Tensor:
        """Keeps the first M latents."""
        return x_B1LD[:, 0, : self.num_video_tokens]


def _token_counts(settings: NoSettings, clip: ClipSize) -> TokenCounts:
    counts = {count for count in LEARNED_TOKENS if count <= clip.num_latents}
    return TokenCounts(tuple(sorted(counts | {clip.num_latents})))


ENCODER = EncoderSpec(settings=NoSettings, module=JointPerceiver, token_counts=_token_counts, find=weightless)
