"""What an encoder's file declares about its encoder: one ``EncoderSpec``, exported as ``ENCODER``.

The rest of the code sees encoders only through it. This module loads without torch, so that code that builds nothing
can pass names and specs around. Not here: which encoders exist (``registry.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from blip3v.config import ModelConfig
from blip3v.errors import ConfigError

if TYPE_CHECKING:
    from blip3v.model.temporal.base import TemporalEncoder
    from blip3v.model.weight_file import UnusedKey

__all__ = [
    "LEARNED_TOKENS",
    "CheckpointForm",
    "ClipSize",
    "EncoderSpec",
    "NoSettings",
    "Shapes",
    "TokenCounts",
    "at_least_one",
    "check_heads",
]

S = TypeVar("S")

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by their names after ``temporal_encoder.``

LEARNED_TOKENS = (16, 32, 64, 128, 256)  # the counts that encoders with learned pooling are built for
_USUAL_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """The size of an encoder's input: ``num_frames`` frames of ``num_latents`` tokens, or of ``num_patches``, each."""

    num_frames: int
    num_latents: int  # of the resampler
    num_patches: int  # of the vision encoder, a square number


@dataclass(frozen=True)
class TokenCounts:
    """The token counts that an encoder can produce for clips of one size."""

    allowed: tuple[int, ...]  # ascending, never empty
    usual: int | None = None  # unless one is requested; None: 32 if allowed, else the largest
    per_frame: bool = False  # whether a model's count grows with the number of frames

    @property
    def default(self) -> int:
        """The count of a model for which none is requested."""
        if self.usual is not None:
            return self.usual
        return _USUAL_TOKENS if _USUAL_TOKENS in self.allowed else self.allowed[-1]


@dataclass(frozen=True, kw_only=True)
class CheckpointForm:
    """What the tensors of an authors' checkpoint say about their encoder."""

    num_video_tokens: int | None = None  # None: the encoder's usual count
    options: Mapping[str, object] = field(default_factory=dict)  # settings that follow from the shapes
    renamed: Mapping[str, str] = field(default_factory=dict)  # a part's name in the checkpoint -> in our module
    unused_keys: tuple[UnusedKey, ...] = ()  # tensors that the authors' code builds and never reads


@dataclass(frozen=True)
class NoSettings:
    """The settings of an encoder that has none."""


def _one_form(settings: S, given: Collection[str], num_video_tokens: int | None) -> Sequence[S]:
    return (settings,)


def _nothing_to_check(settings: object, config: ModelConfig) -> None:
    return


def _not_in_checkpoints(shapes: Shapes, config: ModelConfig) -> CheckpointForm | None:
    return None


def _every_frame(num_frames: int) -> slice:
    return slice(None)


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(Generic[S]):
    """One temporal encoder. Only the first three fields are required."""

    # A frozen dataclass whose defaults are the released form. Its ``__post_init__`` may reject values (ConfigError).
    settings: type[S]
    # Builds the module with random weights, from a config whose settings and count have been checked.
    module: Callable[[ModelConfig, S], TemporalEncoder]
    # The token counts for given settings and clip size.
    token_counts: Callable[[S, ClipSize], TokenCounts]
    # Settings at the size of a preset, by preset name, if they are not the defaults.
    presets: Mapping[str, S] = field(default_factory=dict)
    # The forms that may produce a count, the preferred one first. Arguments: settings, names of the settings that the
    # user gave and that no form may change, the count or None.
    forms: Callable[[S, Collection[str], int | None], Sequence[S]] = _one_form
    # Raises ConfigError if the settings do not fit the rest of the model.
    check: Callable[[S, ModelConfig], None] = _nothing_to_check
    # The form in an authors' checkpoint, from its tensors and a config that is right but for the temporal encoder.
    # None: the tensors are not this encoder's. An encoder without weights matches if there are no tensors at all.
    find: Callable[[Shapes, ModelConfig], CheckpointForm | None] = _not_in_checkpoints
    # Which frames it reads, given their number.
    frames_read: Callable[[int], slice] = _every_frame
    # What it turns into video tokens: the resampler's latents, or the vision encoder's patches. A model whose encoder
    # reads patches has no resampler.
    reads: Literal["latents", "patches"] = "latents"

    @property
    def setting_names(self) -> tuple[str, ...]:
        """The names of its settings."""
        return tuple(item.name for item in dataclasses.fields(self.settings))  # type: ignore[arg-type]

    def at_preset(self, preset_name: str) -> S:
        """Returns the settings at the size of a preset; the released form's if the preset has none of its own."""
        return self.presets[preset_name] if preset_name in self.presets else self.settings()


def at_least_one(settings: Any, *names: str) -> None:
    """Rejects counts and sizes below 1.

    Raises:
        ConfigError: names the setting and its value.
    """
    for name in names:
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} is {getattr(settings, name)}; at least 1 is needed")


def check_heads(num_heads: int, config: ModelConfig) -> None:
    """Rejects a number of heads that does not divide the token width.

    Raises:
        ConfigError: names both numbers.
    """
    width = config.vision.hidden_size
    if width % num_heads:
        raise ConfigError(f"vision.hidden_size is {width}, which num_heads {num_heads} of the encoder does not divide")
