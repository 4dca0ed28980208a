"""The temporal encoder's part of the config: names, settings, and the token counts that each encoder can give.

``blip3v.config`` gives the public names out. The default of a setting is the form of the released code; the paper's
form, where it differs, is another value of the setting (``docs/encoders.md``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from blip3v import strict_json
from blip3v.errors import ConfigError

__all__ = ["ENCODERS", "EncoderName", "Pooling", "TemporalConfig", "check_temporal", "choose_form", "with_frames"]

EncoderName = Literal[
    "tokenlearner",
    "gttm",
    "ttm",
    "transformer",
    "perceiver",
    "mean",
    "max",
    "per-frame",
    "space-time-pool",
    "none",
    "single-frame",
    "mambalike",
]
ENCODERS: tuple[EncoderName, ...] = get_args(EncoderName)
Pooling = Literal["mean", "sum", "attention"]


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """The temporal encoder: the tokens of all frames become ``num_video_tokens``."""

    encoder: EncoderName
    num_video_tokens: int  # tokens out for ``ModelConfig.num_frames`` frames
    num_heads: int = 8  # of the attention inside gttm, ttm and transformer
    num_layers: int = 4  # of gttm, ttm and transformer; released: 4, of ttm 2
    num_slots: int = 4  # memory slots of a group of gttm and mambalike
    ff_mult: int = 4  # feed-forward inside gttm, ttm and transformer
    time_stamps: bool = False  # tokenlearner, ttm: add the time-stamp encoding of gttm to the tokens
    pooling: Pooling = "mean"  # mean: over frames, or sum; gttm, mambalike: over slots, or attention over all memories
    process_tokens: int = 64  # ttm: tokens that a frame and the memory are read into
    memory_tokens: int = 128  # ttm: memory
    step_tokens: int = 16  # ttm: tokens out of each frame
    memory_output: bool = False  # ttm: the last memory is the output, instead of each frame's tokens


_LAYER_SETTINGS = ("num_heads", "num_layers", "ff_mult")
# The settings that an encoder reads; one that it does not read is refused where somebody asks for it.
_SETTINGS: dict[EncoderName, tuple[str, ...]] = {
    "tokenlearner": ("time_stamps",),
    "gttm": (*_LAYER_SETTINGS, "num_slots", "pooling"),
    "ttm": (*_LAYER_SETTINGS, "time_stamps", "process_tokens", "memory_tokens", "step_tokens", "memory_output"),
    "transformer": _LAYER_SETTINGS,
    "mean": ("pooling",),
    "mambalike": ("num_slots", "pooling"),
}
_POOLINGS: dict[EncoderName, tuple[Pooling, ...]] = {
    "gttm": ("mean", "attention"),
    "mambalike": ("mean", "attention"),
    "mean": ("mean", "sum"),
}
# Settings of one encoder alone: another one starts from the released form.
_OWN_SETTINGS = ("pooling", "process_tokens", "memory_tokens", "step_tokens", "memory_output")
_RELEASED_LAYERS = {"ttm": 2}
_USUAL_LAYERS = 4

_LEARNED_TOKENS = (16, 32, 64, 128, 256)
_FRAME_TOKENS = (2, 4, 8, 16, 32)  # of a frame, by per-frame
_USUAL_TOKENS, _USUAL_FRAME_TOKENS = 32, 4


def choose_form(
    own: TemporalConfig,
    encoder: str,
    *,
    num_video_tokens: int | None,
    num_frames: int,
    num_latents: int,
    options: Mapping[str, object],
) -> TemporalConfig:
    """The settings of ``encoder``, in the first of its forms that gives ``num_video_tokens``.

    Args:
        own: the config to start from. Sizes carry over to another encoder; what is another encoder's own does not.
        encoder: one of ``ENCODERS``.
        num_video_tokens: tokens out; None: the usual count of the form.
        num_frames: frames of a clip.
        num_latents: resampler tokens of a frame.
        options: fields of ``TemporalConfig`` by name, which go before the rest.

    Raises:
        ConfigError: an unknown encoder or option, an option without effect, or a count that the encoder cannot give.
    """
    if encoder not in ENCODERS:
        raise ConfigError(f"encoder {encoder!r} is unknown; allowed: {', '.join(ENCODERS)}")
    values = dataclasses.asdict(own) | {"encoder": encoder}
    if encoder != own.encoder:
        defaults = {field.name: field.default for field in dataclasses.fields(TemporalConfig)}
        values |= {name: defaults[name] for name in _OWN_SETTINGS} | {"num_layers": _scaled_layers(own, encoder)}
    asked = strict_json.from_dict(TemporalConfig, values | dict(options), "the temporal encoder")
    forms = _forms(asked, num_video_tokens, options)
    size = {"num_frames": num_frames, "num_latents": num_latents}
    if num_video_tokens is None:
        chosen = dataclasses.replace(forms[0], num_video_tokens=_usual_tokens(forms[0], **size))
    else:
        fitting = [form for form in forms if num_video_tokens in _allowed_tokens(form, **size)]
        if not fitting:
            raise _wrong_count(
                asked, num_video_tokens, num_frames, _union(_allowed_tokens(form, **size) for form in forms)
            )
        chosen = dataclasses.replace(fitting[0], num_video_tokens=num_video_tokens)
    _refuse_without_effect(chosen, options)
    return chosen


def with_frames(temporal: TemporalConfig, *, old: int, new: int) -> TemporalConfig:
    """The same encoder for clips of ``new`` frames instead of ``old``; a count of so many a frame grows with them."""
    by_frame = temporal.encoder in ("none", "per-frame") or (temporal.encoder == "ttm" and not temporal.memory_output)
    return (
        dataclasses.replace(temporal, num_video_tokens=temporal.num_video_tokens // old * new) if by_frame else temporal
    )


def check_temporal(temporal: TemporalConfig, *, num_frames: int, num_latents: int) -> None:
    """Refuses settings that no encoder, or not this one, can have.

    Raises:
        ConfigError: says which, and what is allowed.
    """
    name = temporal.encoder
    for setting in (
        "num_heads",
        "num_layers",
        "num_slots",
        "ff_mult",
        "process_tokens",
        "memory_tokens",
        "step_tokens",
    ):
        if getattr(temporal, setting) < 1:
            raise ConfigError(f"temporal.{setting} is {getattr(temporal, setting)}; at least 1 is needed")
    poolings = _POOLINGS.get(name, ("mean",))
    if temporal.pooling not in poolings:
        raise ConfigError(f"{name} cannot pool by {temporal.pooling!r}; allowed: {', '.join(poolings)}")
    if temporal.memory_output and name != "ttm":
        raise ConfigError(f"temporal.memory_output has no effect on {name}; leave it false")
    allowed = _allowed_tokens(temporal, num_frames=num_frames, num_latents=num_latents)
    if temporal.num_video_tokens not in allowed:
        raise _wrong_count(temporal, temporal.num_video_tokens, num_frames, allowed)
    if temporal.memory_output and temporal.memory_tokens != temporal.num_video_tokens:
        raise ConfigError(
            f"ttm with memory_output gives its {temporal.memory_tokens} memory_tokens, not "
            f"{temporal.num_video_tokens}; make the two equal"
        )


def _forms(asked: TemporalConfig, num_video_tokens: int | None, options: Mapping[str, object]) -> list[TemporalConfig]:
    """What was asked for first, then the other way to an output, unless the options settle it."""
    if asked.encoder in ("gttm", "mambalike"):
        others = [] if "pooling" in options else [dataclasses.replace(asked, pooling=p) for p in ("mean", "attention")]
        return [asked, *others]
    if asked.encoder != "ttm":
        return [asked]
    # The memory is the output, so a count sets its size.
    size = asked.memory_tokens if "memory_tokens" in options or num_video_tokens is None else num_video_tokens
    by_memory = dataclasses.replace(asked, memory_output=True, memory_tokens=max(size, 1))
    by_frame = dataclasses.replace(asked, memory_output=False)
    if "memory_output" in options:
        return [by_memory] if asked.memory_output else [by_frame]
    return [by_memory, by_frame] if asked.memory_output else [by_frame, by_memory]


def _allowed_tokens(temporal: TemporalConfig, *, num_frames: int, num_latents: int) -> tuple[int, ...]:
    """Token counts that this form of the encoder can give; never empty."""
    name = temporal.encoder
    if name == "tokenlearner" or temporal.pooling == "attention" or temporal.memory_output:
        return _LEARNED_TOKENS
    if name == "none":
        return (num_latents * num_frames,)
    if name == "ttm":
        return (temporal.step_tokens * num_frames,)
    if name == "per-frame":
        return tuple(count * num_frames for count in _FRAME_TOKENS)
    if name == "transformer":
        return _union([(m for m in _LEARNED_TOKENS if m <= num_latents * num_frames), (num_latents,)])
    if name == "perceiver":
        return _union([(m for m in _LEARNED_TOKENS if m <= num_latents), (num_latents,)])
    if name == "space-time-pool":
        return _union([(m for m in _LEARNED_TOKENS if num_latents % m == 0), (num_latents,)])
    return (num_latents,)


def _usual_tokens(temporal: TemporalConfig, *, num_frames: int, num_latents: int) -> int:
    allowed = _allowed_tokens(temporal, num_frames=num_frames, num_latents=num_latents)
    if temporal.memory_output:
        return temporal.memory_tokens
    if temporal.encoder == "per-frame":
        return _USUAL_FRAME_TOKENS * num_frames
    if temporal.encoder == "transformer":
        return num_latents  # the positions of the last frame
    return _USUAL_TOKENS if _USUAL_TOKENS in allowed else allowed[-1]


def _scaled_layers(own: TemporalConfig, encoder: str) -> int:
    """The depth of another encoder, as far from its released depth as ``own`` is from its own."""
    old, new = (_RELEASED_LAYERS.get(name, _USUAL_LAYERS) for name in (own.encoder, encoder))
    return max(1, own.num_layers * new // old)


def _refuse_without_effect(chosen: TemporalConfig, options: Mapping[str, object]) -> None:
    read = _SETTINGS.get(chosen.encoder, ())
    for name in options:
        if name not in read:
            raise ConfigError(f"{name} has no effect on {chosen.encoder}; it reads {', '.join(read) or 'no setting'}")
    if chosen.memory_output and "step_tokens" in options:
        raise ConfigError("step_tokens has no effect on ttm with memory_output; leave one of the two out")


def _union(counts: Iterable[Iterable[int]]) -> tuple[int, ...]:
    return tuple(sorted({count for some in counts for count in some}))


def _wrong_count(temporal: TemporalConfig, count: int, num_frames: int, allowed: Iterable[int]) -> ConfigError:
    counts = ", ".join(map(str, allowed))
    return ConfigError(f"{temporal.encoder} cannot give {count} tokens for {num_frames} frames; allowed: {counts}")
