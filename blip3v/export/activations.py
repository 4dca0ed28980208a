"""How large activations become in PyTorch fp16: an fp16 graph on a CPU computes in fp32 and hides an overflow."""

# Shapes: F frames, M video tokens, t tokens, D width, S cache capacity.

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blip3v.config import ModelConfig
from blip3v.export.decoder_graph import DecoderGraph, ReferenceAttention
from blip3v.export.precision import cast
from blip3v.export.video_encoder_graph import VideoEncoderGraph
from blip3v.model.blip3_video import Blip3Video
from blip3v.model.language import LanguageModel

__all__ = ["decoder_ranges", "video_encoder_ranges"]


def video_encoder_ranges(model: Blip3Video, pixels_FCHW: NDArray[np.float32]) -> dict[str, float]:
    """Largest absolute value in each layer of the video encoder for a clip; infinite where fp16 overflows."""
    reference = VideoEncoderGraph(model, scan=False)
    half = cast(reference, "fp16", keep=reference.fp32_parts)
    with _recorded(half, "video_encoder") as ranges, torch.inference_mode():
        half(torch.from_numpy(pixels_FCHW)[None].half())
    return ranges


def decoder_ranges(language: LanguageModel, config: ModelConfig, embeds_tD: NDArray[np.floating]) -> dict[str, float]:
    """Largest absolute value in each layer of the decoder for a prompt; infinite where fp16 overflows."""
    text, num_new = config.text, len(embeds_tD)
    half = cast(DecoderGraph(language, text, ReferenceAttention(text)), "fp16")
    shape = (1, text.num_kv_heads, num_new, text.head_dim)
    cache = [torch.zeros(shape, dtype=torch.float16) for _ in range(2 * text.num_layers)]
    lengths = torch.tensor([num_new - 1], dtype=torch.int32)
    embeds_1tD = torch.from_numpy(embeds_tD)[None].half()
    with _recorded(half, "decoder") as ranges, torch.inference_mode():
        half(embeds_1tD, lengths.long(), lengths, torch.tensor(num_new, dtype=torch.int32), cache)
    return ranges


@contextmanager
def _recorded(module: nn.Module, component: str) -> Iterator[dict[str, float]]:
    """Collects, by layer, the largest absolute value that goes into or out of any module of it."""
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
        # Not a number comes from infinite values, and must not lose a comparison.
        return math.inf if math.isnan(largest) else largest
    if isinstance(values, (tuple, list)):
        return max((_largest(value) for value in values), default=0.0)
    return 0.0
