"""What an export needs to know to write a quantised graph: exact new weights first, then integers."""

# Shapes: N outputs, K inputs, D width.

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from blip3v.bundle.precision import Precision
from blip3v.calibration.fake import LayerFormat, layer_format
from blip3v.calibration.layers import HEAD, linear_layers
from blip3v.calibration.options import RangeRule, RecipeOptions, Rounding
from blip3v.calibration.quantized import QuantizedMatrix, nearest, scales_of
from blip3v.calibration.ranges import row_weights, static_scale
from blip3v.calibration.rotation import rotate
from blip3v.calibration.rounding import gptq
from blip3v.calibration.smoothing import folds, smooth
from blip3v.calibration.statistics import Statistics
from blip3v.calibration.transformed import Changed, layer_weight
from blip3v.config import ModelConfig

__all__ = ["Plan", "RangeRule", "RecipeOptions", "Rounding", "make_plan"]

_DECODER_HEAD = "lm_head"  # the head's weight in the decoder's graph


class Plan(Protocol):
    """The recipe, applied to one model."""

    weights: Mapping[str, Tensor]  # by released name; the same function as the source's in exact arithmetic
    input_rotation_DD: Tensor | None  # fp32, multiplies the decoder's inputs from the right; None: no rotation

    def activation_scale(self, layer: str) -> float:
        """Returns the scale of a layer's inputs in static int8: value = scale * integer in [-127, 127].

        Layers that share their inputs have the same.
        """
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


def make_plan(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    statistics: Statistics,
    precision: Precision,
    options: RecipeOptions | None = None,
) -> Plan:
    """Applies the recipe. Everything is computed when it is asked for, and the same every time.

    Args:
        weights: by released name; read one at a time, never modified. A rotation reads the norms' gains at once.
        config: the model's.
        statistics: of the model's inputs, before the recipe.
        precision: decides how each layer is quantised, and thereby which factors smooth it best.
        options: the steps to take; None: the defaults.

    Raises:
        CalibrationError: a rotation of a decoder whose norms have gains of 0.
    """
    return _Recipe(weights, config, statistics, precision, options or RecipeOptions())


class _Recipe:
    """See ``make_plan``."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        config: ModelConfig,
        statistics: Statistics,
        precision: Precision,
        options: RecipeOptions,
    ) -> None:
        self._config, self._precision, self._options = config, precision, options
        self._layers = linear_layers(config)
        model = Changed(weights, statistics)
        self.input_rotation_DD: Tensor | None = None
        if options.rotation:
            model, self.input_rotation_DD = rotate(model, config.text)
        if options.smoothing:
            for step in folds(config):
                model = smooth(model, step, self._format, config.text)
        self._model = model
        self.weights: Mapping[str, Tensor] = model.weights
        self._siblings = {layer: fold.layers for step in folds(config) for fold in step for layer in fold.layers}
        self._scale = functools.cache(self._shared_scale)

    def activation_scale(self, layer: str) -> float:
        """See ``Plan``."""
        return self._scale(self._siblings.get(layer, (layer,)))

    @torch.inference_mode()
    def quantize(self, layer: str, weight_NK: Tensor, *, bits: int, group_size: int | None) -> QuantizedMatrix:
        """See ``Plan``."""
        if self._options.rounding == "nearest" or group_size is None:
            return nearest(weight_NK, scales_of(weight_NK, bits, group_size), bits, group_size)
        found = self._model.statistics.layer(layer)
        return gptq(weight_NK, found.rows_NK, row_weights(found), bits=bits, group_size=group_size)

    def rows(self, layer: str) -> Tensor:
        """See ``Plan``."""
        return self._model.statistics.layer(layer).rows_NK

    def _format(self, layer: str) -> LayerFormat | None:
        spec = self._precision.graphs[self._layers[layer].graph]
        stored = spec.format_of([_DECODER_HEAD]) if layer == HEAD else spec.weights
        return layer_format(spec, stored, self._options.ranges)

    def _shared_scale(self, layers: tuple[str, ...]) -> float:
        found = self._model.statistics.layer(layers[0])
        importance_K = None
        if self._options.ranges == "mse":
            parts = [layer_weight(self.weights, layer, self._config.text).square().sum(dim=0) for layer in layers]
            importance_K = torch.stack(parts).sum(dim=0)
        return static_scale(found, self._options.ranges, importance_K)
