"""Weights of a graph that is traced without them: where each comes from, and how it gets into the graph's file.

    model without weights        placeholder parameters           graph                       file
    meta parameters        ->    one number that stands    ->     initializers that load  ->  written one by one
                                 for a whole matrix               when they are written

The number is NaN, so that a constant that torch computed from a weight is noticed: it is not finite and not one of the
weights. Not here: tracing (``to_onnx.py``), how a weight is stored (``weight_formats.py``), and what reads a checkpoint
(``model/weights.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blip3v.bundle.precision import GraphPrecision
from blip3v.calibration.plan import Plan
from blip3v.errors import ExportError
from blip3v.export.format_table import WEIGHT_FORMATS
from blip3v.export.passes import TRANSPOSED
from blip3v.export.precision import recast
from blip3v.export.weight_formats import (
    FLOAT_FORMATS,
    StoredTensor,
    Weight,
    WeightFormat,
    check_finite,
)

__all__ = ["Loader", "WeightSource", "set_lazy_initializers", "with_placeholders"]

Loader = Callable[[], Tensor]  # returns a weight, read again at each call

_MERGED_ELEMENTS = 2**16  # far above what torch considers small
_FLOAT_FORMAT_OF = {form.dtype: form for form in FLOAT_FORMATS.values()}
_FLOATS = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
_PRODUCTS = (("MatMul", 1), ("Gemm", 1))  # operators, and the index of their input that is a weight matrix


@dataclass(frozen=True)
class WeightSource:
    """Where a weight of a graph comes from."""

    load: Loader  # fp32
    layer: str  # released name of its module
    names: tuple[str, ...]  # every name of the traced module's parameter


def with_placeholders(module: nn.Module, precision: GraphPrecision) -> nn.Module:
    """Returns a copy whose parameters have dtype and shape but take no memory; computed ones keep their values.

    Args:
        module: has parameters on the meta device; not modified.
        precision: the copy's.
    """
    generator = torch.Generator().manual_seed(0)

    def convert(parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
        return _placeholder(parameter.shape, dtype, generator) if parameter.is_meta else parameter.detach().to(dtype)

    return recast(module, precision, convert)


def _placeholder(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """NaN everywhere. Torch merges small constants with equal bits, so small placeholders get bits of their own."""
    if shape.numel() > _MERGED_ELEMENTS:
        return torch.full((), torch.nan, dtype=dtype).expand(shape)
    payload_bits, integer = (23, torch.int32) if dtype == torch.float32 else (10, torch.int16)
    payload = torch.randint(1, 2**payload_bits, shape, generator=generator)
    exponent = torch.tensor(torch.inf, dtype=dtype).view(integer)
    return (payload.to(integer) | exponent).view(dtype)


def set_lazy_initializers(
    model: ir.Model,
    sources: Mapping[str, WeightSource],
    precision: GraphPrecision,
    plan: Plan | None = None,
    *,
    contrib: bool = True,
) -> None:
    """Gives every weight of the graph an initializer that loads it when the graph is written.

    Args:
        model: traced from a module with placeholder parameters, with its matrices named after their modules.
        sources: by the name of the module's parameter; the names of one parameter share a source.
        precision: gives the format of each matrix of a matrix product; other weights are stored as they were traced.
        plan: rounds the weights that are stored in integers; None: there are none.
        contrib: whether the graph may have operators of ONNX Runtime's own.

    Raises:
        ExportError: a weight is not in the graph, or a constant of the graph was computed from one; or an island of
            ``precision`` with node names matches none.
    """
    missing = {source.names: name for name, source in sources.items()}
    products: list[str] = []
    converted = _Converted()
    floats = _FLOATS[precision.io]
    for name, value in list(model.graph.initializers.items()):
        constant = value.const_value
        assert constant is not None, "an initializer has a value"
        if name in sources:
            source = sources[name]
            weight_format: WeightFormat = _FLOAT_FORMAT_OF[constant.dtype]
            if _is_matrix(value):
                nodes = [str(node.name) for node, _ in value.uses()]
                products += nodes
                transposed = TRANSPOSED in value.metadata_props
                weight = Weight(source.layer, transposed, precision.group_size, plan, floats, contrib)
                weight_format = WEIGHT_FORMATS[precision.format_of(source.names, nodes)](weight)
            _store_as(model.graph, value, source.load, weight_format, converted)
            missing.pop(source.names, None)
        elif constant.dtype in _FLOAT_FORMAT_OF and not np.isfinite(constant.numpy()).all():
            raise ExportError(
                f"torch computed the constant {name} from a weight before it was loaded; report this as a bug"
            )
    if missing:
        raise ExportError(
            f"the weights {', '.join(sorted(missing.values())[:4])} are not in the graph; report this as a bug"
        )
    _check_patterns(precision, products)


def _check_patterns(precision: GraphPrecision, products: list[str]) -> None:
    for pattern in (pattern for island in precision.islands for pattern in island.nodes):
        if not any(fnmatchcase(name, pattern) for name in products):
            raise ExportError(
                f"the pattern {pattern!r} matches no matrix product of this graph; their names are like "
                f"{', '.join(products[:2])} and {', '.join(products[-1:])}"
            )


def _is_matrix(value: ir.Value) -> bool:
    return all((node.op_type, index) in _PRODUCTS for node, index in value.uses())


def _store_as(
    graph: ir.Graph, value: ir.Value, load: Loader, weight_format: WeightFormat, converted: _Converted
) -> None:
    """Replaces a weight with what the format stores for it."""
    name, constant = str(value.name), value.const_value
    assert constant is not None, "an initializer has a value"
    shape = tuple(int(size) for size in constant.shape)  # type: ignore[arg-type]  # all are numbers
    transposed = value.metadata_props.pop(TRANSPOSED, None) is not None
    convert = functools.partial(_convert, name, load, weight_format, shape, transposed)

    def lazy(suffix: str, kind: StoredTensor) -> ir.TensorProtocol:
        def read() -> ir.TensorProtocol:
            return ir.tensor(converted.pop(name, suffix, convert), dtype=kind.dtype, name=name + suffix)

        return ir.LazyTensor(read, dtype=kind.dtype, shape=ir.Shape(kind.shape), name=name + suffix)

    layout = weight_format.layout(shape)
    if set(layout) == {""}:
        value.const_value = lazy("", layout[""])
        return
    stored = {suffix: ir.val(name + suffix, const_value=lazy(suffix, kind)) for suffix, kind in layout.items()}
    for part in stored.values():
        graph.register_initializer(part)
    weight_format.rewrite(graph, value, stored)
    assert not value.uses(), f"{name} is stored in several tensors and still used itself"
    del graph.initializers[name]


def _convert(
    name: str, load: Loader, weight_format: WeightFormat, shape: tuple[int, ...], transposed: bool
) -> Mapping[str, NDArray[Any]]:
    weight = load()
    weight = weight.T if transposed else weight
    if tuple(weight.shape) != shape:
        raise ExportError(f"the weight {name} has shape {tuple(weight.shape)}; the graph expects {shape}")
    stored = weight_format.store(weight)
    check_finite(name, weight, stored)
    return stored


class _Converted:
    """The tensors of one converted weight that have not been written yet.

    A weight is read once for all its tensors that are written in a row, and is freed with the last of them, or before
    another is read: two are never in memory together.
    """

    def __init__(self) -> None:
        self._name = ""
        self._unwritten: dict[str, NDArray[Any]] = {}

    def pop(self, name: str, suffix: str, convert: Callable[[], Mapping[str, NDArray[Any]]]) -> NDArray[Any]:
        """Returns the tensor ``suffix`` of the weight ``name`` and forgets it."""
        if name != self._name or suffix not in self._unwritten:
            self._unwritten.clear()
            self._name, self._unwritten = name, dict(convert())
        return self._unwritten.pop(suffix)
