"""The temporal encoder of a config: its settings read and checked, another one chosen, its module built.

``config.temporal`` holds settings as they stand in ``config.json``; only the encoder's own file knows what they mean.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from blip3v import strict_json
from blip3v.config import ModelConfig
from blip3v.errors import ConfigError
from blip3v.model.temporal.registry import find_encoder
from blip3v.model.temporal.spec import ClipSize, EncoderSpec

if TYPE_CHECKING:
    from blip3v.model.temporal.base import TemporalEncoder

__all__ = ["build_temporal", "frames_read", "temporal_settings", "with_encoder", "with_frames"]


def temporal_settings(config: ModelConfig) -> Any:
    """The settings of the config's encoder, as its own dataclass, after every check of them and of the token count.

    Raises:
        ConfigError: an unknown encoder or setting, settings that do not fit, or a count that the encoder cannot give.
    """
    spec, name = find_encoder(config.temporal.encoder), config.temporal.encoder
    settings = _parse(spec, name, config.temporal.settings)
    allowed = spec.token_counts(settings, _clip(config)).allowed
    if config.num_video_tokens not in allowed:
        raise _wrong_count(name, config.num_video_tokens, config.num_frames, allowed)
    with _told_by(name):
        spec.check(settings, config)
    return settings


def build_temporal(config: ModelConfig) -> TemporalEncoder:
    """The config's temporal encoder, with random weights.

    Raises:
        ConfigError: as ``temporal_settings``.
    """
    return find_encoder(config.temporal.encoder).module(config, temporal_settings(config))


def frames_read(config: ModelConfig) -> slice:
    """Which frames of a clip the config's encoder reads."""
    return find_encoder(config.temporal.encoder).frames_read(config.num_frames)


def with_encoder(
    config: ModelConfig,
    encoder: str,
    *,
    num_video_tokens: int | None = None,
    num_frames: int | None = None,
    **options: object,
) -> ModelConfig:
    """The same model with another temporal encoder, token count or frame count.

    The config's own encoder keeps its settings; another one comes at the size of the config's preset, in its released
    form. Where only another form gives ``num_video_tokens`` it is that one, unless ``options`` settle it.

    Args:
        config: the model.
        encoder: one of ``encoder_names()``.
        num_video_tokens: tokens out; None: the encoder's usual count.
        num_frames: frames of a clip; None: as before.
        **options: settings of the encoder by name.

    Raises:
        ConfigError: an unknown encoder, a count that it cannot give, or an option that it does not have.
    """
    spec = find_encoder(encoder)
    own = encoder == config.temporal.encoder
    start = _parse(spec, encoder, config.temporal.settings) if own else spec.at_preset(config.name)
    _refuse_without_effect(spec, encoder, options)
    asked = _parse(spec, encoder, dataclasses.asdict(start) | options)
    frames = config.num_frames if num_frames is None else num_frames
    clip = ClipSize(num_frames=frames, num_latents=config.resampler.num_latents)
    forms = [(form, spec.token_counts(form, clip)) for form in spec.forms(asked, tuple(options), num_video_tokens)]
    if num_video_tokens is None:
        chosen, count = forms[0][0], forms[0][1].default
    else:
        count = num_video_tokens
        fitting = [form for form, counts in forms if count in counts.allowed]
        if not fitting:
            raise _wrong_count(encoder, count, frames, {n for _, counts in forms for n in counts.allowed})
        chosen = fitting[0]
    return _checked(config, encoder, chosen, num_video_tokens=count, num_frames=frames)


def with_frames(config: ModelConfig, num_frames: int) -> ModelConfig:
    """The same model, weights included, for clips of another length; a count per frame follows.

    Raises:
        ConfigError: the encoder cannot give its tokens from so few frames.
    """
    spec, settings = find_encoder(config.temporal.encoder), temporal_settings(config)
    count = config.num_video_tokens
    if spec.token_counts(settings, _clip(config)).per_frame:
        count = count // config.num_frames * num_frames
    return _checked(config, config.temporal.encoder, settings, num_video_tokens=count, num_frames=num_frames)


def _parse(spec: EncoderSpec[Any], name: str, values: Mapping[str, Any]) -> Any:
    with _told_by(name):
        return strict_json.from_dict(spec.settings, values, "settings")


@contextmanager
def _told_by(name: str) -> Iterator[None]:
    """Puts the encoder's name before what its own file refuses."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _checked(
    config: ModelConfig, encoder: str, settings: Any, *, num_video_tokens: int, num_frames: int
) -> ModelConfig:
    # As JSON gives them back, so that a config equals the one that is read from its file.
    values = json.loads(json.dumps(dataclasses.asdict(settings)))
    temporal = dataclasses.replace(config.temporal, encoder=encoder, num_video_tokens=num_video_tokens, settings=values)
    changed = dataclasses.replace(config, temporal=temporal, num_frames=num_frames)
    temporal_settings(changed)
    return changed


def _clip(config: ModelConfig) -> ClipSize:
    return ClipSize(num_frames=config.num_frames, num_latents=config.resampler.num_latents)


def _refuse_without_effect(spec: EncoderSpec[Any], name: str, options: Iterable[str]) -> None:
    read = spec.setting_names
    for option in options:
        if option not in read:
            near = difflib.get_close_matches(option, read, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it reads {', '.join(read) or 'no setting'}"
            raise ConfigError(f"{option} has no effect on {name}; {hint}")


def _wrong_count(name: str, count: int, num_frames: int, allowed: Iterable[int]) -> ConfigError:
    counts = ", ".join(map(str, sorted(allowed)))
    return ConfigError(f"{name} cannot give {count} tokens for {num_frames} frames; allowed: {counts}")
