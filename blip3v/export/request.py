"""What an export is asked for, checked as far as names and configs tell: before torch is imported."""

from __future__ import annotations

from pathlib import Path

from blip3v.config import ModelConfig, preset
from blip3v.errors import UsageError
from blip3v.folders import check_checkpoint, kind_of, shipped_model
from blip3v.model.arguments import check_opening
from blip3v.units import format_count

__all__ = ["check_own_weights", "check_request", "folder_name"]


def check_request(
    *,
    model: Path | None = None,
    preset_name: str | None = None,
    init: str | None = None,
    encoder: str | None = None,
    num_frames: int | None = None,
    num_video_tokens: int | None = None,
) -> str | None:
    """Checks the arguments of ``resolve_source`` without opening the weights.

    Returns:
        The bundle's default name without the precision, or None if only opening the source tells it.

    Raises:
        UsageError: arguments that exclude each other, or that the weights do not match.
        ConfigError: a preset that does not exist, or an invalid config.
        ArtifactError: the model is not a checkpoint.
    """
    if model is not None and (preset_name is not None or init is not None):
        ignored = "preset_name" if preset_name is not None else "init"
        raise UsageError(
            f"the model {model} has its own config and weights",
            remedy=f"`{ignored}` has no effect with `model`; leave one out",
        )
    base = preset(preset_name or "tiny")
    if init is not None:
        own = encoder or base.temporal.encoder
        return None if num_video_tokens is None else _name(base.name, own, num_video_tokens, random_init=True)
    if model is None and base.name != "tiny":
        raise UsageError(
            f"no weights are shipped for the preset {base.name}",
            remedy="pass a model folder as `model`, or use random weights with `init='random'`",
        )
    folder = shipped_model(encoder or base.temporal.encoder) if model is None else model
    check_checkpoint(folder, kinds=("model folder", "released"))
    check_opening(folder, tokenizer=None, encoder=None, num_frames=None)
    if kind_of(folder) != "model folder":
        return None
    config = ModelConfig.load(folder / "config.json")
    if num_frames not in (None, config.num_frames):
        num_video_tokens = None  # whether the count grows with the frames, only the encoder knows
    check_own_weights(folder, config, encoder=encoder, num_video_tokens=num_video_tokens)
    return folder_name(config, random_init=False) if num_frames in (None, config.num_frames) else None


def check_own_weights(path: Path, config: ModelConfig, *, encoder: str | None, num_video_tokens: int | None) -> None:
    """Checks that trained weights are what was asked for.

    Args:
        path: of the checkpoint, for errors.
        config: of its weights, for the frames that are exported.
        encoder: the temporal encoder; None: the checkpoint's own.
        num_video_tokens: None: the checkpoint's own.

    Raises:
        UsageError: the weights have another encoder or token count.
    """
    temporal = config.temporal
    if encoder is not None and encoder != temporal.encoder:
        raise UsageError(
            f"the model {path} holds the encoder {temporal.encoder}, not {encoder}",
            remedy=f"leave `encoder` out, or choose a model with {encoder}",
        )
    if num_video_tokens is not None and num_video_tokens != temporal.num_video_tokens:
        raise UsageError(
            f"the weights in {path} produce {format_count(temporal.num_video_tokens, 'token')} "
            f"from {format_count(config.num_frames, 'frame')}, "
            f"not {num_video_tokens}",
            remedy="leave `num_video_tokens` out, or export random weights with `init='random'`",
        )


def folder_name(config: ModelConfig, *, random_init: bool) -> str:
    """The default name of a bundle, without the precision."""
    return _name(config.name, config.temporal.encoder, config.num_video_tokens, random_init=random_init)


def _name(model: str, encoder: str, num_video_tokens: int, *, random_init: bool) -> str:
    return f"blip3v-{model}-{encoder}-{num_video_tokens}tok{'-random' if random_init else ''}"
