"""PLLaVA's pooling: the grid of patches of every frame is averaged down to a smaller square.

Xu et al., PLLaVA, section 3.3, with the shape that they settle on: half the side in space (24 to 12), nothing in time.
They pool what their projector returns; here norm and projection follow the pooling, as for every encoder.
"""

# Shapes: B batch, T frames, P patches, R pooled rows, C columns, D width, S side of the pooled square.

from __future__ import annotations

import math

import torch
from torch import Tensor

from blip3v.config import ModelConfig
from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.spec import ClipSize, EncoderSpec, NoSettings, TokenCounts
from blip3v.model.temporal.stored import weightless

__all__ = ["ENCODER", "GridPooling", "pool_grid", "square_counts"]


def pool_grid(x_BTPD: Tensor, side: int) -> Tensor:
    """Averages the square grid of each frame to ``side`` rows and columns: (B, T, P, D) to (B, T, side*side, D).

    The same as torch's ``adaptive_avg_pool2d``, whose windows overlap where ``side`` does not divide the grid, from
    operators that every engine has.
    """
    grid = math.isqrt(x_BTPD.shape[2])
    rows_BTRCD = _averages(x_BTPD.reshape(*x_BTPD.shape[:2], grid, grid, x_BTPD.shape[3]), 2, side)
    return _averages(rows_BTRCD, 3, side).flatten(2, 3)


def _averages(x: Tensor, dim: int, count: int) -> Tensor:
    """Divides an axis into ``count`` windows of equal length, rounded outwards, and averages each."""
    size = x.shape[dim]
    windows = [(at * size // count, -(-(at + 1) * size // count)) for at in range(count)]
    return torch.stack([x.narrow(dim, start, end - start).mean(dim) for start, end in windows], dim)


class GridPooling(TemporalEncoder):
    """(B, T, P, D) to (B, T*S*S, D), frame-major, any T; S*S is ``num_video_tokens / num_frames``."""

    def __init__(self, config: ModelConfig, settings: NoSettings) -> None:
        super().__init__(config, settings)
        self.side = math.isqrt(config.num_video_tokens // config.num_frames)

    def forward(self, x_BTPD: Tensor) -> Tensor:
        """Pools every frame and concatenates the results."""
        return pool_grid(x_BTPD, self.side).flatten(1, 2)


def square_counts(clip: ClipSize, *, usual_side: int) -> TokenCounts:
    """A square of every side that the grid has room for, in each frame."""
    sides = range(1, math.isqrt(clip.num_patches) + 1)
    counts = tuple(clip.num_frames * side**2 for side in sides)
    return TokenCounts(counts, usual=clip.num_frames * usual_side**2, per_frame=True)


ENCODER = EncoderSpec(
    settings=NoSettings,
    module=GridPooling,
    token_counts=lambda settings, clip: square_counts(clip, usual_side=math.isqrt(clip.num_patches) // 2),
    find=weightless,
    reads="patches",
)
