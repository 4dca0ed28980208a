"""Confidence intervals: Wilson's for shares, the percentile bootstrap for means. Both at 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["bootstrap_interval", "wilson_interval"]

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
_RESAMPLES = 2000
_CHUNK = 1 << 22  # numbers drawn at once


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The interval of a share (Wilson, JASA 1927).

    Args:
        successes: at most ``trials``.
        trials: at least 1.
    """
    share, z2 = successes / trials, _Z * _Z
    middle = share + z2 / (2 * trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The interval of a mean: percentiles of the means of samples drawn with replacement (Efron, 1979).

    Args:
        values: at least one.
        seed: the same seed gives the same interval.
    """
    numbers = np.asarray(values, np.float64)
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(numbers))
    means: list[np.ndarray] = []
    while (left := _RESAMPLES - sum(map(len, means))) > 0:
        drawn = random.integers(len(numbers), size=(min(rows, left), len(numbers)))
        means.append(numbers[drawn].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)
