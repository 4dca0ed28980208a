"""No reduction: every frame's tokens, one frame after the other. The 1024-token baseline of the paper."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["NoReduction"]


class NoReduction(nn.Module):
    """(B, T, N, D) to (B, T*N, D), frame-major."""

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Concatenates the frames."""
        return x_BTND.flatten(1, 2)
