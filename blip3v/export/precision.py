"""A precision's spec applied to modules: every parameter gets its dtype here, before the export.

fp16 keeps fp32 islands: statistics of the norms and softmax (inside the operators), sinusoid frequencies (buffers), and
the parameters that the spec names. No autocast, no flags of an engine. Weights whose stored format is not a
floating-point dtype are traced in the dtype of the graph's inputs; ``weight_formats.py`` changes them afterwards.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from blip3v.bundle.precision import GraphPrecision

__all__ = ["TORCH_DTYPES", "cast", "parameter_formats", "recast"]

TORCH_DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}

M = TypeVar("M", bound=nn.Module)


def parameter_formats(module: nn.Module, precision: GraphPrecision) -> dict[str, str]:
    """The format of each parameter of ``module``, under each of its names."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {name: precision.format_of(of_one) for of_one in names.values() for name in of_one}


def cast(module: M, precision: GraphPrecision) -> M:
    """A copy of ``module``, which is fp32, in ``precision``; weights that keep their dtype are shared."""
    return recast(module, precision, lambda parameter, dtype: parameter.detach().to(dtype))


def recast(module: M, precision: GraphPrecision, convert: Callable[[nn.Parameter, torch.dtype], Tensor]) -> M:
    """A copy of ``module`` whose every parameter is what ``convert`` makes of it; buffers stay as they are.

    Args:
        module: it stays as it is.
        precision: of the copy.
        convert: called with a parameter and the dtype that it is to have.
    """
    formats = parameter_formats(module, precision)
    # deepcopy asks this table before it copies a tensor.
    memo: dict[int, Tensor] = {id(buffer): buffer for buffer in module.buffers()}
    for name, parameter in module.named_parameters():
        dtype = TORCH_DTYPES.get(formats[name], TORCH_DTYPES[precision.io])
        memo[id(parameter)] = nn.Parameter(convert(parameter, dtype), requires_grad=False)
    return copy.deepcopy(module, memo).eval()
