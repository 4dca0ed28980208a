"""Mean over the frames, as in the authors' code, or the sum that the paper writes."""

from __future__ import annotations

from torch import Tensor, nn

from blip3v.config import ModelConfig

__all__ = ["Mean"]


class Mean(nn.Module):
    """(B, T, N, D) to (B, N, D), any T."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pooling = config.temporal.pooling

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Averages or adds over T."""
        return x_BTND.sum(dim=1) if self.pooling == "sum" else x_BTND.mean(dim=1)
