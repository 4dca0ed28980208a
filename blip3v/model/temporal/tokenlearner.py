"""Space-time attentional pooling: one TokenLearner over the tokens of all frames (paper section 2.3).

The released encoder gives its input no time stamps, so its output does not depend on the order of the frames.
``TemporalConfig.time_stamps`` adds those of the sequential encoder; off is the released form.
"""

from __future__ import annotations

from torch import Tensor, nn

from blip3v.config import ModelConfig
from blip3v.model.blocks import TimeStamps, TokenLearner

__all__ = ["SpaceTimeTokenLearner"]


class SpaceTimeTokenLearner(nn.Module):
    """(B, T, N, D) to (B, M, D), any T."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.vision.hidden_size
        if config.temporal.time_stamps:
            self.pos_emb = TimeStamps(dim)
        self.time_stamps = config.temporal.time_stamps
        self.final_output = TokenLearner(dim, num_tokens=config.temporal.num_video_tokens)

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Pools all frames at once."""
        if self.time_stamps:
            x_BTND = self.pos_emb(x_BTND)
        pooled_BMD: Tensor = self.final_output(x_BTND.flatten(1, 2))
        return pooled_BMD
