"""Applies a precision's spec to modules: every parameter gets its dtype here, before the export.

fp16 keeps fp32 islands: norm and softmax statistics (inside the operators), sinusoid frequencies (buffers), and the
parameters that the spec names. No autocast, no engine flags: a module computes in the dtype of its weights
(``own_dtypes.py``). Weights whose stored format is not a floating-point dtype
are traced in the dtype of the graph's inputs; ``weight_formats.py`` converts them afterwards.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from blip3v.bundle.precision import GraphPrecision
from blip3v.export.own_dtypes import compute_in_own_dtypes

__all__ = ["TORCH_DTYPES", "cast", "parameter_formats", "recast"]

TORCH_DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}

M = TypeVar("M", bound=nn.Module)


def parameter_formats(module: nn.Module, precision: GraphPrecision, prefix: str = "") -> dict[str, str]:
    """Returns the format of each parameter of ``module``, under each of its names.

    Args:
        module: the graph's, or a part of it.
        precision: the graph's.
        prefix: what precedes the module's own names in the graph's, including the dot.
    """
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    formats: dict[str, str] = {}
    for aliases in names.values():
        form = precision.format_of([prefix + name for name in aliases])
        formats |= dict.fromkeys(aliases, form)
    return formats


def cast(module: M, precision: GraphPrecision, prefix: str = "") -> M:
    """Returns a copy of the fp32 ``module`` in ``precision``; weights that keep their dtype are shared.

    Arguments as for ``parameter_formats``.
    """
    return recast(module, precision, lambda parameter, dtype: parameter.detach().to(dtype), prefix)


def recast(
    module: M, precision: GraphPrecision, convert: Callable[[nn.Parameter, torch.dtype], Tensor], prefix: str = ""
) -> M:
    """Returns a copy of ``module`` with every parameter replaced by what ``convert`` returns; buffers are unchanged.

    Args:
        module: not modified.
        precision: the copy's.
        convert: called with a parameter and its new dtype.
        prefix: as for ``parameter_formats``.
    """
    formats = parameter_formats(module, precision, prefix)
    # deepcopy looks a tensor up here before copying it.
    memo: dict[int, Tensor] = {id(buffer): buffer for buffer in module.buffers()}
    for name, parameter in module.named_parameters():
        dtype = TORCH_DTYPES.get(formats[name], TORCH_DTYPES[precision.io])
        memo[id(parameter)] = nn.Parameter(convert(parameter, dtype), requires_grad=False)
    result = copy.deepcopy(module, memo).eval()
    compute_in_own_dtypes(result)
    return result
