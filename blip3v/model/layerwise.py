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

__all__ = ["LayerwiseDecoder", "layerwise_logits", "one_layer"]

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
    decoder = LayerwiseDecoder(text, weights)
    hidden = [torch.from_numpy(prompt.astype(np.float32))[None] for prompt in prompts]
    for layer in range(text.num_layers):
        decoder.load(layer)
        hidden = [decoder.compute(x_1LD) for x_1LD in hidden]
        progress(layer + 1, text.num_layers)
    matrix_VD, bias_V = head_matrix(weights, text), head_bias(weights, text)
    wanted = [decoder.normed(x_1LD, at) for x_1LD, at in zip(hidden, positions, strict=True)]
    return [(x_ND @ matrix_VD.T + bias_V).numpy() for x_ND in wanted]


class LayerwiseDecoder:
    """The layers of the language model, of which only the loaded one is in memory.

    Args:
        text: the language model's shape.
        weights: by released name.
    """

    def __init__(self, text: TextConfig, weights: Mapping[str, Tensor]) -> None:
        self._language = one_layer(text)
        self._phi3: Any = self._language.model  # the transformers library, untyped
        self._norm, self._phi3.norm = self._phi3.norm, nn.Identity()  # it belongs after the last layer
        fill(self._norm, weights, "lang_model.model.norm.")
        self._weights = weights

    def load(self, index: int) -> nn.Module:
        """Reads a layer's weights and returns its module, which every call returns: with the weights of that layer."""
        layer: nn.Module = self._phi3.layers[0]
        fill(layer, self._weights, f"lang_model.model.layers.{index}.")
        return layer

    def compute(self, x_1LD: Tensor) -> Tensor:
        """Applies the loaded layer: (1, L, D) to (1, L, D)."""
        return self._language.hidden(x_1LD)

    def normed(self, x_1LD: Tensor, at: Sequence[int]) -> Tensor:
        """Applies the final norm to the positions ``at``, the head's inputs: (1, L, D) to (N, D)."""
        rows_ND: Tensor = self._norm(x_1LD[0, list(at)])
        return rows_ND


def one_layer(text: TextConfig) -> LanguageModel:
    """Builds a language model of one layer, without weights."""
    with without_weights():
        return LanguageModel(dataclasses.replace(text, num_layers=1)).eval().requires_grad_(False)
