"""What a layer computes with when it is quantised, as far as its integers decide it."""

# Shapes: R rows, N outputs, K inputs.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blip3v.bundle.precision import GraphPrecision
from blip3v.calibration.options import RangeRule
from blip3v.calibration.quantized import group_of, nearest, scales_of

__all__ = ["LayerFormat", "layer_format", "on_block_grid", "on_grid"]

_BITS = {"int8": 8, "int8-block": 8, "int4-block": 4}
_LARGEST = 127


@dataclass(frozen=True, kw_only=True)
class LayerFormat:
    """How a layer is quantised."""

    bits: int  # of its weights
    group_size: int | None  # inputs that share a scale; None: all
    ranges: RangeRule | None  # how the range of its static int8 inputs is chosen; None: its inputs stay floats

    def rounded(self, weight_NK: Tensor) -> Tensor:
        """Returns the weight rounded to the nearest, in fp32."""
        size = None if self.group_size is None else group_of(weight_NK.shape[1], self.group_size)
        return nearest(weight_NK, scales_of(weight_NK, self.bits, size), self.bits, size).dequantized()


def layer_format(precision: GraphPrecision, stored: str, ranges: RangeRule) -> LayerFormat | None:
    """Returns how ``precision`` quantises a layer whose weights are stored as ``stored``; None: it does not."""
    if stored not in _BITS:
        return None
    # Block formats take floats, whatever the rest of the graph does.
    static = precision.activations == "int8" and stored == "int8"
    return LayerFormat(
        bits=_BITS[stored],
        group_size=None if stored == "int8" else precision.group_size,
        ranges=ranges if static else None,
    )


def on_grid(rows_RK: Tensor, scale: float | Tensor) -> Tensor:
    """Returns inputs rounded to the multiples of ``scale`` that int8 has, in fp32."""
    return torch.clamp((rows_RK / scale).round(), -_LARGEST, _LARGEST) * scale


def on_block_grid(x: Tensor, group_size: int) -> Tensor:
    """Returns inputs (..., K) rounded as block formats round them: to int8, with a scale for each row and block."""
    num_inputs = x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -num_inputs % group_size))
    blocks = padded.view(*x.shape[:-1], -1, group_size)
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    scales = torch.where(largest > 0, largest / _LARGEST, torch.ones(()))
    return on_grid(blocks, scales).flatten(-2)[..., :num_inputs]
