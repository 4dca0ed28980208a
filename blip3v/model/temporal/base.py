"""The module that every temporal encoder is."""

# Shapes: B batch, T frames, F frames after the arrangement, P patches, N tokens of a frame, D width, M tokens out.

from __future__ import annotations

from torch import Tensor, nn

from blip3v.config import ModelConfig

__all__ = ["TemporalEncoder"]


class TemporalEncoder(nn.Module):
    """(B, T, N, D) to (B, M, D). A subclass has ``forward``, and ``arrange`` where it wants other patches."""

    def __init__(self, config: ModelConfig, settings: object) -> None:
        super().__init__()

    def arrange(self, patches_BTPD: Tensor) -> Tensor:
        """The patches that the resampler attends to, (B, F, P, D): here those of each frame, as they are."""
        return patches_BTPD
