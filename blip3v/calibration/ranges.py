"""The static range of a layer's inputs: one symmetric int8 scale, from the rows that calibration kept.

    minmax      the largest absolute value
    percentile  99.99 % of the values lie inside
    entropy     the range whose 128 levels lose the least information (TensorRT's calibrator, Migacz 2017)
    mse         the least squared error, of inputs weighed by the size of the weights that they meet

The kept rows are no uniform sample, since the most extreme ones were kept on purpose: each stands for itself, and the
others for all the rest.
"""

# Shapes: N rows, K inputs, b bins, c candidates.

from __future__ import annotations

import torch
from torch import Tensor

from blip3v.calibration.options import RangeRule
from blip3v.calibration.statistics import LayerStatistics

__all__ = ["row_weights", "static_scale"]

LARGEST = 127
_PERCENTILE = 0.9999
_OCTAVES, _BINS_PER_OCTAVE = 24, 64  # of the logarithmic histogram; smaller values count as 0
_CLIP_OCTAVES, _CLIPS_PER_OCTAVE = 10, 16  # the ranges that ``mse`` tries
_LINEAR_BINS, _LEVELS = 4096, 128


def row_weights(found: LayerStatistics) -> Tensor:
    """Returns how many of the rows that were seen each kept row stands for, fp32 (N,)."""
    num_rows = len(found.rows_NK)
    weights_N = torch.ones(num_rows)
    num_random = num_rows - found.num_extreme
    if num_random > 0:
        weights_N[found.num_extreme :] = max(1.0, (found.num_seen - found.num_extreme) / num_random)
    return weights_N


def static_scale(found: LayerStatistics, rule: RangeRule, importance_K: Tensor | None = None) -> float:
    """Returns the scale of a layer's inputs: value = scale * integer in [-127, 127].

    Args:
        found: the layer's inputs.
        rule: how the range is chosen.
        importance_K: weights of the squared errors of each input, for ``mse``; None: 1.
    """
    largest = float(found.absmax_K.max())
    if largest == 0:
        return 1.0
    if rule == "minmax":
        return largest / LARGEST
    values_NK = found.rows_NK.abs()
    counts_NK = row_weights(found)[:, None].expand_as(values_NK)
    if rule == "entropy":
        return _entropy_range(values_NK, counts_NK, largest) / LARGEST
    if rule == "mse" and importance_K is not None:
        counts_NK = counts_NK * importance_K
    values_b, counts_b = _logarithmic(values_NK, counts_NK, largest)
    if rule == "percentile":
        return _percentile(values_b, counts_b) / LARGEST
    return _least_error(values_b, counts_b, largest) / LARGEST


def _logarithmic(values_NK: Tensor, counts_NK: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Returns a histogram whose bins have equal ratios: values and counts, fp64 (b,)."""
    num_bins = _OCTAVES * _BINS_PER_OCTAVE
    octaves_NK = (values_NK / largest).clamp(min=2.0**-_OCTAVES, max=1.0).log2()
    at_NK = ((octaves_NK + _OCTAVES) * _BINS_PER_OCTAVE).round().long()
    counts_b = torch.bincount(at_NK.flatten(), counts_NK.flatten().double(), minlength=num_bins + 1)
    values_b = largest * torch.exp2(torch.arange(num_bins + 1, dtype=torch.float64) / _BINS_PER_OCTAVE - _OCTAVES)
    values_b[0] = 0.0
    return values_b, counts_b


def _percentile(values_b: Tensor, counts_b: Tensor) -> float:
    """At least the smallest value above 0: a range of 0 would have no scale."""
    inside_b = counts_b.cumsum(0) / counts_b.sum()
    at = int((inside_b < _PERCENTILE).sum())
    above_zero = counts_b[1:].nonzero()
    lowest = 1 + int(above_zero[0]) if len(above_zero) else len(values_b) - 1
    return float(values_b[max(lowest, min(at, len(values_b) - 1))])


def _least_error(values_b: Tensor, counts_b: Tensor, largest: float) -> float:
    clips_c = largest * torch.exp2(-torch.arange(_CLIP_OCTAVES * _CLIPS_PER_OCTAVE).double() / _CLIPS_PER_OCTAVE)
    scales_c1 = clips_c[:, None] / LARGEST
    rounded_cb = (values_b / scales_c1).round().clamp(max=LARGEST) * scales_c1
    errors_c = ((rounded_cb - values_b) ** 2 * counts_b).sum(dim=1)
    return float(clips_c[errors_c.argmin()])


def _entropy_range(values_NK: Tensor, counts_NK: Tensor, largest: float) -> float:
    at_NK = (values_NK / largest * _LINEAR_BINS).long().clamp(max=_LINEAR_BINS - 1)
    counts_b = torch.bincount(at_NK.flatten(), counts_NK.flatten().double(), minlength=_LINEAR_BINS)
    num_bins = range(_LEVELS, _LINEAR_BINS + 1, _LEVELS // 4)
    losses = [_information_lost(counts_b, num) for num in num_bins]
    best = min(range(len(losses)), key=losses.__getitem__)
    return largest * num_bins[best] / _LINEAR_BINS


def _information_lost(counts_b: Tensor, num_bins: int) -> float:
    """The divergence of the first ``num_bins``, with all beyond in the last, from the same in 128 levels."""
    inside_b = counts_b[:num_bins]
    clipped_b = inside_b.clone()
    clipped_b[-1] += counts_b[num_bins:].sum()
    level_b = torch.arange(num_bins) * _LEVELS // num_bins
    filled_b = (clipped_b > 0).double()
    sums = torch.zeros(_LEVELS, dtype=torch.float64).index_add_(0, level_b, inside_b)
    filled = torch.zeros(_LEVELS, dtype=torch.float64).index_add_(0, level_b, filled_b)
    spread_b = (sums / filled.clamp(min=1))[level_b] * filled_b
    if float(spread_b.sum()) == 0:
        return float("inf")
    p_b, q_b = clipped_b / clipped_b.sum(), spread_b / spread_b.sum()
    used_b = p_b > 0
    return float((p_b[used_b] * (p_b[used_b] / q_b[used_b].clamp(min=1e-12)).log()).sum())
