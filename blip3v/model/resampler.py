"""The Perceiver resampler with the temporal encoder inside it, structured like the released module.

Order: depth x (cross-attention, feed-forward) on each frame, then the temporal encoder over all frames, then the final
LayerNorm and the projection to the language width (xGen-MM; paper section 2.2).
"""

# Shapes: B batch, T frames, R rows = B*T, P patches, L latents, M video tokens, D width, E heads * head width.

from __future__ import annotations

import torch
from torch import Tensor, nn

from blip3v.config import ModelConfig, ResamplerConfig
from blip3v.model.blocks import FeedForward, attend, pairs
from blip3v.model.temporal import build_temporal, has_resampler, resampler_depth

__all__ = ["CrossAttention", "PerceiverResampler"]


class CrossAttention(nn.Module):
    """Latents attend to the patches and to themselves; patches come first in the keys. The caller adds the residual."""

    def __init__(self, dim: int, *, num_heads: int, head_dim: int) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, patches_RPD: Tensor, latents_RLD: Tensor) -> Tensor:
        """Maps (R, P, D) patches and (R, L, D) latents to (R, L, D)."""
        latents_RLD = self.norm_latents(latents_RLD)
        media = torch.cat((self.norm_media(patches_RPD), latents_RLD), dim=1)
        k, v = self.to_kv(media).chunk(2, dim=-1)
        out_RLD: Tensor = self.to_out(attend(self.to_q(latents_RLD), k, v, num_heads=self.num_heads))
        return out_RLD


class PerceiverResampler(nn.Module):
    """Turns the patches of T frames into M tokens of the language width (released name: ``vision_tokenizer``).

    Without latents and layers if the temporal encoder reads the patches themselves.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, resampler = config.vision.hidden_size, config.resampler
        self.resamples = has_resampler(config)
        if self.resamples:
            self.latents = nn.Parameter(torch.randn(resampler.num_latents, dim))
        self.layers = nn.ModuleList(_block(dim, resampler) for _ in range(resampler_depth(config)))
        self.temporal_encoder = build_temporal(config)
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, config.text.hidden_size)

    def arrange(self, patches_BTPD: Tensor) -> Tensor:
        """Arranges the patches for ``resample`` as the temporal encoder wants them: (B, T, P, D) to (B, F, P, D)."""
        return self.temporal_encoder.arrange(patches_BTPD)

    def resample(self, patches_BTPD: Tensor) -> Tensor:
        """Resamples each frame independently: (B, T, P, D) to (B, T, L, D); returns the patches if nothing does."""
        if not self.resamples:
            return patches_BTPD
        patches_RPD = patches_BTPD.flatten(0, 1)
        latents_RLD = self.latents.expand(patches_RPD.shape[0], -1, -1)
        for attention, feed_forward in pairs(self.layers):
            latents_RLD = latents_RLD + attention(patches_RPD, latents_RLD)
            latents_RLD = latents_RLD + feed_forward(latents_RLD)
        return latents_RLD.view(*patches_BTPD.shape[:2], *latents_RLD.shape[1:])

    def project(self, tokens_BMD: Tensor) -> Tensor:
        """Applies the final LayerNorm and the projection: (B, M, D) to (B, M, language width)."""
        projected: Tensor = self.projection(self.norm(tokens_BMD))
        return projected

    def forward(self, patches_BTPD: Tensor) -> Tensor:
        """(B, T, P, D) to (B, M, language width)."""
        return self.project(self.temporal_encoder(self.resample(self.arrange(patches_BTPD))))


def _block(dim: int, config: ResamplerConfig) -> nn.ModuleList:
    attention = CrossAttention(dim, num_heads=config.num_heads, head_dim=config.head_dim)
    return nn.ModuleList((attention, FeedForward(dim, mult=config.ff_mult)))
