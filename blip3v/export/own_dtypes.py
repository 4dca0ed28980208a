"""Lets modules of different dtypes follow one another: each computes in the dtype of its own weights.

    fc1 (fp16) -> fp16 -> [Cast] -> fc2 (an fp32 island) -> fp32 -> [Cast] -> residual stream (fp16)

The vision tower is the transformers library's and a temporal encoder may be another package's, so the casts are hooks
on the modules and not lines in their code. A cast to the dtype that a value has already is none: a graph of one dtype
is traced as if nothing were here. Not here: what the decoder computes between its modules (``decoder_graph.py``), and
which weights have which dtype (``precision.py``, ``islands.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionEmbeddings

from blip3v.model.resampler import PerceiverResampler
from blip3v.model.temporal.base import TemporalEncoder

__all__ = ["compute_in_own_dtypes"]


def compute_in_own_dtypes(module: nn.Module) -> None:
    """Adds the casts to ``module``, whose weights have the dtypes that they keep; it is modified."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.LayerNorm, nn.Conv2d, TemporalEncoder)):
            parameter = next(part.parameters(), None)
            if parameter is not None:
                part.register_forward_pre_hook(_cast_inputs(parameter.dtype))
        for writer, dtype in _writers(part):
            writer.register_forward_hook(_cast_output(dtype))


def _writers(part: nn.Module) -> list[tuple[nn.Module, torch.dtype]]:
    """Returns the modules in ``part`` that write into a residual stream, with the dtype of the stream."""
    found: list[nn.Module] = []
    dtype = torch.float32
    if isinstance(part, SiglipVisionEmbeddings):
        found, dtype = [part], part.get_parameter("position_embedding.weight").dtype
    elif isinstance(part, SiglipEncoderLayer):
        found = [part.get_submodule("self_attn.out_proj"), part.get_submodule("mlp.fc2")]
        dtype = part.get_parameter("layer_norm1.weight").dtype
    elif isinstance(part, PerceiverResampler) and part.resamples:
        found = list(chain.from_iterable(cast(nn.ModuleList, layer) for layer in part.layers))
        dtype = part.latents.dtype
    return [(writer, dtype) for writer in found]


def _cast_inputs(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    return hook


def _cast_output(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.to(dtype)

    return hook
