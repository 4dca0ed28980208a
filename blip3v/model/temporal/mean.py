"""Mean over the frames. The paper writes a sum; the released code takes the mean."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Mean"]


class Mean(nn.Module):
    """(B, T, N, D) to (B, N, D)."""

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Averages over T."""
        return x_BTND.mean(dim=1)
