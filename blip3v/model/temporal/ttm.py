"""Token Turing Machine without groups: the paper's vanilla baseline, after Ryoo et al. 2022.

At each frame the memory and the frame's tokens are read into a few tokens, processed, and written to a new memory,
all by attentional pooling. The output is what every frame puts out, one frame after the other, or the last memory.
Where the original differs: the input does not reach the write, the memory starts learned and not at zero, there is no
norm after the process layers and no positions at read and write; ``time_stamps`` adds those of gttm.
"""

# Shapes: B batch, T frames, N tokens of a frame, C memory tokens, P process tokens, O tokens out of a frame, D width.

from __future__ import annotations

import torch
from torch import Tensor, nn

from blip3v.config import ModelConfig, TemporalConfig
from blip3v.model.blocks import ProcessLayers, TimeStamps, TokenLearner
from blip3v.model.temporal.recurrence import Recurrence, no_output

__all__ = ["VanillaTTM"]


class _Unit(nn.Module):
    """Read, process, write and output at one frame."""

    def __init__(self, dim: int, config: TemporalConfig) -> None:
        super().__init__()
        self.process_layers = ProcessLayers(
            dim, num_layers=config.num_layers, num_heads=config.num_heads, ff_mult=config.ff_mult
        )
        self.read_layer = TokenLearner(dim, num_tokens=config.process_tokens)
        self.write_layer = TokenLearner(dim, num_tokens=config.memory_tokens)
        # The authors build it where the memory is the output, too, and do not use it there.
        self.output_layer = None if config.memory_output else TokenLearner(dim, num_tokens=config.step_tokens)

    def forward(self, memory_BCD: Tensor, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Memory (B, C, D) and the frame's tokens (B, N, D) to the new memory and the frame's output (B, O, D)."""
        processed_BPD = self.process_layers(self.read_layer(torch.cat((memory_BCD, tokens_BND), dim=1)))
        written_BCD = self.write_layer(torch.cat((memory_BCD, processed_BPD), dim=1))
        return written_BCD, no_output(written_BCD) if self.output_layer is None else self.output_layer(processed_BPD)


class VanillaTTM(Recurrence):
    """(B, T, N, D) to (B, T*O, D), frame-major, or to the last memory (B, C, D); any T."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, temporal = config.vision.hidden_size, config.temporal
        self.initial_memory = nn.Parameter(torch.randn(temporal.memory_tokens, dim))
        self.pos_emb = TimeStamps(dim) if temporal.time_stamps else None
        self.ttm_unit = _Unit(dim, temporal)

    def start(self, x_BTND: Tensor) -> tuple[Tensor, Tensor]:
        """Initial memory (B, C, D) and the tokens by frame (T, B, N, D)."""
        stamped_BTND = x_BTND if self.pos_emb is None else self.pos_emb(x_BTND)
        return self.initial_memory.expand(x_BTND.shape[0], -1, -1).clone(), stamped_BTND.transpose(0, 1)

    def step(self, memory_BCD: Tensor, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """The memory after one more frame, and the frame's tokens out (B, O, D)."""
        updated_BCD, output_BOD = self.ttm_unit(memory_BCD, tokens_BND)
        return updated_BCD, output_BOD

    def finish(self, memory_BCD: Tensor, outputs_TBOD: Tensor) -> Tensor:
        """The frames' outputs one after the other, or the last memory."""
        if self.ttm_unit.output_layer is None:
            return memory_BCD
        return outputs_TBOD.transpose(0, 1).flatten(1, 2)
