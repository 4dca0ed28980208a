"""Scales of an int8 KV cache, from the largest keys and values that the model was seen to produce.

One scale per channel of a KV head: a few channels of the keys are many times larger than the others in every token. The
rotation mixes two channels by an angle that grows with the position, so both get the larger scale. What exceeds a range
is cut off, which costs more than a coarser step: ranges are wider than what was seen in calibration (``cache_scales``),
and much wider than what one prompt shows (``prompt_cache_scales``).
"""

# Shapes: L layers, t tokens, D width, G KV heads, K head width.

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.calibration.quantized import largest_value
from blip3v.calibration.statistics import cache_names
from blip3v.config import TextConfig
from blip3v.export.decoder_graph import CacheScales, CacheState, DecoderGraph, ReferenceAttention
from blip3v.model.layerwise import one_layer
from blip3v.model.weights import fill

__all__ = ["cache_scales", "prompt_cache_scales"]

_LARGEST = largest_value(8)
# The end of the range, in units of the largest value that was seen.
_MARGIN, _PROMPT_MARGIN = 1.5, 3.0


def cache_scales(absmax: Callable[[str], Tensor], text: TextConfig) -> CacheScales:
    """Returns scales from what calibration has seen.

    Args:
        absmax: the largest values of a cache, fp32 (G * K,), by its name in ``cache_names``; keys are rotated.
        text: the language model's shape.
    """
    found = [absmax(name) for name in cache_names(text)]
    return _scales(torch.stack(found[0::2]), torch.stack(found[1::2]), _MARGIN, text)


@torch.inference_mode()
def prompt_cache_scales(
    text: TextConfig,
    weights: Mapping[str, Tensor],
    embeds_tD: NDArray[np.floating],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CacheScales:
    """Returns scales from one prompt; one layer is in memory at a time.

    Args:
        text: the language model's shape.
        weights: by released name.
        embeds_tD: the prompt.
        progress: called with (layers done, total layers).
    """
    language = one_layer(text)
    graph = DecoderGraph(language, text, ReferenceAttention(text))
    empty = torch.zeros(1, text.num_kv_heads, len(embeds_tD), text.head_dim)
    length = torch.tensor(len(embeds_tD), dtype=torch.int32)
    state = CacheState(graph.cos_PK, graph.sin_PK, length[None] - 1, length)
    x_1tD = torch.from_numpy(embeds_tD.astype(np.float32))[None]
    keys, values = [], []
    for layer in range(text.num_layers):
        fill(language.get_submodule("model.layers.0"), weights, f"lang_model.model.layers.{layer}.")
        x_1tD, key_1GtK, value_1GtK = graph.layers[0](x_1tD, empty, empty, state, graph.attention)
        keys.append(key_1GtK[0].abs().amax(1))
        values.append(value_1GtK[0].abs().amax(1))
        progress(layer + 1, text.num_layers)
    return _scales(torch.stack(keys), torch.stack(values), _PROMPT_MARGIN, text)


def _scales(largest_keys: Tensor, largest_values: Tensor, margin: float, text: TextConfig) -> CacheScales:
    """Scales for the largest values, G * K in each of L layers; a channel of zeros gets 1."""
    shape = (text.num_layers, text.num_kv_heads, text.head_dim)
    keys_LGK, values_LGK = (largest.float().reshape(shape) for largest in (largest_keys, largest_values))
    pairs = torch.maximum(*keys_LGK.chunk(2, dim=-1))
    ranges = torch.cat((pairs, pairs), dim=-1), values_LGK
    return CacheScales(*(torch.where(x > 0, margin * x / _LARGEST, torch.ones(())) for x in ranges))
