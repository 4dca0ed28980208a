"""Grouped Token Turing Machine: the paper's sequential encoder and the released one (paper section 2.3).

Every resampler token position is a group with a small memory of its own; all groups share the weights and never mix.
At each frame a group processes its memory with the frame's token and writes the memory anew. The output is the mean
over the memory slots (released), or the paper's attentional pooling of all memories. The released module also holds a
read layer that it never calls; it is not built here.
"""

# Shapes: B batch, T frames, N groups, G memory slots, D width, R rows = B*N.

from __future__ import annotations

import torch
from torch import Tensor, nn

from blip3v.config import ModelConfig, TemporalConfig
from blip3v.model.blocks import ProcessLayers, TimeStamps, TokenLearner
from blip3v.model.temporal.memory_pooling import attentional_output, pool_memory
from blip3v.model.temporal.recurrence import Recurrence, no_output

__all__ = ["GroupedTTM"]


class _Unit(nn.Module):
    """Process and write of one group at one frame."""

    def __init__(self, dim: int, config: TemporalConfig) -> None:
        super().__init__()
        self.process_layers = ProcessLayers(
            dim, num_layers=config.num_layers, num_heads=config.num_heads, ff_mult=config.ff_mult
        )
        self.write_layer = TokenLearner(dim, num_tokens=config.num_slots)

    def forward(self, memory_RGD: Tensor, token_RD: Tensor) -> Tensor:
        """Memory (R, G, D) and the frame's tokens (R, D) to the new memory (R, G, D)."""
        processed = self.process_layers(torch.cat((memory_RGD, token_RD[:, None]), dim=1))
        written_RGD: Tensor = self.write_layer(torch.cat((memory_RGD, processed), dim=1))
        return written_RGD


class GroupedTTM(Recurrence):
    """(B, T, N, D) to (B, N, D) by the mean over the slots, or to (B, M, D) by attention; any T."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, temporal = config.vision.hidden_size, config.temporal
        self.initial_memory = nn.Parameter(torch.randn(config.resampler.num_latents, temporal.num_slots, dim))
        self.pos_emb = TimeStamps(dim)
        self.ttm_unit = _Unit(dim, temporal)
        self.final_output = attentional_output(config)

    def start(self, x_BTND: Tensor) -> tuple[Tensor, Tensor]:
        """Initial memory (R, G, D) and time-stamped tokens by frame (T, R, D)."""
        memory_RGD = self.initial_memory.expand(x_BTND.shape[0], -1, -1, -1).flatten(0, 1)
        tokens_TRD = self.pos_emb(x_BTND).transpose(0, 1).flatten(1, 2)
        return memory_RGD, tokens_TRD

    def step(self, memory_RGD: Tensor, token_RD: Tensor) -> tuple[Tensor, Tensor]:
        """The memory after one more frame; a frame puts nothing out."""
        updated_RGD: Tensor = self.ttm_unit(memory_RGD, token_RD)
        return updated_RGD, no_output(updated_RGD)

    def finish(self, memory_RGD: Tensor, outputs: Tensor) -> Tensor:
        """Pools the last memories: (R, G, D) to (B, M, D)."""
        return pool_memory(memory_RGD, self.initial_memory.shape[0], self.final_output)
