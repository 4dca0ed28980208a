"""The base class of encoders that read the frames one after another and carry a memory of fixed size.

The reference runs them as a plain loop over the frames. The exporter runs the same ``step`` as one ONNX Scan, since a
loop would fix the number of frames in the graph (``export/video_encoder_graph.py``).
"""

# Shapes: B batch, T frames, N tokens per frame, D width, M tokens out.

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from blip3v.model.temporal.base import TemporalEncoder

__all__ = ["Recurrence", "no_output"]


class Recurrence(TemporalEncoder):
    """(B, T, N, D) to (B, M, D), any T."""

    initial_memory: nn.Parameter

    @abstractmethod
    def start(self, x_BTND: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the memory before the first frame, and what ``step`` reads of each frame, frames first."""

    @abstractmethod
    def step(self, memory: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the memory after one more frame, and this frame's output; ``no_output`` if it has none."""

    @abstractmethod
    def finish(self, memory: Tensor, outputs: Tensor) -> Tensor:
        """Returns (B, M, D) from the final memory and the outputs of all frames, frames on the first axis."""

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Runs the frames one after another."""
        memory, frames = self.start(x_BTND)
        outputs = []
        for frame in frames:
            memory, output = self.step(memory, frame)
            outputs.append(output)
        return self.finish(memory, torch.stack(outputs))


def no_output(memory: Tensor) -> Tensor:
    """Returns a dummy output: a scan has to output something at each frame, and one number costs nothing."""
    return memory.flatten()[:1].clone()
