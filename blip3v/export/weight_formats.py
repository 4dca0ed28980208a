"""How a weight becomes stored tensors: the stage between "weights by name" and "stored initializers".

    graph as traced                          graph in a format of several tensors (int8 values and scales, say)
    x, layers.0.o_proj.weight                layers.0.o_proj.weight.values, layers.0.o_proj.weight.scales
    \\-> MatMul                                \\-> DequantizeLinear -> MatMul (x, .)

A format says what it stores for a shape, without the weight; makes those tensors from one weight, when the graph is
written; and rewrites the graph so that they take the weight's place. A floating-point dtype is the plain case: one
tensor with the weight's own name, and nothing to rewrite. A new format is a class and its entry in ``WEIGHT_FORMATS``,
whose keys are the words of ``GraphPrecision.weights`` and ``Island.weights``. What is not here: which weight has which
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

from blip3v.errors import ExportError

__all__ = ["FLOAT_FORMATS", "WEIGHT_FORMATS", "FloatFormat", "StoredTensor", "WeightFormat"]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that a format stores for a weight."""

    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its size; values of less than a byte share bytes."""
        return math.ceil(math.prod(self.shape) * self.dtype.itemsize)


class WeightFormat(Protocol):
    """How the weights of matrix products are stored. Other parameters, such as norms and biases, stay floats."""

    def layout(self, shape: tuple[int, ...]) -> dict[str, StoredTensor]:
        """What is stored for a weight.

        Args:
            shape: of the weight, (K, N) for ``x @ w`` and (N, K) for ``Gemm`` with ``transB``.

        Returns:
            By suffix, which behind the weight's name makes the tensor's. The empty suffix alone: the weight keeps its
            place in the graph, and ``rewrite`` is not called.
        """
        ...

    def store(self, weight: Tensor) -> Mapping[str, NDArray[Any]]:
        """The tensors of ``layout`` for a weight, fp32 in the shape that ``layout`` was asked about."""
        ...

    def rewrite(self, graph: ir.Graph, weight: ir.Value, stored: Mapping[str, ir.Value]) -> None:
        """Makes everything that uses ``weight`` use ``stored`` instead, which are initializers by suffix."""
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
        """Nothing: the weight keeps its place."""


FLOAT_FORMATS = {
    "float32": FloatFormat(ir.DataType.FLOAT, torch.float32),
    "float16": FloatFormat(ir.DataType.FLOAT16, torch.float16),
}
WEIGHT_FORMATS: dict[str, WeightFormat] = {**FLOAT_FORMATS}


def check_finite(name: str, weight: Tensor, stored: Mapping[str, NDArray[Any]]) -> None:
    """Raises unless all floats that are stored are finite.

    Raises:
        ExportError: the weight holds values that its format cannot.
    """
    for array in stored.values():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ExportError(
                f"the weight {name} holds values that {array.dtype.name} cannot; its largest is "
                f"{float(weight.abs().max()):g}; export with --precision fp32, or correct the weights"
            )
