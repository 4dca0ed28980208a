"""Only the middle sampled frame: the paper's one-frame baseline."""

from __future__ import annotations

from torch import Tensor

from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.spec import EncoderSpec, NoSettings, TokenCounts
from blip3v.model.temporal.stored import weightless

__all__ = ["ENCODER"]


def _middle(num_frames: int) -> slice:
    return slice(num_frames // 2, num_frames // 2 + 1)


class SingleFrame(TemporalEncoder):
    """(B, T, N, D) to (B, N, D): frame T // 2."""

    def arrange(self, patches_BTPD: Tensor) -> Tensor:
        """Keeps only the middle frame, since the others would be dropped: (B, T, P, D) to (B, 1, P, D)."""
        return patches_BTPD[:, patches_BTPD.shape[1] // 2, None]

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Takes the middle frame."""
        return x_BTND[:, x_BTND.shape[1] // 2]


ENCODER = EncoderSpec(
    settings=NoSettings,
    module=SingleFrame,
    token_counts=lambda settings, clip: TokenCounts((clip.num_latents,)),
    find=weightless,
    frames_read=_middle,
)
