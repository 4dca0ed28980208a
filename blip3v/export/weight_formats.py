"""How a weight becomes stored tensors: the stage between "weights by name" and "stored initializers".

    graph as traced                          graph in a format of several tensors (int8 values and scales, say)
    x, layers.0.o_proj.weight                layers.0.o_proj.weight.values, layers.0.o_proj.weight.scales
    \\-> MatMul                                \\-> DequantizeLinear -> MatMul (x, .)

A format says what it stores for a shape, without the weight; makes those tensors from a weight when the graph is
written; and rewrites the graph so that they replace the weight. A floating-point dtype is the simple case: one tensor
under the weight's own name, and nothing to rewrite. Each format is made for one weight, by its factory in
``format_table.WEIGHT_FORMATS``. Not here: the formats in integers (``quantized_formats.py``), which weight has which
format (``bundle/precision.py``), and where weights come from (``lazy_initializers.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.calibration.plan import Plan
from blip3v.errors import ExportError
from blip3v.model.weight_values import check_values, largest_value

__all__ = [
    "FLOAT_FORMATS",
    "HALF",
    "FloatFormat",
    "StoredTensor",
    "Weight",
    "WeightFormat",
    "WidenedFormat",
    "check_finite",
    "unrepresentable",
]


HALF = ".half"  # suffix of what ``WidenedFormat`` stores


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that a format stores for a weight."""

    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its size; values smaller than a byte are packed."""
        return math.ceil(math.prod(self.shape) * self.dtype.itemsize)


@dataclass(frozen=True)
class Weight:
    """The weight that a format is made for."""

    layer: str  # as ``linear_layers`` names the layer
    inputs_first: bool  # whether the graph has it as (K, N), for ``x @ w``, or as (N, K), for ``Gemm`` with ``transB``
    group_size: int | None  # of the graph's precision
    plan: Plan | None  # None: the precision needs none
    floats: ir.DataType = ir.DataType.FLOAT  # of scales, and of what enters and leaves the product
    contrib: bool = True  # whether the graph may have operators of ONNX Runtime's own


class WeightFormat(Protocol):
    """How the weight of a matrix product is stored. Other parameters, such as norms and biases, stay floats."""

    def layout(self, shape: tuple[int, ...]) -> dict[str, StoredTensor]:
        """Returns what is stored for a weight.

        Args:
            shape: the weight's in the graph, (K, N) or (N, K).

        Returns:
            The tensors by suffix; a tensor's name is the weight's name and the suffix. With only the empty suffix, the
            weight keeps its place in the graph and ``rewrite`` is not called.
        """
        ...

    def store(self, weight: Tensor) -> Mapping[str, NDArray[Any]]:
        """Returns the tensors of ``layout`` for ``weight``, which is fp32 and in the shape given to ``layout``."""
        ...

    def rewrite(self, graph: ir.Graph, weight: ir.Value, stored: Mapping[str, ir.Value]) -> None:
        """Replaces every use of ``weight`` with ``stored``, initializers by suffix."""
        ...


class FloatFormat:
    """A floating-point dtype: a plain cast."""

    def __init__(self, dtype: ir.DataType, torch_dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._torch_dtype = torch_dtype

    def layout(self, shape: tuple[int, ...]) -> dict[str, StoredTensor]:
        """See ``WeightFormat``."""
        return {"": StoredTensor(self.dtype, shape)}

    def store(self, weight: Tensor) -> Mapping[str, NDArray[Any]]:
        """See ``WeightFormat``."""
        return {"": weight.to(self._torch_dtype).contiguous().numpy()}

    def rewrite(self, graph: ir.Graph, weight: ir.Value, stored: Mapping[str, ir.Value]) -> None:
        """Does nothing: the weight keeps its place."""


class WidenedFormat(FloatFormat):
    """float16 in the file, float32 in the graph: an engine widens it once, when the graph opens."""

    def __init__(self) -> None:
        super().__init__(ir.DataType.FLOAT16, torch.float16)

    def layout(self, shape: tuple[int, ...]) -> dict[str, StoredTensor]:
        """See ``WeightFormat``."""
        return {HALF: StoredTensor(self.dtype, shape)}

    def store(self, weight: Tensor) -> Mapping[str, NDArray[Any]]:
        """See ``WeightFormat``."""
        return {HALF: super().store(weight)[""]}

    def rewrite(self, graph: ir.Graph, weight: ir.Value, stored: Mapping[str, ir.Value]) -> None:
        """Widens the weight in front of everything that uses it."""
        node = ir.node("Cast", [stored[HALF]], attributes={"to": ir.DataType.FLOAT}, name=f"{weight.name}/Cast")
        wide = node.outputs[0]
        wide.name, wide.shape, wide.dtype = f"{weight.name}.wide", weight.shape, ir.DataType.FLOAT
        graph.insert_before(graph[0], node)
        ir.convenience.replace_all_uses_with(weight, wide)


FLOAT_FORMATS = {
    "float32": FloatFormat(ir.DataType.FLOAT, torch.float32),
    "float16": FloatFormat(ir.DataType.FLOAT16, torch.float16),
}


def check_finite(name: str, weight: Tensor, stored: Mapping[str, NDArray[Any]]) -> None:
    """Raises unless all stored floats are finite.

    Raises:
        ArtifactError: the weight itself is not.
        ExportError: the weight holds values that its format cannot represent.
    """
    for array in stored.values():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            check_values(name, weight, where="the source")
            raise unrepresentable(name, largest_value(weight), array.dtype.name)


def unrepresentable(name: str, largest: float, dtype: str) -> ExportError:
    """Returns the error for a weight whose values are finite, but not in ``dtype``."""
    return ExportError(
        f"the weight {name} holds values that {dtype} cannot represent; its largest is {largest:g}",
        remedy="fix the weights" if dtype == "float32" else "export with `precision='fp32'`, or fix the weights",
    )
