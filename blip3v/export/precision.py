"""Precision as a property of the weights: every tensor of the graph gets its dtype here, before the export.

fp16 keeps fp32 islands: statistics of the norms and softmax (inside the operators), the logits' bias, sinusoid
frequencies (buffers), and the modules that a graph names. No autocast, no flags of an engine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from blip3v.bundle.manifest import Precision

__all__ = ["TORCH_DTYPES", "cast", "recast"]

TORCH_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}

M = TypeVar("M", bound=nn.Module)


def cast(module: M, precision: Precision, *, keep: Iterable[Tensor] = ()) -> M:
    """A copy of ``module`` in ``precision``; weights that keep their dtype are shared.

    Args:
        module: an fp32 module.
        precision: of the copy's weights.
        keep: parameters of it that stay fp32.
    """
    return recast(module, precision, keep, lambda parameter, dtype: parameter.detach().to(dtype))


def recast(
    module: M, precision: Precision, keep: Iterable[Tensor], convert: Callable[[nn.Parameter, torch.dtype], Tensor]
) -> M:
    """A copy of ``module`` whose every parameter is what ``convert`` makes of it; buffers stay as they are.

    Args:
        module: it stays as it is.
        precision: of the copy's parameters.
        keep: parameters that are fp32 in every precision.
        convert: called with a parameter and the dtype that it is to have.
    """
    kept = {id(parameter) for parameter in keep}
    # deepcopy asks this table before it copies a tensor.
    memo: dict[int, Tensor] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        dtype = torch.float32 if id(parameter) in kept else TORCH_DTYPES[precision]
        memo[id(parameter)] = nn.Parameter(convert(parameter, dtype), requires_grad=False)
    return copy.deepcopy(module, memo).eval()
