"""What a block format of weights stores, in numpy: its values, and the same matrix with a scale for each output alone.

Torch is not needed here: a bundle's blocks are read on the machine that runs it, which may have none.
"""

# Shapes: N outputs, K inputs, g groups, S group size.

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["channel_scales", "int8_values", "unpacked"]

_LARGEST = 127
_ROWS = 1024  # outputs that are floats at the same time


def unpacked(values: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Returns the values (N, g, S) of a stored block format, in [-128, 127] or [-8, 7].

    Args:
        values: (N, g, S * bits / 8), two 4-bit values a byte, the first in the low half.
        bits: 8 or 4.
    """
    if bits == 4:
        values = np.stack((values & 15, values >> 4), axis=-1).reshape(*values.shape[:2], -1)
    signed: NDArray[np.int8] = (values.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
    return signed


def channel_scales(values: NDArray[np.uint8], scales_Ng: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Returns the scales (N) with which int8 reaches the largest weight of each output; 1 for an output of zeros.

    Args:
        values: as ``unpacked`` takes them.
        scales_Ng: of the groups, at least 0.
        bits: 8 or 4.
    """
    scales_N = np.empty(len(values), np.float32)
    for rows in _parts(len(values)):
        # -128 and -8 have no positive counterpart in their own type.
        largest_Ng = np.abs(unpacked(values[rows], bits).astype(np.int16)).max(axis=2)
        scales_N[rows] = (largest_Ng * scales_Ng[rows]).max(axis=1) / _LARGEST
    return np.where(scales_N > 0, scales_N, np.float32(1))


def int8_values(
    values: NDArray[np.uint8],
    scales_Ng: NDArray[np.float32],
    bits: int,
    scales_N: NDArray[np.float32],
    num_inputs: int,
) -> NDArray[np.int8]:
    """Returns the matrix as int8 (K, N), rounded to the nearest multiple of ``scales_N``; what pads a group is cut off.

    Args:
        values: as ``unpacked`` takes them.
        scales_Ng: of the groups.
        bits: 8 or 4.
        scales_N: of ``channel_scales``.
        num_inputs: K.
    """
    rounded_KN = np.empty((num_inputs, len(values)), np.int8)
    for rows in _parts(len(values)):
        ratios_Ng = scales_Ng[rows] / scales_N[rows, None]
        scaled_NgS = unpacked(values[rows], bits) * ratios_Ng[:, :, None]
        rounded_NgS = np.rint(scaled_NgS, out=scaled_NgS).clip(-_LARGEST, _LARGEST).astype(np.int8)
        rounded_KN[:, rows] = rounded_NgS.reshape(len(rounded_NgS), -1)[:, :num_inputs].T
    return rounded_KN


def _parts(num_outputs: int) -> Iterator[slice]:
    return (slice(first, first + _ROWS) for first in range(0, num_outputs, _ROWS))
