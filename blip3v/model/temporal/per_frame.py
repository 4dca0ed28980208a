"""Attentional pooling of each frame separately: the same TokenLearner pools every frame into m tokens."""

from __future__ import annotations

from torch import Tensor

from blip3v.config import ModelConfig
from blip3v.model.blocks import TokenLearner
from blip3v.model.temporal.base import TemporalEncoder
from blip3v.model.temporal.spec import CheckpointForm, ClipSize, EncoderSpec, NoSettings, Shapes, TokenCounts
from blip3v.model.temporal.stored import HEAD, num_tokens, parts

__all__ = ["ENCODER"]

_TOKENS = (2, 4, 8, 16, 32)  # per frame
_RELEASED_TOKENS = 4


class PerFrameTokenLearner(TemporalEncoder):
    """(B, T, N, D) to (B, T*m, D), frame-major, any T; m is ``num_video_tokens / num_frames``."""

    def __init__(self, config: ModelConfig, settings: NoSettings) -> None:
        super().__init__(config, settings)
        tokens_per_frame = config.num_video_tokens // config.num_frames
        self.final_output = TokenLearner(config.vision.hidden_size, num_tokens=tokens_per_frame)

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Pools every frame and concatenates the results."""
        pooled: Tensor = self.final_output(x_BTND.flatten(0, 1))
        return pooled.view(*x_BTND.shape[:2], *pooled.shape[1:]).flatten(1, 2)


def _token_counts(settings: NoSettings, clip: ClipSize) -> TokenCounts:
    counts = tuple(count * clip.num_frames for count in _TOKENS)
    return TokenCounts(counts, usual=_RELEASED_TOKENS * clip.num_frames, per_frame=True)


def _find(shapes: Shapes, config: ModelConfig) -> CheckpointForm | None:
    """Finds a lone TokenLearner with the authors' count for one frame; one over all frames would have more tokens."""
    if parts(shapes) != {HEAD} or num_tokens(shapes, HEAD) != _RELEASED_TOKENS:
        return None
    return CheckpointForm(num_video_tokens=_RELEASED_TOKENS * config.num_frames)


ENCODER = EncoderSpec(settings=NoSettings, module=PerFrameTokenLearner, token_counts=_token_counts, find=_find)
