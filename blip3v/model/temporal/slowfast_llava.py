"""SlowFast-LLaVA's two rates: few frames with many tokens, then all frames with few.

Xu et al., SlowFast-LLaVA, section 3.2, and its released code: the slow path takes frames at equal distances from the
first on, and the larger of every two neighbouring patches; the fast path averages the grid of every frame to a small
square. The authors take 10 of 50 frames, which of 8 is 2, and 4 x 4 of 24 x 24 patches. They pool what their projector
returns; here norm and projection follow the pooling, as for every encoder.
"""

# Shapes: B batch, T frames, S slow frames, P patches, D width.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blip3v.config import ModelConfig
from blip3v.errors import ConfigError
from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.pllava import pool_grid
from blip3v.model.temporal.spec import ClipSize, EncoderSpec, TokenCounts, at_least_one
from blip3v.model.temporal.stored import weightless

__all__ = ["ENCODER"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The defaults are the authors' shares."""

    slow_frames: int = 2
    fast_side: int = 4  # of the square of tokens of a frame

    def __post_init__(self) -> None:
        at_least_one(self, "slow_frames", "fast_side")


class SlowFast(TemporalEncoder):
    """(B, T, P, D) to (B, slow_frames * (P // 2) + T * fast_side**2, D), any T."""

    def __init__(self, config: ModelConfig, settings: Settings) -> None:
        super().__init__(config, settings)
        self.slow_frames, self.fast_side = settings.slow_frames, settings.fast_side

    def forward(self, x_BTPD: Tensor) -> Tensor:
        """Concatenates the slow path and the fast one."""
        fast = pool_grid(x_BTPD, self.fast_side).flatten(1, 2)
        return torch.cat((self._slow(x_BTPD), fast), dim=1)

    def _slow(self, x_BTPD: Tensor) -> Tensor:
        num_frames, num_pairs = x_BTPD.shape[1], x_BTPD.shape[2] // 2
        at_S = torch.arange(self.slow_frames, device=x_BTPD.device) * num_frames // self.slow_frames
        slow_BSPD = x_BTPD.index_select(1, at_S)[:, :, : 2 * num_pairs]
        pairs_BSP2D = slow_BSPD.reshape(*slow_BSPD.shape[:2], num_pairs, 2, slow_BSPD.shape[3])
        return pairs_BSP2D.amax(dim=3).flatten(1, 2)


def _token_counts(settings: Settings, clip: ClipSize) -> TokenCounts:
    slow, fast = settings.slow_frames * (clip.num_patches // 2), clip.num_frames * settings.fast_side**2
    return TokenCounts((slow + fast,), per_frame=True)


def _check(settings: Settings, config: ModelConfig) -> None:
    if settings.slow_frames > config.num_frames:
        raise ConfigError(f"slow_frames is {settings.slow_frames}, but a clip has {config.num_frames} frames")
    if settings.fast_side**2 > config.vision.num_patches:
        raise ConfigError(f"fast_side is {settings.fast_side}, but a frame has {config.vision.num_patches} patches")


ENCODER = EncoderSpec(
    settings=Settings,
    module=SlowFast,
    token_counts=_token_counts,
    presets={"tiny": Settings(fast_side=2)},
    check=_check,
    find=weightless,
    reads="patches",
)
