"""Weights of a graph that is traced without them: where each comes from, and how it gets into the graph's file.

    model without weights        placeholder parameters           graph                       file
    meta parameters        ->    one number that stands    ->     initializers that load  ->  written one by one
                                 for a whole matrix               when they are written

The number is not a number (NaN): a constant that torch computed from a weight shows, since it is none of the weights
and not finite. What is not here: tracing (``to_onnx.py``) and what reads a checkpoint (``model/weights.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from blip3v.bundle.manifest import Precision
from blip3v.errors import ExportError
from blip3v.export.passes import TRANSPOSED
from blip3v.export.precision import recast

__all__ = ["Loader", "set_lazy_initializers", "with_placeholders"]

Loader = Callable[[], Tensor]  # gives a weight anew at each call

_MERGED_ELEMENTS = 2**16  # many more than what torch takes for small
_TORCH_OF = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}


def with_placeholders(module: nn.Module, precision: Precision, *, keep: Iterable[Tensor] = ()) -> nn.Module:
    """A copy whose parameters have dtype and shape and take no memory; computed ones keep their values.

    Args:
        module: with parameters on the meta device; it stays as it is.
        precision: of the copy's parameters.
        keep: parameters of it that stay fp32.
    """
    generator = torch.Generator().manual_seed(0)

    def convert(parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
        return _placeholder(parameter.shape, dtype, generator) if parameter.is_meta else parameter.detach().to(dtype)

    return recast(module, precision, keep, convert)


def _placeholder(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """NaN everywhere. Torch merges small constants of equal bits, so those carry bits of their own."""
    if shape.numel() > _MERGED_ELEMENTS:
        return torch.full((), torch.nan, dtype=dtype).expand(shape)
    payload_bits, integer = (23, torch.int32) if dtype == torch.float32 else (10, torch.int16)
    payload = torch.randint(1, 2**payload_bits, shape, generator=generator)
    exponent = torch.tensor(torch.inf, dtype=dtype).view(integer)
    return (payload.to(integer) | exponent).view(dtype)


def set_lazy_initializers(model: ir.Model, loaders: Mapping[str, Loader]) -> None:
    """Gives every weight of the graph its loader, to be called when the graph is written.

    Args:
        model: traced from a module with placeholder parameters, its matrices named after their modules.
        loaders: fp32 weights by the name of the module's parameter; one with several names has one loader.

    Raises:
        ExportError: a weight is not in the graph, or a constant of the graph was computed from one.
    """
    left = {loader: name for name, loader in loaders.items()}
    for name, value in model.graph.initializers.items():
        constant = value.const_value
        assert constant is not None, "an initializer has a value"
        if name in loaders:
            transposed = value.metadata_props.pop(TRANSPOSED, None) is not None
            value.const_value = _lazy(name, loaders[name], constant.dtype, constant.shape, transposed=transposed)
            left.pop(loaders[name], None)
        elif constant.dtype in _TORCH_OF and not np.isfinite(constant.numpy()).all():
            raise ExportError(
                f"torch computed the constant {name} from a weight before it was there; report this as a bug"
            )
    if left:
        raise ExportError(
            f"the weights {', '.join(sorted(left.values())[:4])} are not in the graph; report this as a bug"
        )


def _lazy(name: str, load: Loader, dtype: ir.DataType, shape: Iterable[Any], *, transposed: bool) -> ir.TensorProtocol:
    sizes = tuple(map(int, shape))

    def read() -> ir.TensorProtocol:
        weight = load()
        weight = weight.T if transposed else weight
        if tuple(weight.shape) != sizes:
            raise ExportError(f"the weight {name} has shape {tuple(weight.shape)}; the graph expects {sizes}")
        stored = weight.to(_TORCH_OF[dtype]).contiguous().numpy()
        if not np.isfinite(stored).all():
            raise ExportError(
                f"the weight {name} holds values that {dtype.name.lower()} cannot; its largest is "
                f"{float(weight.abs().max()):g}; export in fp32, or correct the weights"
            )
        return ir.tensor(stored, name=name)

    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(sizes), name=name)
