"""Shared by the tests of the reference: small configs, weights that reveal mistakes, and the comparison."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from plain_formulas import Array
from torch import nn

from blip3v.config import ModelConfig, preset
from blip3v.model.temporal import find_encoder, with_encoder

SEED, TOLERANCE = 7, 2e-5
SIZES = {"num_layers": 2, "num_heads": 3, "ff_mult": 2}  # of the encoders that have layers


def small_config(encoder: str, **choices: object) -> ModelConfig:
    """A model small enough for plain loops over every number: 32 tokens per frame, 24 wide."""
    tiny = with_encoder(preset("tiny"), "none")
    small = dataclasses.replace(
        tiny,
        vision=dataclasses.replace(tiny.vision, hidden_size=24, num_heads=2),
        resampler=dataclasses.replace(tiny.resampler, num_latents=32),
        name="small",  # not a preset's name, so that every encoder is the released form
    )
    read = find_encoder(encoder).setting_names
    sizes = {name: value for name, value in SIZES.items() if name in read}
    return with_encoder(small, encoder, **sizes, **choices)  # type: ignore[arg-type]


def weights(module: nn.Module) -> dict[str, Array]:
    return {name: x.detach().double().numpy() for name, x in module.state_dict().items()}


def randomise(module: nn.Module) -> nn.Module:
    """Gives norms weights other than 1 and 0, so that a swapped or missing norm shows."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def close(got: torch.Tensor, want: Array) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=TOLERANCE, atol=TOLERANCE)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED))
