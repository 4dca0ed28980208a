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
from blip3v.model.blocks import ProcessLayers, TokenLearner
from blip3v.model.temporal.grouped import GroupedRecurrence
from blip3v.model.temporal.recurrence import no_output

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


class GroupedTTM(GroupedRecurrence):
    """(B, T, N, D) to (B, N, D) by the mean over the slots, or to (B, M, D) by attention; any T."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.ttm_unit = _Unit(config.vision.hidden_size, config.temporal)

    def step(self, memory_RGD: Tensor, token_RD: Tensor) -> tuple[Tensor, Tensor]:
        """The memory after one more frame; a frame puts nothing out."""
        updated_RGD: Tensor = self.ttm_unit(memory_RGD, token_RD)
        return updated_RGD, no_output(updated_RGD)
