"""Multiply-adds of the matrix products in each temporal encoder, for one clip.

Written from the modules in ``blip3v/model/temporal``, but without PyTorch, which measuring does not need. An encoder
that is not here (another package's) has no count, and then no share of a limit.
"""

# Shapes: F frames, L latents of a frame, D width, M video tokens, N tokens, G memory slots.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blip3v.config import ModelConfig

__all__ = ["joined_frames", "temporal_multiply_adds"]

_Settings = dict[str, Any]

# Encoders that read patches, of which they only take means and maxima.
_OF_PATCHES = ("video-chatgpt", "pllava", "slowfast-llava", "llama-vid-content")


def temporal_multiply_adds(config: ModelConfig) -> int | None:
    """Multiply-adds for ``config.num_frames`` frames; None: the encoder or one of its settings is not known here."""
    count = _COUNTS.get(config.temporal.encoder)
    try:
        return None if count is None else count(config, config.temporal.settings)
    except KeyError:
        return None


def joined_frames(config: ModelConfig) -> tuple[int, int]:
    """How the resampler sees a clip: the number of its inputs, and of the patches in each. No inputs: there is none."""
    num_frames, num_patches = config.num_frames, config.vision.num_patches
    if config.temporal.encoder in _OF_PATCHES:
        return 0, num_patches
    if config.temporal.encoder == "perceiver":
        return 1, num_frames * num_patches
    return 1 if config.temporal.encoder == "single-frame" else num_frames, num_patches


def _token_learner(num_inputs: int, dim: int, num_tokens: int) -> int:
    """The MLP of the scores, D to 2M to M, and the weighted sums."""
    scores = num_inputs * (dim * 2 * num_tokens + 2 * num_tokens * num_tokens)
    return scores + num_tokens * num_inputs * dim


def _process_layers(num_tokens: int, dim: int, settings: _Settings) -> int:
    """Self-attention without an output projection, and a feed-forward."""
    attention = 3 * num_tokens * dim**2 + 2 * num_tokens**2 * dim
    feed_forward: int = 2 * num_tokens * dim * settings["ff_mult"] * dim
    num_layers: int = settings["num_layers"]
    return num_layers * (attention + feed_forward)


def _nothing(config: ModelConfig, settings: _Settings) -> int:
    return 0


def _tokenlearner(config: ModelConfig, settings: _Settings) -> int:
    num_inputs = config.num_frames * config.resampler.num_latents
    return _token_learner(num_inputs, config.vision.hidden_size, config.num_video_tokens)


def _per_frame(config: ModelConfig, settings: _Settings) -> int:
    per_frame = config.num_video_tokens // config.num_frames
    return config.num_frames * _token_learner(config.resampler.num_latents, config.vision.hidden_size, per_frame)


def _transformer(config: ModelConfig, settings: _Settings) -> int:
    return _process_layers(config.num_frames * config.resampler.num_latents, config.vision.hidden_size, settings)


def _pooling(config: ModelConfig, settings: _Settings) -> int:
    """The last step of encoders with groups."""
    if settings["pooling"] == "mean":
        return 0
    num_inputs = config.resampler.num_latents * settings["num_slots"]
    return _token_learner(num_inputs, config.vision.hidden_size, config.num_video_tokens)


def _gttm(config: ModelConfig, settings: _Settings) -> int:
    dim, slots = config.vision.hidden_size, settings["num_slots"]
    step = _process_layers(slots + 1, dim, settings) + _token_learner(2 * slots + 1, dim, slots)
    return config.num_frames * config.resampler.num_latents * step + _pooling(config, settings)


def _mambalike(config: ModelConfig, settings: _Settings) -> int:
    slots = settings["num_slots"]
    gates: int = config.vision.hidden_size * (2 * slots + 2 * slots**2)
    return config.num_frames * config.resampler.num_latents * gates + _pooling(config, settings)


def _ttm(config: ModelConfig, settings: _Settings) -> int:
    dim, latents = config.vision.hidden_size, config.resampler.num_latents
    memory, process = settings["memory_tokens"], settings["process_tokens"]
    step = _token_learner(memory + latents, dim, process) + _process_layers(process, dim, settings)
    step += _token_learner(memory + process, dim, memory)
    if not settings["memory_output"]:
        step += _token_learner(process, dim, settings["step_tokens"])
    return config.num_frames * step


_COUNTS: dict[str, Callable[[ModelConfig, _Settings], int]] = {
    **dict.fromkeys(("none", "mean", "max", "single-frame", "space-time-pool", "perceiver", *_OF_PATCHES), _nothing),
    "tokenlearner": _tokenlearner,
    "per-frame": _per_frame,
    "transformer": _transformer,
    "gttm": _gttm,
    "mambalike": _mambalike,
    "ttm": _ttm,
}
