"""Space-time attentional pooling: one TokenLearner over the tokens of all frames (paper section 2.3).

The released encoder adds no time stamps to its input, so its output does not depend on the order of the frames.
``time_stamps`` adds those of the sequential encoder; the released form has it off.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from blip3v.config import ModelConfig
from blip3v.model.blocks import TimeStamps, TokenLearner
from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.spec import LEARNED_TOKENS, CheckpointForm, EncoderSpec, Shapes, TokenCounts
from blip3v.model.temporal.stored import HEAD, num_tokens, parts

__all__ = ["ENCODER"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The defaults are the released form."""

    time_stamps: bool = False  # add the time-stamp encoding of gttm to the tokens


class SpaceTimeTokenLearner(TemporalEncoder):
    """(B, T, N, D) to (B, M, D), any T."""

    def __init__(self, config: ModelConfig, settings: Settings) -> None:
        super().__init__(config, settings)
        dim = config.vision.hidden_size
        if settings.time_stamps:
            self.pos_emb = TimeStamps(dim)
        self.time_stamps = settings.time_stamps
        self.final_output = TokenLearner(dim, num_tokens=config.num_video_tokens)

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Pools all frames at once."""
        if self.time_stamps:
            x_BTND = self.pos_emb(x_BTND)
        pooled_BMD: Tensor = self.final_output(x_BTND.flatten(1, 2))
        return pooled_BMD


def _find(shapes: Shapes, config: ModelConfig) -> CheckpointForm | None:
    """Finds a lone TokenLearner, or one with time stamps. One of fewer tokens pools single frames: ``per-frame``."""
    found = parts(shapes)
    if not {HEAD} <= found <= {HEAD, "pos_emb"}:
        return None
    count = num_tokens(shapes, HEAD)
    if count < LEARNED_TOKENS[0]:
        return None
    return CheckpointForm(num_video_tokens=count, options={"time_stamps": "pos_emb.inv_freq" in shapes})


ENCODER = EncoderSpec(
    settings=Settings,
    module=SpaceTimeTokenLearner,
    token_counts=lambda settings, clip: TokenCounts(LEARNED_TOKENS),
    presets={"tiny": Settings(time_stamps=True)},
    find=_find,
)
