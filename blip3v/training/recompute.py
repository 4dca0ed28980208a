"""Gradient checkpointing: a block stores only its input and recomputes the rest in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint

from blip3v.model import Blip3Video
from blip3v.model.blocks import pairs
from blip3v.model.temporal.recurrence import Recurrence
from blip3v.training.parallel import LAYERS

__all__ = ["recompute_activations", "store_activations"]


def recompute_activations(model: Blip3Video) -> None:
    """Makes every layer of the towers, every block of the resampler and the temporal encoder recompute activations.

    A recurrent encoder does so frame by frame, so that only one frame's activations are in memory at a time. What
    recomputes already stays as it is.
    """
    for module, method in _blocks(model):
        if method not in vars(module):
            setattr(module, method, functools.partial(checkpoint, getattr(module, method), use_reentrant=False))


def store_activations(model: Blip3Video) -> None:
    """Undoes ``recompute_activations``."""
    for module, method in _blocks(model):
        vars(module).pop(method, None)


def _blocks(model: Blip3Video) -> Iterator[tuple[nn.Module, str]]:
    """What recomputes, with the name of its method."""
    tokenizer = model.vision_tokenizer
    yield from ((module, "forward") for module in model.modules() if isinstance(module, LAYERS))
    yield from ((block, "forward") for pair in pairs(tokenizer.layers) for block in pair)
    encoder = tokenizer.temporal_encoder
    if isinstance(encoder, Recurrence):
        yield encoder, "step"
    elif next(encoder.parameters(), None) is not None:
        yield encoder, "forward"
