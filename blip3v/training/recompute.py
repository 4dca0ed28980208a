"""Gradient checkpointing: a block stores only its input and recomputes the rest in the backward pass."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from blip3v.model import Blip3Video
from blip3v.model.blocks import pairs
from blip3v.model.temporal.recurrence import Recurrence
from blip3v.training.parallel import LAYERS

__all__ = ["recompute_activations"]


def recompute_activations(model: Blip3Video) -> None:
    """Makes every layer of the towers, every block of the resampler and the temporal encoder recompute activations.

    A recurrent encoder does so frame by frame, so that only one frame's activations are in memory at a time.
    """
    tokenizer = model.vision_tokenizer
    blocks: list[nn.Module] = [module for module in model.modules() if isinstance(module, LAYERS)]
    blocks += [block for pair in pairs(tokenizer.layers) for block in pair]
    encoder = tokenizer.temporal_encoder
    if isinstance(encoder, Recurrence):
        _recompute(encoder, "step")
    elif next(encoder.parameters(), None) is not None:
        blocks.append(encoder)
    for block in blocks:
        _recompute(block, "forward")


def _recompute(module: nn.Module, method: str) -> None:
    setattr(module, method, functools.partial(checkpoint, getattr(module, method), use_reentrant=False))
