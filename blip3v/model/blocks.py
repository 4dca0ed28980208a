"""Blocks that the resampler and the temporal encoders share.

Forms and parameter names are those of the authors' released code, so that its weights load by name; a class says where
that code differs from the paper. Not here: the vision and language towers, which are the transformers library's.
"""

# Shapes: B batch, N tokens, Q queries, D width, H heads, K head width, M pooled tokens, T frames.

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "FeedForward",
    "ProcessLayers",
    "SelfAttention",
    "TimeStamps",
    "TokenLearner",
    "attend",
    "pairs",
    "sinusoid_frequencies",
]


def attend(q_BQE: Tensor, k_BNE: Tensor, v_BNE: Tensor, *, num_heads: int) -> Tensor:
    """Softmax attention over ``num_heads`` equal slices of the last axis; scale is head width ** -0.5.

    Args:
        q_BQE: queries, (B, Q, H*K).
        k_BNE: keys, (B, N, H*K).
        v_BNE: values, (B, N, H*K).
        num_heads: H.

    Returns:
        (B, Q, H*K), heads concatenated.
    """
    q, k, v = (x.view(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (q_BQE, k_BNE, v_BNE))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def pairs(layers: nn.ModuleList) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yields (attention, feed-forward) of each layer, which the released names number instead of naming."""
    for layer in layers:
        attention, feed_forward = cast(nn.ModuleList, layer)
        yield attention, feed_forward


class FeedForward(nn.Sequential):
    """LayerNorm, D -> mult*D, exact GELU, back to D; no bias. The caller adds the residual."""

    def __init__(self, dim: int, *, mult: int) -> None:
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, mult * dim, bias=False),
            nn.GELU(),
            nn.Linear(mult * dim, dim, bias=False),
        )


class SelfAttention(nn.Module):
    """Pre-norm self-attention without an output projection (the released form). The caller adds the residual."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        x_BND = self.norm(x_BND)
        return attend(self.to_q(x_BND), self.to_k(x_BND), self.to_v(x_BND), num_heads=self.num_heads)


class ProcessLayers(nn.ModuleList):
    """Self-attention and feed-forward with their residuals, layer by layer; no final norm or positional encoding."""

    def __init__(self, dim: int, *, num_layers: int, num_heads: int, ff_mult: int) -> None:
        super().__init__(
            nn.ModuleList((SelfAttention(dim, num_heads=num_heads), FeedForward(dim, mult=ff_mult)))
            for _ in range(num_layers)
        )

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        for attention, feed_forward in pairs(self):
            x_BND = x_BND + attention(x_BND)
            x_BND = x_BND + feed_forward(x_BND)
        return x_BND


class TokenLearner(nn.Module):
    """Pools N tokens into M: each output is a softmax-weighted sum of the un-normalised inputs (paper Eq. 2).

    The scores come from an MLP of inner width 2*M after two LayerNorms, one of them inside the MLP (the released form).
    """

    def __init__(self, dim: int, *, num_tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 2 * num_tokens, bias=False),
            nn.GELU(),
            nn.Linear(2 * num_tokens, num_tokens, bias=False),
        )

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, M, D)."""
        weights_BNM: Tensor = self.mlp(self.norm(x_BND)).softmax(dim=1)
        return weights_BNM.transpose(1, 2) @ x_BND


def sinusoid_frequencies(dim: int) -> Tensor:
    """Returns ``inv_freq`` of ``TimeStamps``: w_k for k in [0, D / 2), fp32 (D / 2,)."""
    return 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)


class TimeStamps(nn.Module):
    """Fixed sinusoid over the width: index 2k holds sin(t * w_k), 2k+1 cos(t * w_k), w_k = 10000 ** (-2k / D).

    ``inv_freq`` is a persistent buffer because the released state dict holds it.
    """

    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", sinusoid_frequencies(dim))

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Adds the vector of frame t, counted from 0, to all its tokens: (B, T, N, D) to (B, T, N, D)."""
        times_T = torch.arange(x_BTND.shape[1], device=x_BTND.device, dtype=torch.float32)
        angles_TK = times_T[:, None] * self.inv_freq.float()[None, :]
        stamps_TD = torch.stack((angles_TK.sin(), angles_TK.cos()), dim=-1).flatten(1)
        return x_BTND + stamps_TD[None, :, None, :].to(x_BTND.dtype)
