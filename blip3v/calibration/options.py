"""The options of the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DEFAULT_MAX_KL", "RangeRule", "RecipeOptions", "Rounding"]

Rounding = Literal["nearest", "gptq"]
RangeRule = Literal["minmax", "percentile", "entropy", "mse"]
DEFAULT_MAX_KL = 0.01  # nats: what the formats of ``mixed`` may cost


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The steps of the recipe, each of which can be left out to see its worth."""

    smoothing: bool = True  # move outliers of activations into weights, by a factor for each channel
    rotation: bool = False  # of the decoder's residual stream
    rounding: Rounding = "gptq"  # of block-wise weights
    ranges: RangeRule = "mse"  # how a static range of activations is chosen
