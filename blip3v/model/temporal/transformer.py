"""A transformer over the tokens of all frames that keeps the last M of them (paper Eq. 1, after Mirasol3B).

Attention sees all frames in both directions, and there is no positional encoding: as in the authors' code, the order
of the frames shows only in which positions are kept.
"""

from __future__ import annotations

from torch import Tensor, nn

from blip3v.config import ModelConfig
from blip3v.model.blocks import ProcessLayers

__all__ = ["SpaceTimeTransformer"]


class SpaceTimeTransformer(nn.Module):
    """(B, T, N, D) to (B, M, D), any T with M <= T*N."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        temporal = config.temporal
        self.num_video_tokens = temporal.num_video_tokens
        self.process_layers = ProcessLayers(
            config.vision.hidden_size,
            num_layers=temporal.num_layers,
            num_heads=temporal.num_heads,
            ff_mult=temporal.ff_mult,
        )

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Runs over the tokens of all frames, frame-major."""
        processed: Tensor = self.process_layers(x_BTND.flatten(1, 2))
        return processed[:, -self.num_video_tokens :]
