"""What an export needs to know to write a quantised graph: exact new weights first, then integers."""

# Shapes: N outputs, K inputs, D width.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from blip3v.calibration.quantized import QuantizedMatrix

__all__ = ["Plan", "RangeRule", "RecipeOptions", "Rounding"]

Rounding = Literal["nearest", "gptq"]
RangeRule = Literal["minmax", "percentile", "entropy", "mse"]


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The steps of the recipe, each of which can be left out to see its worth."""

    smoothing: bool = True  # move outliers of activations into weights, by a factor for each channel
    rotation: bool = False  # of the decoder's residual stream
    rounding: Rounding = "gptq"  # of block-wise weights
    ranges: RangeRule = "mse"  # how a static range of activations is chosen


class Plan(Protocol):
    """The recipe, applied to one model."""

    weights: Mapping[str, Tensor]  # by released name; the same function as the source's in exact arithmetic
    input_rotation_DD: Tensor | None  # fp32, multiplies the decoder's inputs from the right; None: no rotation

    def activation_scale(self, layer: str) -> float:
        """Returns the scale of a layer's inputs in static int8: value = scale * integer in [-127, 127]."""
        ...

    def quantize(self, layer: str, weight_NK: Tensor, *, bits: int, group_size: int | None) -> QuantizedMatrix:
        """Rounds a layer's weight, one of ``weights`` (``head_matrix`` for the head).

        Args:
            layer: as ``linear_layers`` names it.
            weight_NK: fp32.
            bits: 4 or 8.
            group_size: inputs that share a scale; None: all.
        """
        ...

    def rows(self, layer: str) -> Tensor:
        """Returns inputs of a layer in the model of ``weights``, fp32 (rows, K)."""
        ...
