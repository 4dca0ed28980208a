"""A transformer over the tokens of all frames that keeps the last M of them (paper Eq. 1, after Mirasol3B).

Attention is bidirectional over all frames, without positional encoding: as in the authors' code, the order of the
frames shows only in which positions are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from blip3v.config import ModelConfig
from blip3v.model.blocks import ProcessLayers
from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.spec import (
    LEARNED_TOKENS,
    CheckpointForm,
    ClipSize,
    EncoderSpec,
    Shapes,
    TokenCounts,
    at_least_one,
    check_heads,
)
from blip3v.model.temporal.stored import has_part, num_layers

__all__ = ["ENCODER"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The defaults are the released form."""

    num_layers: int = 4
    num_heads: int = 8  # attention heads
    ff_mult: int = 4  # feed-forward width, in units of the token width

    def __post_init__(self) -> None:
        at_least_one(self, "num_layers", "num_heads", "ff_mult")


class SpaceTimeTransformer(TemporalEncoder):
    """(B, T, N, D) to (B, M, D), any T with M <= T*N."""

    def __init__(self, config: ModelConfig, settings: Settings) -> None:
        super().__init__(config, settings)
        self.num_video_tokens = config.num_video_tokens
        self.process_layers = ProcessLayers(
            config.vision.hidden_size,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            ff_mult=settings.ff_mult,
        )

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Runs over the tokens of all frames, frame-major."""
        processed: Tensor = self.process_layers(x_BTND.flatten(1, 2))
        return processed[:, -self.num_video_tokens :]


def _token_counts(settings: Settings, clip: ClipSize) -> TokenCounts:
    counts = {count for count in LEARNED_TOKENS if count <= clip.num_latents * clip.num_frames}
    # By default, the positions of the last frame.
    return TokenCounts(tuple(sorted(counts | {clip.num_latents})), usual=clip.num_latents)


def _find(shapes: Shapes, config: ModelConfig) -> CheckpointForm | None:
    if not has_part(shapes, "process_layers"):
        return None
    return CheckpointForm(options={"num_layers": num_layers(shapes, "process_layers")})


ENCODER = EncoderSpec(
    settings=Settings,
    module=SpaceTimeTransformer,
    token_counts=_token_counts,
    presets={"tiny": Settings(num_layers=2, num_heads=6, ff_mult=2)},
    check=lambda settings, config: check_heads(settings.num_heads, config),
    find=_find,
)
