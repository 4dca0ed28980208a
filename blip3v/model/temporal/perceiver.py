"""The resampler itself as the temporal encoder: its latents attend to the patches of all frames at once.

The first M latents are the output. There are no weights beside the resampler's, and nothing tells the order of frames.
"""

from __future__ import annotations

from torch import Tensor, nn

from blip3v.config import ModelConfig

__all__ = ["JointPerceiver"]


class JointPerceiver(nn.Module):
    """(B, 1, L, D), what the resampler makes of ``arrange``, to (B, M, D); any T."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_video_tokens = config.temporal.num_video_tokens

    def arrange(self, patches_BTPD: Tensor) -> Tensor:
        """The patches of all frames as those of one: (B, T, P, D) to (B, 1, T*P, D)."""
        return patches_BTPD.flatten(1, 2)[:, None]

    def forward(self, x_B1LD: Tensor) -> Tensor:
        """Keeps the first M latents."""
        return x_B1LD[:, 0, : self.num_video_tokens]
