"""Maps the tensors of an authors' checkpoint to the model's: each has its place, or a reason to be left out.

Names here are the released ones without ``vlm.``. Dimensions missing from the checkpoint's config are those of
``defaults``; every shape is checked against them.
"""

# Shapes: D width, L latents, V rows of the vocabulary.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from blip3v.config import ModelConfig, preset
from blip3v.errors import ArtifactError, ConfigError
from blip3v.model.sizes import check_sizes
from blip3v.model.temporal import CheckpointForm, with_encoder
from blip3v.model.temporal.stored import find_form
from blip3v.model.weight_file import TensorInfo, UnusedKey, compare, listed
from blip3v.model.weights import state_shapes

__all__ = ["Fit", "Origin", "defaults", "fit", "has_temporal_encoder"]

_TEMPORAL = "vision_tokenizer.temporal_encoder."
_LATENTS = "vision_tokenizer.latents"
_FEW_LATENTS = 32
_POOL_HEAD = "vision_encoder.head"
# Rows from num_base_tokens on belong to no token: the added tokens have tensors of their own.
_SPLIT = ("lang_model.model.embed_tokens.weight", "lang_model.lm_head.weight", "lang_model.lm_head.bias")


@dataclass(frozen=True)
class Origin:
    """The checkpoint's tensor that a tensor of the model comes from."""

    name: str  # in the checkpoint, without ``vlm.``
    num_rows: int | None  # only the first num_rows rows; None: all


@dataclass(frozen=True)
class Fit:
    """How the tensors of a checkpoint become a model's."""

    config: ModelConfig
    origins: Mapping[str, Origin]  # by the model's names
    unused_keys: tuple[UnusedKey, ...]


def fit(found: Mapping[str, TensorInfo], base: ModelConfig, *, where: str, encoder: str | None, num_frames: int) -> Fit:
    """Finds the temporal encoder and the place of every tensor.

    Args:
        found: the checkpoint's tensors by name.
        base: the config but for the temporal encoder; ``vocab_size`` is the checkpoint's.
        where: the source, as errors name it.
        encoder: the temporal encoder that the user named; None: not given.
        num_frames: frames per clip.

    Raises:
        ArtifactError: tensors that are unknown, missing, misshapen or of another dtype, by name.
        UsageError: ``encoder`` is missing where it is needed, or wrong.
    """
    temporal = {name.removeprefix(_TEMPORAL): x.shape for name, x in found.items() if name.startswith(_TEMPORAL)}
    chosen, form = find_form(temporal, dataclasses.replace(base, num_frames=num_frames), requested=encoder)
    try:
        config = with_encoder(
            base, chosen, num_video_tokens=form.num_video_tokens, num_frames=num_frames, **form.options
        )
    except ConfigError as error:
        raise ArtifactError(f"the temporal encoder in {where} cannot be built: {error}") from error
    check_sizes(found, config, where=where)
    config = _without_unused_rows(config)
    shapes = state_shapes(config)
    origins = {name: _origin(name, config, form) for name in shapes}
    wanted = {origins[name].name: shape for name, shape in shapes.items()}
    for name in _SPLIT:
        wanted[name] = (base.text.vocab_size, *wanted[name][1:])
    unused = _unused_tensors(base, form, found)
    problems = compare(found, wanted | {item.name: item.shape for item in unused})
    if problems:
        raise ArtifactError(f"{where} does not hold the tensors of a BLIP-3-Video model: {listed(problems)}")
    return Fit(config, origins, (*unused, *_unused_rows(base, wanted)))


def has_temporal_encoder(found: Mapping[str, TensorInfo]) -> bool:
    """Whether there are tensors of a temporal encoder."""
    return any(name.startswith(_TEMPORAL) for name in found)


def defaults(found: Mapping[str, TensorInfo]) -> ModelConfig:
    """Returns the values that a checkpoint's config need not state: the preset's, and the number of latents.

    Those are 32 if the checkpoint has 32: one of the forms that the 32-token release may have.
    """
    base = preset("xgen-mm-vid")
    latents = found.get(_LATENTS)
    if latents is None or latents.shape != (_FEW_LATENTS, base.vision.hidden_size):
        return base
    return dataclasses.replace(base, resampler=dataclasses.replace(base.resampler, num_latents=_FEW_LATENTS))


def _without_unused_rows(config: ModelConfig) -> ModelConfig:
    """Drops the rows that belong to no token."""
    return dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=config.text.num_base_tokens))


def _origin(name: str, config: ModelConfig, form: CheckpointForm) -> Origin:
    source = name
    for theirs, ours in form.renamed.items():
        if name.startswith(f"{_TEMPORAL}{ours}."):
            source = name.replace(f"{_TEMPORAL}{ours}.", f"{_TEMPORAL}{theirs}.", 1)
    return Origin(source, config.text.num_base_tokens if name in _SPLIT else None)


def _unused_tensors(config: ModelConfig, form: CheckpointForm, found: Mapping[str, TensorInfo]) -> list[UnusedKey]:
    """Whole tensors that nothing uses. The vision encoder may lack its pooling head, but not only a part of it."""
    unused = []
    if any(name.startswith(_POOL_HEAD + ".") for name in found):
        reason = "the pooling head: all patch tokens are used, not their pool"
        unused += [UnusedKey(name, shape, reason) for name, shape in _pool_head(config).items()]
    unused += [dataclasses.replace(item, name=_TEMPORAL + item.name) for item in form.unused_keys]
    return unused


def _unused_rows(config: ModelConfig, wanted: Mapping[str, tuple[int, ...]]) -> list[UnusedKey]:
    first, end = config.text.num_base_tokens, config.text.vocab_size
    if first == end:
        return []
    reason = f"rows {first} to {end - 1} belong to no token"
    return [UnusedKey(name, (end - first, *wanted[name][1:]), reason) for name in _SPLIT]


def _pool_head(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.vision.hidden_size, config.vision.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "probe": (1, 1, width),
        "attention.in_proj_weight": (3 * width, width),
        "attention.in_proj_bias": (3 * width,),
        "attention.out_proj.weight": (width, width),
        "attention.out_proj.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
        "mlp.fc1.weight": (inner, width),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (width, inner),
        "mlp.fc2.bias": (width,),
    }
    return {f"{_POOL_HEAD}.{name}": shape for name, shape in shapes.items()}
