"""What an encoder's file says about its encoder: one ``EncoderSpec``, exported as ``ENCODER``.

The rest of the code reads encoders through it alone. Loads without torch, so that names and specs can be passed around
by code that builds nothing. Not here: which encoders there are (``registry.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

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

LEARNED_TOKENS = (16, 32, 64, 128, 256)  # counts that an encoder with learned pooling is built for
_USUAL_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """What comes in: ``num_frames`` frames of ``num_latents`` tokens each."""

    num_frames: int
    num_latents: int


@dataclass(frozen=True)
class TokenCounts:
    """The token counts that an encoder can give for clips of one size."""

    allowed: tuple[int, ...]  # ascending, never empty
    usual: int | None = None  # where nobody asks for one; None: 32 if it is allowed, else the largest
    per_frame: bool = False  # whether a model's count grows with the frames of its clips

    @property
    def default(self) -> int:
        """The count of a model for which none is asked."""
        if self.usual is not None:
            return self.usual
        return _USUAL_TOKENS if _USUAL_TOKENS in self.allowed else self.allowed[-1]


@dataclass(frozen=True, kw_only=True)
class CheckpointForm:
    """What the tensors of an authors' checkpoint say about the encoder that they belong to."""

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


def _no_authors(shapes: Shapes, config: ModelConfig) -> CheckpointForm | None:
    return None


def _every_frame(num_frames: int) -> slice:
    return slice(None)


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(Generic[S]):
    """One temporal encoder. Only the first three fields have to be given."""

    # A frozen dataclass whose defaults are the released form. Its ``__post_init__`` may refuse values (ConfigError).
    settings: type[S]
    # Builds the module with random weights, for a config whose settings and count are checked.
    module: Callable[[ModelConfig, S], TemporalEncoder]
    # The token rule.
    token_counts: Callable[[S, ClipSize], TokenCounts]
    # Settings at the size of a preset, by its name, where they are not the defaults.
    presets: Mapping[str, S] = field(default_factory=dict)
    # The forms that may give a count, the preferred one first: (settings, names of the settings that the user gave and
    # that no form may change, the count or None).
    forms: Callable[[S, Collection[str], int | None], Sequence[S]] = _one_form
    # Raises ConfigError where settings and the rest of the model do not fit together.
    check: Callable[[S, ModelConfig], None] = _nothing_to_check
    # The form in an authors' checkpoint, from its tensors and a config that is right but for the temporal encoder.
    # None: they are not this encoder's. An encoder without weights answers to no tensors at all.
    find: Callable[[Shapes, ModelConfig], CheckpointForm | None] = _no_authors
    # Which of so many frames it reads.
    frames_read: Callable[[int], slice] = _every_frame

    @property
    def setting_names(self) -> tuple[str, ...]:
        """The settings that it reads."""
        return tuple(item.name for item in dataclasses.fields(self.settings))  # type: ignore[arg-type]

    def at_preset(self, preset_name: str) -> S:
        """Settings at the size of a preset; those of the released form where the preset has none of its own."""
        return self.presets[preset_name] if preset_name in self.presets else self.settings()


def at_least_one(settings: Any, *names: str) -> None:
    """Refuses counts and sizes below 1.

    Raises:
        ConfigError: says which.
    """
    for name in names:
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} is {getattr(settings, name)}; at least 1 is needed")


def check_heads(num_heads: int, config: ModelConfig) -> None:
    """Refuses a number of heads that the width of a token cannot be divided into.

    Raises:
        ConfigError: says both numbers.
    """
    width = config.vision.hidden_size
    if width % num_heads:
        raise ConfigError(f"vision.hidden_size is {width}, which num_heads {num_heads} of the encoder does not divide")
