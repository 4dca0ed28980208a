"""Runs the transformers library's Phi-3 one layer at a time, so that the reference never needs more than one layer.

All prompts pass through a layer before the next layer's weights are read.
"""

# Shapes: L tokens, N positions, D width, V logits.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blip3v.config import TextConfig
from blip3v.model.language import LanguageModel, head_bias, head_matrix
from blip3v.model.weights import fill, without_weights

__all__ = ["layerwise_logits", "one_layer"]

FloatArray = NDArray[np.float32]


@torch.inference_mode()
def layerwise_logits(
    text: TextConfig,
    weights: Mapping[str, Tensor],
    prompts: Sequence[NDArray[np.floating]],
    positions: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[FloatArray]:
    """Computes fp32 logits without a cache.

    Args:
        text: the language model's shape.
        weights: by released name.
        prompts: the embeddings (L, D) of each prompt.
        positions: for each prompt, the N positions whose logits to return.
        progress: called with (layers done, total layers).

    Returns:
        (N, V) for each prompt.
    """
    language = one_layer(text)
    phi3: Any = language.model  # the transformers library, untyped
    norm, phi3.norm = phi3.norm, nn.Identity()  # it belongs after the last layer
    hidden = [torch.from_numpy(prompt.astype(np.float32))[None] for prompt in prompts]
    for layer in range(text.num_layers):
        fill(phi3.layers[0], weights, f"lang_model.model.layers.{layer}.")
        hidden = [language.hidden(x_1LD) for x_1LD in hidden]
        progress(layer + 1, text.num_layers)
    fill(norm, weights, "lang_model.model.norm.")
    matrix_VD, bias_V = head_matrix(weights, text), head_bias(weights, text)
    wanted = [norm(x_1LD[0, list(at)]) for x_1LD, at in zip(hidden, positions, strict=True)]
    return [(x_ND @ matrix_VD.T + bias_V).numpy() for x_ND in wanted]


def one_layer(text: TextConfig) -> LanguageModel:
    """Builds a language model of one layer, without weights."""
    with without_weights():
        return LanguageModel(dataclasses.replace(text, num_layers=1)).eval().requires_grad_(False)
