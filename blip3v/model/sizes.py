"""Compares the sizes in a config with a checkpoint's tensors, before a model of those sizes is built.

Building takes time for every layer, even without weights, and a damaged config may ask for any number of them. Not
here: the comparison of every name and shape, which needs the built model (``weight_file.compare``).
"""

from __future__ import annotations

from collections.abc import Mapping

from blip3v.config import ModelConfig
from blip3v.errors import ArtifactError
from blip3v.model.temporal import resampler_depth
from blip3v.model.weight_file import TensorInfo, listed

__all__ = ["check_sizes"]

_TEMPORAL = "vision_tokenizer.temporal_encoder."
_PATCHES = "vision_encoder.embeddings.patch_embedding.weight"
_EMBEDDING = "lang_model.model.embed_tokens"
_LAYER = "lang_model.model.layers.0"


def check_sizes(found: Mapping[str, TensorInfo], config: ModelConfig, *, where: str) -> None:
    """Checks that a model of the config is no larger than the tensors.

    Args:
        found: the tensors by released name without ``vlm.``. Missing ones are passed over.
        config: the model.
        where: the checkpoint, as errors name it.

    Raises:
        ArtifactError: more layers than tensors, or a size that a tensor contradicts, by the setting's name.
    """
    problems = [*_too_many_layers(found, config), *_contradicted(found, config)]
    if problems:
        raise ArtifactError(f"the config does not fit the tensors in {where}: {listed(problems)}")


def _too_many_layers(found: Mapping[str, TensorInfo], config: ModelConfig) -> list[str]:
    layers = {
        "vision.num_layers": (config.vision.num_layers, "vision_encoder.encoder.layers."),
        "resampler.depth": (resampler_depth(config), "vision_tokenizer.layers."),
        "text.num_layers": (config.text.num_layers, "lang_model.model.layers."),
        "temporal.settings.num_layers": (config.temporal.settings.get("num_layers"), _TEMPORAL),
    }
    problems = []
    for setting, (count, prefix) in layers.items():
        held = sum(name.startswith(prefix) for name in found)
        if isinstance(count, int) and count > max(held, 1):
            problems.append(f"{setting} is {count}, and there are {held} tensors {prefix}*")
    return problems


def _contradicted(found: Mapping[str, TensorInfo], config: ModelConfig) -> list[str]:
    problems = []
    for setting, size, name, axis in _sizes(config):
        shape = found[name].shape if name in found else None
        if shape is not None and shape[axis : axis + 1] != (size,):
            problems.append(f"{setting} is {size}, and {name} has shape {shape}")
    return problems


def _sizes(config: ModelConfig) -> tuple[tuple[str, int, str, int], ...]:
    """Returns the name of a size, its value, a tensor that shows it, and on which axis."""
    vision, resampler, text = config.vision, config.resampler, config.text
    return (
        ("vision.hidden_size", vision.hidden_size, _PATCHES, 0),
        ("vision.patch_size", vision.patch_size, _PATCHES, 2),
        ("patches a frame", vision.num_patches, "vision_encoder.embeddings.position_embedding.weight", 0),
        ("vision.intermediate_size", vision.intermediate_size, "vision_encoder.encoder.layers.0.mlp.fc1.weight", 0),
        ("resampler.num_latents", resampler.num_latents, "vision_tokenizer.latents", 0),
        (
            "resampler.num_heads x head_dim",
            resampler.num_heads * resampler.head_dim,
            "vision_tokenizer.layers.0.0.to_q.weight",
            0,
        ),
        (
            "resampler.ff_mult x vision.hidden_size",
            resampler.ff_mult * vision.hidden_size,
            "vision_tokenizer.layers.0.1.1.weight",
            0,
        ),
        ("text.vocab_size", text.vocab_size, f"{_EMBEDDING}.weight", 0),
        ("text.hidden_size", text.hidden_size, f"{_EMBEDDING}.weight", 1),
        ("text.num_added_tokens", text.num_added_tokens, f"{_EMBEDDING}.additional_embedding.weight", 0),
        ("2 x text.intermediate_size", 2 * text.intermediate_size, f"{_LAYER}.mlp.gate_up_proj.weight", 0),
        (
            "(text.num_heads + 2 x num_kv_heads) x head size",
            (text.num_heads + 2 * text.num_kv_heads) * text.head_dim,
            f"{_LAYER}.self_attn.qkv_proj.weight",
            0,
        ),
    )
