"""Chooses which frames of a clip the model sees: the one sampler of training, export, runtime and server.

Three rules, as in the released code. Not here: opening a file (``clip.py``) and resizing (``preprocess.py``).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from blip3v.errors import UsageError

__all__ = ["SAMPLING_RULES", "SamplingRule", "sample_indices"]

SamplingRule = Literal["released", "uniform", "train"]

SAMPLING_RULES: tuple[SamplingRule, ...] = get_args(SamplingRule)


def sample_indices(
    num_source_frames: int,
    num_frames: int,
    *,
    rule: SamplingRule = "released",
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Picks ``num_frames`` of ``num_source_frames`` frames, numbered in display order from 0.

    With L source frames and n frames to pick:

    - ``released``: linspace(n // 2, L - n // 2, n), truncated to integers, as in the released inference script. For a
      clip hardly longer than n the rule repeats frames (L = n: only frame n // 2), as the script does.
    - ``uniform``: linspace(0, L - 1, n), truncated to integers: from the first frame to the last.
    - ``train``: every (L // n)-th frame from a random start that leaves room for n of them.

    Under every rule, a clip with too few frames (L < n) is sampled as by ``uniform``: frames repeat, none is left out.

    Args:
        num_source_frames: frames of the clip, at least 1.
        num_frames: frames to pick, at least 1.
        rule: how to pick.
        rng: random generator; needed by ``train``, refused by the other rules.

    Returns:
        int64 (num_frames,), non-decreasing, each in [0, num_source_frames).

    Raises:
        UsageError: a count below 1, an unknown rule, ``train`` without ``rng``, or another rule with it.
    """
    _check(num_source_frames, num_frames, rule, rng)
    if num_source_frames < num_frames or rule == "uniform":
        return np.linspace(0, num_source_frames - 1, num_frames).astype(np.int64)
    if rule == "released":
        half = num_frames // 2
        return np.linspace(half, num_source_frames - half, num_frames).astype(np.int64)
    assert rng is not None, "_check requires rng for the train rule"
    stride = num_source_frames // num_frames
    room = num_source_frames - (num_frames - 1) * stride
    indices: np.ndarray = rng.integers(room) + stride * np.arange(num_frames, dtype=np.int64)
    return indices


def _check(num_source_frames: int, num_frames: int, rule: str, rng: np.random.Generator | None) -> None:
    if num_source_frames < 1:
        raise UsageError(f"a clip of {num_source_frames} frames has nothing to sample; at least 1 frame is needed")
    if num_frames < 1:
        raise UsageError(f"num_frames is {num_frames}; at least 1 is needed")
    if rule not in SAMPLING_RULES:
        raise UsageError(f"sampling rule {rule!r} is unknown; allowed: {', '.join(SAMPLING_RULES)}")
    if (rule == "train") != (rng is not None):
        given = "no rng" if rng is None else "an rng"
        raise UsageError(f"sampling rule {rule!r} was given {given}; only 'train' is random, and it needs one")
