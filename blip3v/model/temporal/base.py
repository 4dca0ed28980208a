"""The base class of all temporal encoders."""

# Shapes: B batch, T frames, F frames after the arrangement, P patches, N tokens per frame, D width, M tokens out.

from __future__ import annotations

from torch import Tensor, nn

from blip3v.config import ModelConfig

__all__ = ["TemporalEncoder"]


class TemporalEncoder(nn.Module):
    """(B, T, N, D) to (B, M, D); N are latents or patches, as the encoder's spec says. Subclasses define ``forward``.

    One that reads latents may override ``arrange``, if its latents are to attend to other patches.
    """

    def __init__(self, config: ModelConfig, settings: object) -> None:
        super().__init__()

    def arrange(self, patches_BTPD: Tensor) -> Tensor:
        """Returns the patches that the resampler attends to, (B, F, P, D): by default each frame's own, unchanged."""
        return patches_BTPD
