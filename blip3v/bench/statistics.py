"""What is said of many values of one quantity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Statistics"]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Figures of one quantity over its samples, in the quantity's unit."""

    mean: float
    std: float  # of the sample (n - 1); 0 for one value
    p50: float  # the median
    p90: float
    p99: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistics:
        """The figures of at least one value; percentiles interpolate linearly between neighbours."""
        p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
        return cls(
            mean=float(np.mean(values)),
            std=float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
            p50=p50,
            p90=p90,
            p99=p99,
            n=len(values),
        )
