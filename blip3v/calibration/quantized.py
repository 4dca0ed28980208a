"""A weight in integers: values and scales, symmetric around 0, so that every engine reads them alike.

A scale belongs to one output channel, or to ``group_size`` consecutive inputs of one output channel. Rounding to the
nearest is here, since everything else is compared with it; better rounding is in ``rounding.py``.
"""

# Shapes: N outputs, K inputs, g groups of an output channel.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["QuantizedMatrix", "group_of", "largest_value", "nearest", "scales_of"]


@dataclass(frozen=True)
class QuantizedMatrix:
    """A weight (N, K) as ``values * scales``.

    Attributes:
        values_NK: int8, in [-largest, largest] for 8 bits and [-8, 7] for 4.
        scales_Ng: fp32, positive; g is 1 for a scale per output channel. Group i covers the inputs from
            ``i * group_size``; the last one may be shorter.
        bits: 4 or 8.
        group_size: None: one group.
    """

    values_NK: Tensor
    scales_Ng: Tensor
    bits: int
    group_size: int | None

    def dequantized(self) -> Tensor:
        """Returns fp32 (N, K)."""
        return self.values_NK.float() * _spread(self.scales_Ng, self.values_NK.shape[1], self.group_size)


def group_of(num_inputs: int, group_size: int) -> int:
    """Returns the group size to use for ``num_inputs``: halved until it divides them, but at least 16.

    MatMulNBits and blockwise DequantizeLinear take powers of two from 16; what even 16 does not divide is padded.
    """
    while group_size > 16 and num_inputs % group_size:
        group_size //= 2
    return group_size


def largest_value(bits: int) -> int:
    """Returns the largest integer that is used: 127 or 7; -128 is not, as TensorRT wants symmetric ranges."""
    return (1 << (bits - 1)) - 1


def scales_of(weight_NK: Tensor, bits: int, group_size: int | None) -> Tensor:
    """Returns the scales (N, g) that map the largest absolute value of each group to the largest integer."""
    groups_NgS = _grouped(weight_NK.float(), group_size)
    largest_Ng = groups_NgS.abs().amax(dim=2)
    return torch.where(largest_Ng > 0, largest_Ng / largest_value(bits), torch.ones(()))


def nearest(weight_NK: Tensor, scales_Ng: Tensor, bits: int, group_size: int | None) -> QuantizedMatrix:
    """Rounds every weight to the nearest multiple of its scale."""
    top = largest_value(bits)
    lowest = -top if bits == 8 else -top - 1
    scaled_NK = weight_NK.float() / _spread(scales_Ng, weight_NK.shape[1], group_size)
    return QuantizedMatrix(scaled_NK.round().clamp(lowest, top).to(torch.int8), scales_Ng, bits, group_size)


def _grouped(weight_NK: Tensor, group_size: int | None) -> Tensor:
    """(N, K) to (N, g, group_size), padded with zeros."""
    num_inputs = weight_NK.shape[1]
    size = num_inputs if group_size is None else group_size
    padded = torch.nn.functional.pad(weight_NK, (0, -num_inputs % size))
    return padded.view(len(weight_NK), -1, size)


def _spread(scales_Ng: Tensor, num_inputs: int, group_size: int | None) -> Tensor:
    """(N, g) to (N, K)."""
    if group_size is None:
        return scales_Ng
    return scales_Ng.repeat_interleave(group_size, dim=1)[:, :num_inputs]
