"""The model's shape: frozen dataclasses, the presets, and strict JSON in and out.

Names follow the paper and the released checkpoint. Not here: how a model is trained (``training/recipe.py``), how
frames become pixels (``video/preprocess.py``), and what the settings of a temporal encoder mean (its own file in
``model/temporal/``).
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip3v import strict_json
from blip3v.errors import ConfigError

__all__ = [
    "MAX_LAYERS",
    "MAX_SIZE",
    "PRESETS",
    "ModelConfig",
    "ResamplerConfig",
    "TemporalConfig",
    "TextConfig",
    "VisionConfig",
    "preset",
]

SCHEMA_VERSION = 2

# Far above any model. They keep a damaged config from being built, or looped over, for hours.
MAX_SIZE = 2**18
MAX_LAYERS = 1024
_MIN_FLOAT = 2.0**-126  # anything smaller may be zero in fp32

# Version 1 stored the settings of all temporal encoders with every encoder. These are their defaults, and the ones that
# each encoder reads.
_V1_SETTINGS: dict[str, Any] = {
    "num_heads": 8,
    "num_layers": 4,
    "num_slots": 4,
    "ff_mult": 4,
    "time_stamps": False,
    "pooling": "mean",
    "process_tokens": 64,
    "memory_tokens": 128,
    "step_tokens": 16,
    "memory_output": False,
}
_V1_LAYERS = ("num_heads", "num_layers", "ff_mult")
_V1_READ = {
    "tokenlearner": ("time_stamps",),
    "gttm": (*_V1_LAYERS, "num_slots", "pooling"),
    "ttm": (*_V1_LAYERS, "time_stamps", "process_tokens", "memory_tokens", "step_tokens", "memory_output"),
    "transformer": _V1_LAYERS,
    "mean": ("pooling",),
    "mambalike": ("num_slots", "pooling"),
}
_V1_REFUSED = ("pooling", "memory_output")  # unless read or at their default; other unread settings are dropped


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """SigLIP vision transformer, applied to each frame on its own.

    Raises:
        ConfigError: a number out of range.
    """

    image_size: int  # side of the square input, pixels
    patch_size: int  # side of a patch, pixels
    hidden_size: int  # width of a token; the resampler works at this width too
    intermediate_size: int  # width of the MLP
    num_layers: int
    num_heads: int
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_numbers(self, layers="num_layers")

    @property
    def num_patches(self) -> int:
        """Tokens per frame."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """Perceiver resampler: the patches of a frame become ``num_latents`` tokens.

    Raises:
        ConfigError: a number out of range.
    """

    num_latents: int  # tokens per frame
    depth: int  # blocks of cross-attention and feed-forward
    num_heads: int
    head_dim: int
    ff_mult: int = 4  # width of the feed-forward, in units of the token width

    def __post_init__(self) -> None:
        _check_numbers(self, layers="depth")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Phi-3 with the released split of embedding and head.

    Raises:
        ConfigError: a number out of range.
    """

    vocab_size: int  # rows of the base embedding, unused rows included
    num_base_tokens: int  # ids below this come from the base rows (released: ``initial_tokenizer_len``)
    num_added_tokens: int  # ids from ``num_base_tokens`` on come from the added rows
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_context: int  # context length, tokens
    sliding_window: int | None  # a token attends to this many tokens, itself included; None: all
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_numbers(self, layers="num_layers")

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_logits(self) -> int:
        """Columns of the logits: base and added tokens."""
        return self.num_base_tokens + self.num_added_tokens


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """The temporal encoder, which turns the tokens of all frames into ``num_video_tokens``."""

    encoder: str  # its name in the registry of ``blip3v.model.temporal``
    num_video_tokens: int  # output tokens for ``ModelConfig.num_frames`` frames
    # As in config.json; the encoder's own file checks them when the encoder is built. A missing setting takes the
    # encoder's default.
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One BLIP-3-Video model."""

    name: str  # the preset it is based on
    num_frames: int  # frames per clip
    vision: VisionConfig
    resampler: ResamplerConfig
    temporal: TemporalConfig
    text: TextConfig
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check(self)

    @property
    def num_video_tokens(self) -> int:
        """Tokens that replace ``<image>`` for a clip of ``num_frames``."""
        return self.temporal.num_video_tokens

    def to_dict(self) -> dict[str, Any]:
        """The contents of ``config.json``."""
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Writes ``config.json``."""
        path.write_text(strict_json.dumps(self.to_dict()), "utf-8")

    @classmethod
    def load(cls, path: Path) -> ModelConfig:
        """Reads ``config.json`` of this schema version or of version 1.

        The settings of the temporal encoder are not checked here.

        Raises:
            ConfigError: not JSON, an unknown or missing key, or inconsistent values.
        """
        values = strict_json.read_json(path)
        version = values.get("schema_version")
        if type(version) is not int or version not in (1, SCHEMA_VERSION):
            raise ConfigError(f"{path} has schema_version {version!r}; this blip3v reads 1 and {SCHEMA_VERSION}")
        return strict_json.from_dict(cls, _from_version_1(values, path) if version == 1 else values, str(path))


def preset(name: str) -> ModelConfig:
    """The preset ``name``.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; allowed: {', '.join(PRESETS)}")
    return PRESETS[name]


def _check(config: ModelConfig) -> None:
    vision, text = config.vision, config.text
    _check_count("num_frames", config.num_frames)
    # The name appears in file names and on pages, and may come from another package.
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", config.temporal.encoder):
        raise ConfigError(
            f"temporal.encoder is {config.temporal.encoder!r}; only lower-case letters, digits and hyphens are allowed"
        )
    _check_count("num_video_tokens", config.num_video_tokens)
    if vision.patch_size > vision.image_size:
        raise ConfigError(f"patch_size {vision.patch_size} is larger than image_size {vision.image_size}")
    _check_divisible("vision.hidden_size", vision.hidden_size, "vision.num_heads", vision.num_heads)
    _check_divisible("text.hidden_size", text.hidden_size, "text.num_heads", text.num_heads)
    _check_divisible("text.num_heads", text.num_heads, "text.num_kv_heads", text.num_kv_heads)
    if text.head_dim % 16:
        raise ConfigError(f"a text head is {text.head_dim} wide; the attention kernels need a multiple of 16")
    if text.num_base_tokens > text.vocab_size:
        raise ConfigError(f"num_base_tokens {text.num_base_tokens} is larger than vocab_size {text.vocab_size}")


def _check_numbers(config: Any, *, layers: str) -> None:
    """Checks every field: a count or size from 1 up, a float above 0, or None where the field allows it."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, float):
            if not _MIN_FLOAT <= value < math.inf:
                raise ConfigError(f"{item.name} is {value:g}; a finite number above 0 is needed")
        elif value is not None:
            _check_count(item.name, value, MAX_LAYERS if item.name == layers else MAX_SIZE)


def _check_count(name: str, value: int, most: int = MAX_SIZE) -> None:
    if value < 1:
        raise ConfigError(f"{name} is {value}; at least 1 is needed")
    if value > most:
        raise ConfigError(f"{name} is {value}; at most {most} is allowed")


def _check_divisible(name: str, value: int, by_name: str, by: int) -> None:
    if by < 1 or value % by:
        raise ConfigError(f"{name} is {value}; it must be divisible by {by_name}, which is {by}")


def _from_version_1(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Rewrites the values of version 1 as version 2. Mistakes are kept, for the strict reader to report."""
    text, temporal = values.get("text"), values.get("temporal")
    changed = values | {"schema_version": SCHEMA_VERSION}
    if isinstance(text, dict):
        changed["text"] = _renamed(text, "max_positions", "max_context")
    if isinstance(temporal, dict):
        read = _V1_READ.get(str(temporal.get("encoder")), ())
        for name in _V1_REFUSED:
            if name not in read and temporal.get(name, _V1_SETTINGS[name]) != _V1_SETTINGS[name]:
                raise ConfigError(f"{path}: temporal.{name} has no effect on {temporal.get('encoder')}; leave it out")
        others = {name: value for name, value in temporal.items() if name not in _V1_SETTINGS}
        settings = {name: temporal.get(name, _V1_SETTINGS[name]) for name in read}
        changed["temporal"] = _renamed(others, "num_tokens", "num_video_tokens") | {"settings": settings}
    return changed


def _renamed(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in values.items()}


PRESETS: dict[str, ModelConfig] = {
    "xgen-mm-vid": ModelConfig(
        name="xgen-mm-vid",
        num_frames=8,
        vision=VisionConfig(
            image_size=384, patch_size=14, hidden_size=1152, intermediate_size=4304, num_layers=27, num_heads=16
        ),
        resampler=ResamplerConfig(num_latents=128, depth=6, num_heads=16, head_dim=96),
        temporal=TemporalConfig(
            encoder="gttm",
            num_video_tokens=128,
            settings={"num_slots": 4, "pooling": "mean", "num_layers": 4, "num_heads": 8, "ff_mult": 4},
        ),
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
        temporal=TemporalConfig(encoder="tokenlearner", num_video_tokens=32, settings={"time_stamps": True}),
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
