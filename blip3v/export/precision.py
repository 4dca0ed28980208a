"""Precision as a property of the weights: every tensor of the graph gets its dtype here, before the export.

fp16 keeps fp32 islands: statistics of the norms and softmax (inside the operators), the logits' bias, sinusoid
frequencies (buffers), and the modules that a graph names. No autocast, no flags of an engine.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from blip3v.bundle.manifest import Precision

__all__ = ["TORCH_DTYPES", "cast"]

TORCH_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}

M = TypeVar("M", bound=nn.Module)


def cast(module: M, precision: Precision, *, keep: Iterable[nn.Module] = ()) -> M:
    """A copy of ``module`` in ``precision``; weights that keep their dtype are shared, buffers stay as they are.

    Args:
        module: an fp32 module.
        precision: of the copy's weights.
        keep: modules inside it that stay fp32.
    """
    dtype = TORCH_DTYPES[precision]
    kept = {id(parameter) for part in keep for parameter in part.parameters()}
    # deepcopy asks this table before it copies a tensor.
    memo: dict[int, Tensor] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        same = id(parameter) in kept or parameter.dtype == dtype
        memo[id(parameter)] = parameter if same else nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    return copy.deepcopy(module, memo).eval()
