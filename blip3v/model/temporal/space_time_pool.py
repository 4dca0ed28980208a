"""Maximum over windows of neighbouring tokens in all frames: space-time pooling without weights."""

# Shapes: B batch, T frames, N tokens of a frame, M tokens out, W tokens of a window = N/M, D width.

from __future__ import annotations

from torch import Tensor, nn

from blip3v.config import ModelConfig

__all__ = ["SpaceTimePool"]


class SpaceTimePool(nn.Module):
    """(B, T, N, D) to (B, M, D): a window is N/M tokens of every frame (released: 4 tokens, 8 frames); any T."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_video_tokens = config.temporal.num_video_tokens

    def forward(self, x_BTND: Tensor) -> Tensor:
        """The largest of each window, number by number."""
        *lead, num_video_tokens, dim = x_BTND.shape
        windows_BTMWD = x_BTND.reshape(*lead, self.num_video_tokens, num_video_tokens // self.num_video_tokens, dim)
        return windows_BTMWD.amax(dim=(1, 3))
