"""Maximum over the frames."""

from __future__ import annotations

from torch import Tensor

from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.spec import EncoderSpec, NoSettings, TokenCounts
from blip3v.model.temporal.stored import weightless

__all__ = ["ENCODER"]


class Max(TemporalEncoder):
    """(B, T, N, D) to (B, N, D), any T."""

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Takes the elementwise maximum over T."""
        return x_BTND.amax(dim=1)


ENCODER = EncoderSpec(
    settings=NoSettings,
    module=Max,
    token_counts=lambda settings, clip: TokenCounts((clip.num_latents,)),
    find=weightless,
)
