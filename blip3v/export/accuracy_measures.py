"""The measures of the accuracy report, as plain formulas on arrays."""

# Shapes: N positions, V logits, M video tokens, D width.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blip3v.runtime.generation import log_softmax

__all__ = ["PairedDifference", "kl_divergence", "paired_difference", "rotation_between", "token_cosines"]

_SAME = 0.01  # relative difference of two tables that differ by rounding alone
_Z_95 = 1.959963984540054  # two-sided 95 % of a normal distribution


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How many points fewer the graphs answer right than the reference, on the same questions."""

    lost: int  # right in the reference alone
    gained: int  # right in the graphs alone
    points: float  # 100 (lost - gained) / questions; negative: the graphs are better
    low: float  # 95 % confidence interval, in points
    high: float


def kl_divergence(expected_NV: NDArray[np.float32], got_NV: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns KL(expected || got) of the distributions of each pair of logits, in nats, (N,), at least 0."""
    expected_log_NV = log_softmax(expected_NV)
    got_log_NV = log_softmax(got_NV)
    kl_N = (np.exp(expected_log_NV) * (expected_log_NV - got_log_NV)).sum(-1)
    positive_N: NDArray[np.float64] = np.maximum(kl_N, 0.0)
    return positive_N


def token_cosines(expected_MD: NDArray[np.floating], got_MD: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the cosine of each pair of video tokens, (M,); 0 where one of them is zero and the other is not."""
    ours_MD, theirs_MD = got_MD.astype(np.float64), expected_MD.astype(np.float64)
    products_M = (ours_MD * theirs_MD).sum(-1)
    norms_M = np.linalg.norm(ours_MD, axis=-1) * np.linalg.norm(theirs_MD, axis=-1)
    equal_M = (ours_MD == theirs_MD).all(-1)
    cosines_M: NDArray[np.float64] = np.where(norms_M > 0, products_M / np.where(norms_M > 0, norms_M, 1.0), equal_M)
    return cosines_M


def rotation_between(expected_VD: NDArray[np.floating], got_VD: NDArray[np.floating]) -> NDArray[np.float32] | None:
    """Returns the orthogonal matrix (D, D) that takes one table of embeddings nearest to the other.

    Returns:
        What ``expected_VD`` is to be multiplied with from the right; None: nothing, they differ by rounding alone.
    """
    ours_VD, theirs_VD = got_VD.astype(np.float32), expected_VD.astype(np.float32)
    if np.linalg.norm(ours_VD - theirs_VD) <= _SAME * np.linalg.norm(theirs_VD):
        return None
    left_DD, _, right_DD = np.linalg.svd(theirs_VD.T @ ours_VD)  # orthogonal Procrustes
    rotation_DD: NDArray[np.float32] = left_DD @ right_DD
    return rotation_DD


def paired_difference(lost: int, gained: int, num_questions: int) -> PairedDifference:
    """Compares two shares of right answers to the same questions.

    The interval is "Wald+2" of Agresti and Min, "Simple improved confidence intervals for comparing matched
    proportions", Statistics in Medicine 24 (2005): Wald's, with half a question added to each of the four cells.

    Args:
        lost: questions that the first alone answers right.
        gained: questions that the second alone answers right.
        num_questions: in all, at least 1.
    """
    total = num_questions + 2
    middle = (lost - gained) / total
    spread = _Z_95 * math.sqrt(lost + gained + 1 - (lost - gained) ** 2 / total) / total
    return PairedDifference(
        lost=lost,
        gained=gained,
        points=100 * (lost - gained) / num_questions,
        low=100 * max(-1.0, middle - spread),
        high=100 * min(1.0, middle + spread),
    )
