"""Measures activations in PyTorch at a graph's precision: a CPU computes fp16 graphs in fp32 and hides overflows.

Values in fp32, inside an island, cannot overflow and do not count.
"""

# Shapes: F frames, M video tokens, t tokens, D width, S cache capacity.

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

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

__all__ = ["Range", "decoder_ranges", "empty_cache", "largest", "recorded", "video_encoder_ranges"]


@dataclass
class Range:
    """The largest absolute values that enter and leave a module; infinite on overflow."""

    inputs: float = 0.0
    outputs: float = 0.0

    @property
    def largest(self) -> float:
        """The larger of both."""
        return max(self.inputs, self.outputs)


def video_encoder_ranges(
    model: Blip3Video, pixels_FCHW: NDArray[np.float32], precision: GraphPrecision
) -> dict[str, float]:
    """Returns the largest absolute value in each layer of the video encoder for a clip; infinite on overflow."""
    module, dtype = cast(VideoEncoderGraph(model, scan=False), precision), TORCH_DTYPES[precision.io]
    with recorded(module, dtype) as ranges, torch.inference_mode():
        module(torch.from_numpy(pixels_FCHW)[None].to(dtype))
    layers: dict[str, float] = {}
    for name, found in ranges.items():
        layer = _layer(f"video_encoder.{name}" if name else "video_encoder")
        layers[layer] = max(layers.get(layer, 0.0), found.largest)
    return {layer: value for layer, value in layers.items() if value > 0}  # the others are in an island


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
    dtype = TORCH_DTYPES[precision.io]
    language = one_layer(text)
    graph = DecoderGraph(language, text, ReferenceAttention(text))
    cache, state = empty_cache(graph, text, len(embeds_tD), dtype)
    x_1tD = torch.from_numpy(embeds_tD.astype(precision.io))[None]
    ranges: dict[str, float] = {}
    for index in range(text.num_layers):
        fill(language.get_submodule("model.layers.0"), weights, f"lang_model.model.layers.{index}.")
        layer = cast(graph.layers[0], precision, f"layers.{index}.")
        with recorded(layer, dtype) as found:
            x_1tD = layer(x_1tD, *cache, state, graph.attention)[0]
        ranges[f"decoder.layers.{index}"] = max(part.largest for part in found.values())
    norm_dtype, head_dtype = (TORCH_DTYPES[precision.format_of([name])] for name in ("norm.weight", "lm_head"))
    norm_D = weights["lang_model.model.norm.weight"].to(norm_dtype)
    normed_D = F.rms_norm(x_1tD[0, -1].to(norm_dtype), norm_D.shape, norm_D, text.rms_norm_eps).to(head_dtype)
    logits_V = F.linear(normed_D, head_matrix(weights, text).to(head_dtype))
    return ranges | {"decoder.lm_head": largest((normed_D, logits_V), dtype)}


def empty_cache(
    graph: DecoderGraph, text: TextConfig, num_new: int, dtype: torch.dtype
) -> tuple[list[Tensor], CacheState]:
    """Returns keys and values of one layer, and the state, for a prompt of ``num_new`` tokens at its start."""
    cache = [torch.zeros(1, text.num_kv_heads, num_new, text.head_dim, dtype=dtype) for _ in range(2)]
    length_B = torch.tensor([num_new - 1], dtype=torch.int32)
    tables = (graph.cos_PK.to(dtype), graph.sin_PK.to(dtype))
    return cache, CacheState(*tables, length_B, torch.tensor(num_new, dtype=torch.int32))


@contextmanager
def recorded(module: nn.Module, dtype: torch.dtype | None = None) -> Iterator[dict[str, Range]]:
    """Collects the range of each module in ``module``, itself included, by name while they run.

    Args:
        module: in PyTorch.
        dtype: of the values that count, besides those that are not finite; None: all.
    """
    ranges: dict[str, Range] = {}
    hooks = []
    for name, part in module.named_modules():

        def record(_: nn.Module, inputs: object, outputs: object, name: str = name) -> None:
            found = ranges.setdefault(name, Range())
            found.inputs = max(found.inputs, largest(inputs, dtype))
            found.outputs = max(found.outputs, largest(outputs, dtype))

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


def largest(values: object, dtype: torch.dtype | None = None) -> float:
    """Returns the largest absolute value in a tensor, or in tuples and lists of them; infinite if one is not finite.

    Args:
        values: others than tensors, tuples and lists count as 0.
        dtype: of the tensors that count, besides those that are not finite; None: all.
    """
    if isinstance(values, (tuple, list)):
        return max((largest(value, dtype) for value in values), default=0.0)
    if not isinstance(values, Tensor) or not values.is_floating_point() or not values.numel():
        return 0.0
    found = float(values.abs().max())
    if not math.isfinite(found):  # NaN comes from infinite values, and must not lose a comparison
        return math.inf
    return found if dtype in (None, values.dtype) else 0.0
