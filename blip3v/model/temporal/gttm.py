"""Grouped Token Turing Machine: the paper's sequential encoder and the released one (paper section 2.3).

Every resampler token position is a group with a small memory of its own; all groups share the weights and never mix.
At each frame a group processes its memory with the frame's token and writes the memory anew. The output is the mean
over the memory slots. The released module also holds a read layer that it never calls; it is not built here.
"""

# Shapes: B batch, T frames, N groups, G memory slots, D width, R rows = B*N.

from __future__ import annotations

import torch
from torch import Tensor, nn

from blip3v.config import ModelConfig, TemporalConfig
from blip3v.model.blocks import FeedForward, SelfAttention, TimeStamps, TokenLearner, pairs

__all__ = ["GroupedTTM"]


class _Unit(nn.Module):
    """Process and write of one group at one frame."""

    def __init__(self, dim: int, config: TemporalConfig) -> None:
        super().__init__()
        self.process_layers = nn.ModuleList(
            nn.ModuleList((SelfAttention(dim, num_heads=config.num_heads), FeedForward(dim, mult=config.ff_mult)))
            for _ in range(config.num_layers)
        )
        self.write_layer = TokenLearner(dim, num_tokens=config.num_slots)

    def forward(self, memory_RGD: Tensor, token_RD: Tensor) -> Tensor:
        """Memory (R, G, D) and the frame's tokens (R, D) to the new memory (R, G, D)."""
        z = torch.cat((memory_RGD, token_RD[:, None]), dim=1)
        for attention, feed_forward in pairs(self.process_layers):
            z = z + attention(z)
            z = z + feed_forward(z)
        written_RGD: Tensor = self.write_layer(torch.cat((memory_RGD, z), dim=1))
        return written_RGD


class GroupedTTM(nn.Module):
    """(B, T, N, D) to (B, N, D), any T."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, temporal = config.vision.hidden_size, config.temporal
        self.initial_memory = nn.Parameter(torch.randn(config.resampler.num_latents, temporal.num_slots, dim))
        self.pos_emb = TimeStamps(dim)
        self.ttm_unit = _Unit(dim, temporal)

    def start(self, x_BTND: Tensor) -> tuple[Tensor, Tensor]:
        """Initial memory (R, G, D) and time-stamped tokens by frame (T, R, D)."""
        batch = x_BTND.shape[0]
        memory_RGD = self.initial_memory.expand(batch, -1, -1, -1).flatten(0, 1)
        tokens_TRD = self.pos_emb(x_BTND).transpose(0, 1).flatten(1, 2)
        return memory_RGD, tokens_TRD

    def step(self, memory_RGD: Tensor, token_RD: Tensor) -> Tensor:
        """The memory after one more frame."""
        updated_RGD: Tensor = self.ttm_unit(memory_RGD, token_RD)
        return updated_RGD

    def finish(self, memory_RGD: Tensor) -> Tensor:
        """Mean over the slots: (R, G, D) to (B, N, D)."""
        num_groups, _, dim = self.initial_memory.shape
        return memory_RGD.mean(dim=1).view(-1, num_groups, dim)

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Runs the frames one after the other."""
        memory_RGD, tokens_TRD = self.start(x_BTND)
        for token_RD in tokens_TRD:
            memory_RGD = self.step(memory_RGD, token_RD)
        return self.finish(memory_RGD)
