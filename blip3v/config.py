"""The model's shape: frozen dataclasses, the presets, and strict JSON in and out.

Names follow the paper and the released checkpoint. What is not here: how a model is trained (``training/recipe.py``)
and how frames become pixels (``video/preprocess.py``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3v import strict_json
from blip3v._temporal_config import (
    ENCODERS,
    EncoderName,
    Pooling,
    TemporalConfig,
    check_temporal,
    choose_form,
    with_frames,
)
from blip3v.errors import ConfigError

__all__ = [
    "ENCODERS",
    "PRESETS",
    "EncoderName",
    "ModelConfig",
    "Pooling",
    "ResamplerConfig",
    "TemporalConfig",
    "TextConfig",
    "VisionConfig",
    "preset",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """SigLIP vision transformer, applied to each frame by itself."""

    image_size: int  # side of the square input, pixels
    patch_size: int  # side of a patch, pixels
    hidden_size: int  # width of a token; the resampler works at this width too
    intermediate_size: int  # width of the MLP
    num_layers: int
    num_heads: int
    layer_norm_eps: float = 1e-6

    @property
    def num_patches(self) -> int:
        """Tokens of one frame."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """Perceiver resampler: the patches of a frame become ``num_latents`` tokens."""

    num_latents: int  # tokens of a frame
    depth: int  # blocks of cross-attention and feed-forward
    num_heads: int
    head_dim: int
    ff_mult: int = 4  # width of the feed-forward, in units of the token width


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Phi-3 with the released split of embedding and head."""

    vocab_size: int  # rows of the base embedding, dead rows included
    num_base_tokens: int  # ids below this come from the base rows (released: ``initial_tokenizer_len``)
    num_added_tokens: int  # ids from ``num_base_tokens`` on, from the added rows
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_context: int  # context, tokens
    sliding_window: int | None  # a token sees this many tokens, itself included; None: all
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_logits(self) -> int:
        """Columns of the logits: base and added tokens."""
        return self.num_base_tokens + self.num_added_tokens


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One BLIP-3-Video model."""

    name: str  # the preset that it comes from
    num_frames: int  # frames of a clip
    vision: VisionConfig
    resampler: ResamplerConfig
    temporal: TemporalConfig
    text: TextConfig
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check(self)

    @property
    def num_video_tokens(self) -> int:
        """Tokens that take the place of ``<image>`` for a clip of ``num_frames``."""
        return self.temporal.num_video_tokens

    def with_encoder(
        self, encoder: str, *, num_video_tokens: int | None = None, num_frames: int | None = None, **options: object
    ) -> ModelConfig:
        """The same model with another temporal encoder, token count or frame count.

        The encoder comes in its released form; where only another form gives ``num_video_tokens`` it is that one:
        attention over the memories for gttm and mambalike, the last memory for ttm.

        Args:
            encoder: one of ``ENCODERS``.
            num_video_tokens: tokens out; None: the encoder's usual count.
            num_frames: frames of a clip; None: as before.
            **options: fields of ``TemporalConfig``, which settle the form.

        Raises:
            ConfigError: an unknown encoder, a count that it cannot give, or an option that it does not have.
        """
        frames = self.num_frames if num_frames is None else num_frames
        temporal = choose_form(
            self.temporal,
            encoder,
            num_video_tokens=num_video_tokens,
            num_frames=frames,
            num_latents=self.resampler.num_latents,
            options=options,
        )
        return dataclasses.replace(self, temporal=temporal, num_frames=frames)

    def with_frames(self, num_frames: int) -> ModelConfig:
        """The same model, weights included, for clips of another length; a count of so many a frame follows.

        Raises:
            ConfigError: the encoder cannot give its tokens from so few frames.
        """
        temporal = with_frames(self.temporal, old=self.num_frames, new=num_frames)
        return dataclasses.replace(self, temporal=temporal, num_frames=num_frames)

    def to_dict(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Writes ``config.json``."""
        path.write_text(strict_json.dumps(self.to_dict()), "utf-8")

    @classmethod
    def load(cls, path: Path) -> ModelConfig:
        """Reads ``config.json``.

        Raises:
            ConfigError: not JSON, an unknown or missing key, or values that do not fit together.
        """
        values = strict_json.read_json(path)
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ConfigError(f"{path} has schema_version {version!r}; this blip3v reads {SCHEMA_VERSION}")
        return strict_json.from_dict(cls, values, str(path))


def preset(name: str) -> ModelConfig:
    """The preset ``name``.

    Raises:
        ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; allowed: {', '.join(PRESETS)}")
    return PRESETS[name]


def _check(config: ModelConfig) -> None:
    vision, temporal, text = config.vision, config.temporal, config.text
    if config.num_frames < 1:
        raise ConfigError(f"num_frames is {config.num_frames}; at least 1 is needed")
    if vision.patch_size > vision.image_size:
        raise ConfigError(f"patch_size {vision.patch_size} is larger than image_size {vision.image_size}")
    _divides("vision.hidden_size", vision.hidden_size, "vision.num_heads", vision.num_heads)
    _divides("vision.hidden_size", vision.hidden_size, "temporal.num_heads", temporal.num_heads)
    _divides("text.hidden_size", text.hidden_size, "text.num_heads", text.num_heads)
    _divides("text.num_heads", text.num_heads, "text.num_kv_heads", text.num_kv_heads)
    if text.head_dim % 16:
        raise ConfigError(f"a text head is {text.head_dim} wide; the attention kernels need a multiple of 16")
    if text.num_base_tokens > text.vocab_size:
        raise ConfigError(f"num_base_tokens {text.num_base_tokens} is larger than vocab_size {text.vocab_size}")
    check_temporal(temporal, num_frames=config.num_frames, num_latents=config.resampler.num_latents)


def _divides(name: str, value: int, by_name: str, by: int) -> None:
    if by < 1 or value % by:
        raise ConfigError(f"{name} is {value}, which {by_name} {by} does not divide")


PRESETS: dict[str, ModelConfig] = {
    "xgen-mm-vid": ModelConfig(
        name="xgen-mm-vid",
        num_frames=8,
        vision=VisionConfig(
            image_size=384, patch_size=14, hidden_size=1152, intermediate_size=4304, num_layers=27, num_heads=16
        ),
        resampler=ResamplerConfig(num_latents=128, depth=6, num_heads=16, head_dim=96),
        temporal=TemporalConfig(encoder="gttm", num_video_tokens=128),
        text=TextConfig(
            vocab_size=32064,
            num_base_tokens=32012,
            num_added_tokens=3,
            hidden_size=3072,
            intermediate_size=8192,
            num_layers=32,
            num_heads=32,
            num_kv_heads=32,
            max_context=4096,
            sliding_window=2047,
        ),
    ),
    "tiny": ModelConfig(
        name="tiny",
        num_frames=8,
        vision=VisionConfig(
            image_size=64, patch_size=8, hidden_size=96, intermediate_size=256, num_layers=4, num_heads=6
        ),
        resampler=ResamplerConfig(num_latents=128, depth=2, num_heads=3, head_dim=32, ff_mult=2),
        temporal=TemporalConfig(
            encoder="tokenlearner", num_video_tokens=32, num_heads=6, num_layers=2, ff_mult=2, time_stamps=True
        ),
        text=TextConfig(
            vocab_size=640,
            num_base_tokens=608,
            num_added_tokens=3,
            hidden_size=128,
            intermediate_size=384,
            num_layers=6,
            num_heads=4,
            num_kv_heads=4,
            max_context=2048,
            sliding_window=None,
        ),
    ),
}
