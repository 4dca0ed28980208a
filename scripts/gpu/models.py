"""Random inputs for models on a device."""

# Shapes: B clips, T frames, L text tokens.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blip3v.bench.training.device import peak_bytes
from blip3v.config import ModelConfig
from scripts.gpu.plan import ANSWER_TOKENS, QUESTION_TOKENS

__all__ = ["Inputs", "make_inputs", "peak_gib"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A batch of clips with one conversation each."""

    frames_BTCHW: Tensor
    ids_BL: Tensor  # the video, a question, then an answer
    position_B: Tensor  # of ``<image>``

    def prompt(self) -> Tensor:
        """The ids without the answer, (B, L)."""
        return self.ids_BL[:, : 1 + QUESTION_TOKENS]


def make_inputs(config: ModelConfig, batch: int, *, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Random pixels and text; the video comes first."""
    generator = torch.Generator(device).manual_seed(seed)
    side = config.vision.image_size
    shape = (batch, config.num_frames, 3, side, side)
    ids_shape = (batch, 1 + QUESTION_TOKENS + ANSWER_TOKENS)
    return Inputs(
        frames_BTCHW=torch.rand(shape, generator=generator, device=device).mul(2).sub(1).to(dtype),
        ids_BL=torch.randint(config.text.num_base_tokens, ids_shape, generator=generator, device=device),
        position_B=torch.zeros(batch, dtype=torch.long, device=device),
    )


def peak_gib(device: torch.device) -> float | None:
    """Peak memory in GiB since ``reset_peak``; None: the system does not tell."""
    found = peak_bytes(device)
    return None if found is None else found / 2**30
