"""The formats of weights by name: the values that ``GraphPrecision.weights`` and ``Island.weights`` can have.

A new format is a class that keeps the protocol ``WeightFormat``, and its factory here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from blip3v.export.quantized_formats import StaticInt8, block_format
from blip3v.export.weight_formats import FLOAT_FORMATS, Weight, WeightFormat, WidenedFormat

__all__ = ["WEIGHT_FORMATS", "stored_bytes"]

WEIGHT_FORMATS: dict[str, Callable[[Weight], WeightFormat]] = {
    "float32": lambda weight: FLOAT_FORMATS["float32"],
    "float16": lambda weight: FLOAT_FORMATS["float16"],
    "float16-stored": lambda weight: WidenedFormat(),
    "int8": StaticInt8,
    "int8-block": lambda weight: block_format(weight, 8),
    "int4-block": lambda weight: block_format(weight, 4),
}


def stored_bytes(name: str, shape_NK: tuple[int, ...], group_size: int | None) -> int:
    """Returns the bytes that the format ``name`` takes for a weight (N, K)."""
    weight_format = WEIGHT_FORMATS[name](Weight("", False, group_size, None))
    return math.ceil(sum(tensor.num_bytes for tensor in weight_format.layout(shape_NK).values()))
