"""The middle sampled frame alone: the paper's one-frame baseline."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["SingleFrame", "middle_frame"]


def middle_frame(num_frames: int) -> int:
    """Index of the one frame that is used, of ``num_frames``."""
    return num_frames // 2


class SingleFrame(nn.Module):
    """(B, T, N, D) to (B, N, D): frame T // 2."""

    def arrange(self, patches_BTPD: Tensor) -> Tensor:
        """The middle frame alone, since the others would be dropped: (B, T, P, D) to (B, 1, P, D)."""
        return patches_BTPD[:, middle_frame(patches_BTPD.shape[1]), None]

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Takes the middle frame."""
        return x_BTND[:, middle_frame(x_BTND.shape[1])]
