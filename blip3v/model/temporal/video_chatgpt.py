"""Video-ChatGPT's pooling: the mean over the patches of every frame, then the mean over the frames of every patch.

Maaz et al., Video-ChatGPT, section 3.1. It reads the patches of the vision encoder; their code pads the first part to
100 frames with zeros, which is left out here.
"""

# Shapes: B batch, T frames, P patches, D width.

from __future__ import annotations

import torch
from torch import Tensor

from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.spec import EncoderSpec, NoSettings, TokenCounts
from blip3v.model.temporal.stored import weightless

__all__ = ["ENCODER"]


class SeparatePooling(TemporalEncoder):
    """(B, T, P, D) to (B, T + P, D), any T."""

    def forward(self, x_BTPD: Tensor) -> Tensor:
        """Pools space, then time."""
        return torch.cat((x_BTPD.mean(dim=2), x_BTPD.mean(dim=1)), dim=1)


ENCODER = EncoderSpec(
    settings=NoSettings,
    module=SeparatePooling,
    token_counts=lambda settings, clip: TokenCounts((clip.num_frames + clip.num_patches,), per_frame=True),
    find=weightless,
    reads="patches",
)
