"""Random weights for training from scratch."""

from __future__ import annotations

import torch

from blip3v.config import ModelConfig
from blip3v.model import Blip3Video
from blip3v.model.blocks import TokenLearner
from blip3v.model.language import LanguageModel
from blip3v.model.resampler import CrossAttention

__all__ = ["new_model"]

# At the library's default scale, softmax scores over hundreds of tokens are almost equal: every query takes the same
# mean, and the gradient hardly distinguishes the queries. These factors bring the spread of the scores to about 2.
_QUERY_GAIN = 6.0
_POOL_GAIN = 10.0


def new_model(config: ModelConfig) -> Blip3Video:
    """Returns a model with random weights whose latents and pooled tokens attend to different things from the start."""
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
    """Unit-variance embeddings and linear layers that keep it: at a small width, 0.02 makes attention uniform too."""
    for name, weight in lang_model.named_parameters():
        if weight.ndim == 2:
            weight.normal_(std=1.0 if "embed" in name else weight.shape[1] ** -0.5)
