"""Runs the transformers library's Phi-3 one layer at a time, so that the reference never needs more than one layer.

All prompts pass through a layer before the next layer's weights are read.
"""

# Shapes: B rows, S positions of a row, L tokens, N positions, D width, V logits.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blip3v.config import TextConfig
from blip3v.model.language import LanguageModel, head_bias, head_matrix
from blip3v.model.packing import positions_and_mask
from blip3v.model.weights import fill, without_weights

__all__ = ["PackedBatch", "layerwise_logits", "one_layer", "packed_logits"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class PackedBatch:
    """Rows in which several prompts share a prefix (``packing.py``), padded on the right.

    Attributes:
        embeds_BSD: fp32.
        question_BS: int64: 0 for the prefix, then 1, 2, ... for the prompts, and one more number for padding.
        row_N: the row of each position whose logits are wanted.
        at_N: that position in its row.
    """

    embeds_BSD: FloatArray
    question_BS: NDArray[np.int64]
    row_N: NDArray[np.int64]
    at_N: NDArray[np.int64]


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
    embeds = [torch.from_numpy(prompt.astype(np.float32))[None] for prompt in prompts]
    norm, hidden = _hidden(text, weights, embeds, [()] * len(embeds), progress)
    wanted = [norm(x_1LD[0, list(at)]) for x_1LD, at in zip(hidden, positions, strict=True)]
    return _logits(text, weights, wanted)


@torch.inference_mode()
def packed_logits(
    text: TextConfig,
    weights: Mapping[str, Tensor],
    batches: Sequence[PackedBatch],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[FloatArray]:
    """Computes the fp32 logits of packed rows without a cache; arguments as for ``layerwise_logits``.

    Returns:
        (N, V) for each batch.
    """
    embeds = [torch.from_numpy(batch.embeds_BSD) for batch in batches]
    window = text.sliding_window
    contexts = [positions_and_mask(torch.from_numpy(batch.question_BS), window=window) for batch in batches]
    norm, hidden = _hidden(text, weights, embeds, contexts, progress)
    wanted = [norm(x_BSD[batch.row_N, batch.at_N]) for x_BSD, batch in zip(hidden, batches, strict=True)]
    return _logits(text, weights, wanted)


def _hidden(
    text: TextConfig,
    weights: Mapping[str, Tensor],
    hidden: list[Tensor],
    contexts: Sequence[tuple[Tensor, ...]],
    progress: Callable[[int, int], None],
) -> tuple[nn.Module, list[Tensor]]:
    """Returns the final norm and what it is to be applied to, (B, S, D) for each batch.

    Args:
        text: the language model's shape.
        weights: by released name.
        hidden: the embeddings of each batch.
        contexts: further arguments of ``LanguageModel.hidden`` for each batch.
        progress: called with (layers done, total layers).
    """
    language = one_layer(text)
    phi3: Any = language.model  # the transformers library, untyped
    norm, phi3.norm = phi3.norm, nn.Identity()  # it belongs after the last layer
    for layer in range(text.num_layers):
        fill(phi3.layers[0], weights, f"lang_model.model.layers.{layer}.")
        hidden = [language.hidden(x_BSD, *context) for x_BSD, context in zip(hidden, contexts, strict=True)]
        progress(layer + 1, text.num_layers)
    fill(norm, weights, "lang_model.model.norm.")
    return norm, hidden


def _logits(text: TextConfig, weights: Mapping[str, Tensor], wanted: Sequence[Tensor]) -> list[FloatArray]:
    """(N, D) after the final norm to (N, V)."""
    matrix_VD, bias_V = head_matrix(weights, text), head_bias(weights, text)
    return [(x_ND @ matrix_VD.T + bias_V).numpy() for x_ND in wanted]


def one_layer(text: TextConfig) -> LanguageModel:
    """Builds a language model of one layer, without weights."""
    with without_weights():
        return LanguageModel(dataclasses.replace(text, num_layers=1)).eval().requires_grad_(False)
