"""Measures activations in PyTorch at a graph's precision: a CPU computes fp16 graphs in fp32 and hides overflows."""

# Shapes: F frames, M video tokens, t tokens, D width, S cache capacity.

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from blip3v.bundle.precision import GraphPrecision
from blip3v.config import TextConfig
from blip3v.export.decoder_graph import CacheState, DecoderGraph, ReferenceAttention
from blip3v.export.precision import TORCH_DTYPES, cast
from blip3v.export.video_encoder_graph import VideoEncoderGraph
from blip3v.model.blip3_video import Blip3Video
from blip3v.model.language import head_matrix
from blip3v.model.layerwise import one_layer
from blip3v.model.weights import fill

__all__ = ["decoder_ranges", "video_encoder_ranges"]


def video_encoder_ranges(
    model: Blip3Video, pixels_FCHW: NDArray[np.float32], precision: GraphPrecision
) -> dict[str, float]:
    """Returns the largest absolute value in each layer of the video encoder for a clip; infinite on overflow."""
    module = cast(VideoEncoderGraph(model, scan=False), precision)
    with _recorded(module, "video_encoder") as ranges, torch.inference_mode():
        module(torch.from_numpy(pixels_FCHW)[None].to(TORCH_DTYPES[precision.io]))
    return ranges


@torch.inference_mode()
def decoder_ranges(
    text: TextConfig, weights: Mapping[str, Tensor], embeds_tD: NDArray[np.floating], precision: GraphPrecision
) -> dict[str, float]:
    """Returns the largest absolute value in each layer of the decoder for a prompt; infinite on overflow.

    Args:
        text: the language model's shape.
        weights: by released name; read one layer at a time.
        embeds_tD: the prompt.
        precision: the graph's.
    """
    num_new, dtype = len(embeds_tD), TORCH_DTYPES[precision.io]
    language = one_layer(text)
    graph = DecoderGraph(language, text, ReferenceAttention(text))
    cache = [torch.zeros(1, text.num_kv_heads, num_new, text.head_dim, dtype=dtype) for _ in range(2)]
    length_B = torch.tensor([num_new - 1], dtype=torch.int32)
    tables = (graph.cos_PK.to(dtype), graph.sin_PK.to(dtype))
    state = CacheState(length_B, torch.tensor(num_new, dtype=torch.int32), *tables)
    x_1tD = torch.from_numpy(embeds_tD.astype(precision.io))[None]
    ranges: dict[str, float] = {}
    for index in range(text.num_layers):
        fill(language.get_submodule("model.layers.0"), weights, f"lang_model.model.layers.{index}.")
        layer = cast(graph.layers[0], precision)
        with _recorded(layer, f"decoder.layers.{index}") as found:
            x_1tD = layer(x_1tD, *cache, state, graph.attention)[0]
        ranges |= {f"decoder.layers.{index}": max(found.values())}
    norm_D = weights["lang_model.model.norm.weight"].to(dtype)
    normed_D = F.rms_norm(x_1tD[0, -1], norm_D.shape, norm_D, text.rms_norm_eps)
    logits_V = F.linear(normed_D, head_matrix(weights, text).to(dtype))
    return ranges | {"decoder.lm_head": _largest((normed_D, logits_V))}


@contextmanager
def _recorded(module: nn.Module, component: str) -> Iterator[dict[str, float]]:
    """Collects, by layer, the largest absolute value that enters or leaves any of its modules."""
    ranges: dict[str, float] = {}
    hooks = []
    for name, part in module.named_modules():
        layer = _layer(f"{component}.{name}" if name else component)

        def record(_: nn.Module, inputs: object, outputs: object, layer: str = layer) -> None:
            ranges[layer] = max(ranges.get(layer, 0.0), _largest((inputs, outputs)))

        hooks.append(part.register_forward_hook(record))
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


def _layer(name: str) -> str:
    """``decoder.layers.3.qkv_proj`` belongs to ``decoder.layers.3``."""
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: numbered + 1])


def _largest(values: object) -> float:
    if isinstance(values, Tensor):
        if not values.is_floating_point() or not values.numel():
            return 0.0
        largest = float(values.abs().max())
        # NaN comes from infinite values, and must not lose a comparison.
        return math.inf if math.isnan(largest) else largest
    if isinstance(values, (tuple, list)):
        return max((_largest(value) for value in values), default=0.0)
    return 0.0
