"""Random models on a device.

Weights are made on the device that uses them, which takes a GPU seconds for the 4B model. They differ from layer to
layer and preserve the scale of sums, so that half precision holds every activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from blip3v.bench.training.rows import Row
from blip3v.config import ModelConfig
from blip3v.model import Blip3Video
from blip3v.model.temporal import build_temporal, with_encoder

__all__ = ["SharedModel", "make", "row_config"]

M = TypeVar("M", bound=nn.Module)

# Vectors that are added without a product: their values have unit variance.
_UNIT_NAMES = (
    "latents",
    "initial_memory",
    "position_embedding.weight",
    "embed_tokens.weight",
    "additional_embedding.weight",
)


class SharedModel:
    """One model for several rows: only the temporal encoder changes, so turns are cheap and memory holds one model."""

    def __init__(self, config: ModelConfig, rows: Iterable[Row], *, device: torch.device, dtype: torch.dtype) -> None:
        configs = {row: row_config(config, row) for row in rows}
        first = next(iter(configs.values()))
        self.model = make(lambda: Blip3Video(first), device=device, dtype=dtype)
        self.encoders = {
            row: make(partial(build_temporal, own), device=device, dtype=dtype) for row, own in configs.items()
        }

    def use(self, row: Row) -> Blip3Video:
        """The model with the encoder of ``row``."""
        self.model.vision_tokenizer.temporal_encoder = self.encoders[row]
        return self.model


def row_config(config: ModelConfig, row: Row) -> ModelConfig:
    """``config`` with the encoder and token count of ``row``."""
    return with_encoder(config, row.encoder, num_video_tokens=row.num_video_tokens)


def make(build: Callable[[], M], *, device: torch.device, dtype: torch.dtype, seed: int = 0) -> M:
    """Builds a module on ``device`` with random weights of ``dtype``; frequency tables stay fp32."""
    with _default_dtype(dtype), device:
        module = build()
    _randomise(module, seed)
    return module


@torch.no_grad()
def _randomise(module: nn.Module, seed: int) -> None:
    generators: dict[torch.device, torch.Generator] = {}
    for name, weight in module.named_parameters():
        if weight.device not in generators:
            generators[weight.device] = torch.Generator(weight.device).manual_seed(seed)
        noise = torch.empty_like(weight).normal_(generator=generators[weight.device])
        if name.endswith(_UNIT_NAMES):
            weight.copy_(noise)
        elif weight.ndim == 1:
            weight.add_(noise, alpha=0.05)  # a norm stays near one, a bias near zero
        else:
            weight.copy_(noise.mul_(1.0 / math.sqrt(math.prod(weight.shape[1:]))))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
