"""Maximum over the frames."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Max"]


class Max(nn.Module):
    """(B, T, N, D) to (B, N, D), any T."""

    def forward(self, x_BTND: Tensor) -> Tensor:
        """The largest over T of each number."""
        return x_BTND.amax(dim=1)
