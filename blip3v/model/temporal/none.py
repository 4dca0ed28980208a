"""No reduction: the tokens of all frames, one frame after another. The paper's 1024-token baseline."""

from __future__ import annotations

from torch import Tensor

from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.spec import EncoderSpec, NoSettings, TokenCounts
from blip3v.model.temporal.stored import weightless

__all__ = ["ENCODER"]


class NoReduction(TemporalEncoder):
    """(B, T, N, D) to (B, T*N, D), frame-major."""

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Concatenates the frames."""
        return x_BTND.flatten(1, 2)


ENCODER = EncoderSpec(
    settings=NoSettings,
    module=NoReduction,
    token_counts=lambda settings, clip: TokenCounts((clip.num_latents * clip.num_frames,), per_frame=True),
    find=weightless,
)
