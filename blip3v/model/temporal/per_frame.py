"""Attentional pooling of each frame by itself: the same TokenLearner makes m tokens of every frame."""

from __future__ import annotations

from torch import Tensor, nn

from blip3v.config import ModelConfig
from blip3v.model.blocks import TokenLearner

__all__ = ["PerFrameTokenLearner"]


class PerFrameTokenLearner(nn.Module):
    """(B, T, N, D) to (B, T*m, D), frame-major, any T; m is ``num_video_tokens`` by ``num_frames``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        num_video_tokens = config.temporal.num_video_tokens // config.num_frames
        self.final_output = TokenLearner(config.vision.hidden_size, num_tokens=num_video_tokens)

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Pools every frame, and puts the frames one after the other."""
        pooled: Tensor = self.final_output(x_BTND.flatten(0, 1))
        return pooled.view(*x_BTND.shape[:2], *pooled.shape[1:]).flatten(1, 2)
