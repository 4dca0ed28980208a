"""Random weights to train from."""

from __future__ import annotations

import torch

from blip3v.config import ModelConfig
from blip3v.model import Blip3Video
from blip3v.model.blocks import TokenLearner
from blip3v.model.language import LanguageModel
from blip3v.model.resampler import CrossAttention

__all__ = ["new_model"]

# With the library's usual scale the scores of a softmax over hundreds of tokens are almost equal: every query takes
# the same mean, and the gradient hardly tells queries apart. These factors bring the scores to a spread of about 2.
_QUERY_GAIN = 6.0
_POOL_GAIN = 10.0


def new_model(config: ModelConfig) -> Blip3Video:
    """A model with random weights whose latents and pooled tokens differ in what they look at from the start."""
    model = Blip3Video(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, CrossAttention):
                module.to_q.weight.mul_(_QUERY_GAIN)
            elif isinstance(module, TokenLearner):
                module.get_parameter("mlp.3.weight").mul_(_POOL_GAIN)
        _spread(model.lang_model)
    return model


def _spread(lang_model: LanguageModel) -> None:
    """Embeddings of unit variance and linear layers that keep it: at a small width, 0.02 leaves attention even too."""
    for name, weight in lang_model.named_parameters():
        if weight.ndim == 2:
            weight.normal_(std=1.0 if "embed" in name else weight.shape[1] ** -0.5)
