"""The temporal encoder of a config: reading and checking its settings, choosing another one, building its module.

``config.temporal`` holds settings as they are in ``config.json``; only the encoder's own file knows what they mean.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from blip3v import strict_json
from blip3v.config import MAX_LAYERS, MAX_SIZE, ModelConfig
from blip3v.errors import ConfigError
from blip3v.model.temporal.registry import find_encoder
from blip3v.model.temporal.spec import ClipSize, EncoderSpec
from blip3v.units import format_count

if TYPE_CHECKING:
    from blip3v.model.temporal.base import TemporalEncoder

__all__ = [
    "build_temporal",
    "frames_read",
    "has_resampler",
    "resampler_depth",
    "temporal_settings",
    "with_encoder",
    "with_frames",
]


def temporal_settings(config: ModelConfig) -> Any:
    """Returns the settings of the config's encoder as its own dataclass, after checking them and the token count.

    Raises:
        ConfigError: an unknown encoder or setting, invalid settings, or a count that the encoder cannot produce.
    """
    spec, name = find_encoder(config.temporal.encoder), config.temporal.encoder
    settings = _parse(spec, name, config.temporal.settings)
    allowed = spec.token_counts(settings, _clip(config)).allowed
    if config.num_video_tokens not in allowed:
        raise _wrong_count(name, config.num_video_tokens, config.num_frames, allowed)
    with _naming_encoder(name):
        spec.check(settings, config)
    return settings


def build_temporal(config: ModelConfig) -> TemporalEncoder:
    """Builds the config's temporal encoder with random weights.

    Raises:
        ConfigError: as for ``temporal_settings``.
    """
    return find_encoder(config.temporal.encoder).module(config, temporal_settings(config))


def has_resampler(config: ModelConfig) -> bool:
    """Whether the config's model has a resampler; without one its encoder reads the vision encoder's patches."""
    return find_encoder(config.temporal.encoder).reads == "latents"


def resampler_depth(config: ModelConfig) -> int:
    """Returns the number of blocks in the config's resampler; 0: the model has none."""
    return config.resampler.depth if has_resampler(config) else 0


def frames_read(config: ModelConfig) -> slice:
    """Returns the frames of a clip that the config's encoder reads."""
    return find_encoder(config.temporal.encoder).frames_read(config.num_frames)


def with_encoder(
    config: ModelConfig,
    encoder: str,
    *,
    num_video_tokens: int | None = None,
    num_frames: int | None = None,
    **options: object,
) -> ModelConfig:
    """Returns the config with another temporal encoder, token count or frame count.

    The config's own encoder keeps its settings; another one gets the size of the config's preset and its released form.
    If only another form produces ``num_video_tokens``, that form is used, unless ``options`` rule it out.

    Args:
        config: the model.
        encoder: one of ``encoder_names()``.
        num_video_tokens: tokens out; None: the encoder's usual count.
        num_frames: frames per clip; None: unchanged.
        **options: settings of the encoder by name.

    Raises:
        ConfigError: an unknown encoder, a count that it cannot produce, or an option that it does not have.
    """
    spec = find_encoder(encoder)
    same_encoder = encoder == config.temporal.encoder
    base = _parse(spec, encoder, config.temporal.settings) if same_encoder else spec.at_preset(config.name)
    _refuse_unknown_options(spec, encoder, options)
    requested = _parse(spec, encoder, dataclasses.asdict(base) | options)
    frames = config.num_frames if num_frames is None else num_frames
    clip = _clip(dataclasses.replace(config, num_frames=frames))
    forms = [(form, spec.token_counts(form, clip)) for form in spec.forms(requested, tuple(options), num_video_tokens)]
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
    """Returns the config of the same model and weights for clips of another length; a count per frame scales with it.

    Raises:
        ConfigError: the encoder cannot produce its tokens from ``num_frames`` frames.
    """
    spec, settings = find_encoder(config.temporal.encoder), temporal_settings(config)
    count, of_clip = config.num_video_tokens, spec.token_counts(settings, _clip(config))
    if of_clip.per_frame:  # the same of its counts, for the other length
        of_other = spec.token_counts(settings, _clip(dataclasses.replace(config, num_frames=num_frames)))
        count = of_other.allowed[of_clip.allowed.index(count)]
    return _checked(config, config.temporal.encoder, settings, num_video_tokens=count, num_frames=num_frames)


def _parse(spec: EncoderSpec[Any], name: str, values: Mapping[str, Any]) -> Any:
    with _naming_encoder(name):
        settings = strict_json.from_dict(spec.settings, values, "settings")
        for setting, value in dataclasses.asdict(settings).items():
            most = MAX_LAYERS if setting == "num_layers" else MAX_SIZE
            if type(value) is int and value > most:
                raise ConfigError(f"{setting} is {value}; at most {most} is allowed")
    return settings


@contextmanager
def _naming_encoder(name: str) -> Iterator[None]:
    """Prefixes the encoder's name to errors from its own file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _checked(
    config: ModelConfig, encoder: str, settings: Any, *, num_video_tokens: int, num_frames: int
) -> ModelConfig:
    # Through JSON, so that the config equals the one that is read back from its file.
    values = json.loads(json.dumps(dataclasses.asdict(settings)))
    temporal = dataclasses.replace(config.temporal, encoder=encoder, num_video_tokens=num_video_tokens, settings=values)
    changed = dataclasses.replace(config, temporal=temporal, num_frames=num_frames)
    temporal_settings(changed)
    return changed


def _clip(config: ModelConfig) -> ClipSize:
    return ClipSize(
        num_frames=config.num_frames, num_latents=config.resampler.num_latents, num_patches=config.vision.num_patches
    )


def _refuse_unknown_options(spec: EncoderSpec[Any], name: str, options: Iterable[str]) -> None:
    known = spec.setting_names
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            listed = f"its settings are {', '.join(known)}" if known else "it has no settings"
            hint = f"did you mean {near[0]!r}?" if near else listed
            raise ConfigError(f"{option} has no effect on {name}; {hint}")


def _wrong_count(name: str, count: int, num_frames: int, allowed: Iterable[int]) -> ConfigError:
    counts = ", ".join(map(str, sorted(allowed)))
    what = f"{format_count(count, 'token')} from {format_count(num_frames, 'frame')}"
    return ConfigError(f"{name} cannot produce {what}; allowed: {counts}")
