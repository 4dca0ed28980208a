"""Pretrained towers to train from: SigLIP and Phi-3 as the transformers library saves them, under the model's names.

Weights are read on access. Every tensor of a folder is either used or left out for a known reason; any other is an
error. Not here: whole checkpoints of the model (``blip3v/model/checkpoint.py``).
"""

# Shapes: V rows of the vocabulary, D width.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3v import strict_json
from blip3v.config import ModelConfig, TextConfig, VisionConfig
from blip3v.errors import ArtifactError, ArtifactMissingError
from blip3v.model.weight_file import TensorInfo, compare, listed, read_tensor_infos
from blip3v.model.weights import FileWeights, Place, state_shapes

__all__ = ["language_weights", "num_language_rows", "vision_weights"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_VISION, _LANGUAGE = "vision_encoder.", "lang_model."
# Besides the vision tower, SigLIP has a text tower and the loss's two scalars; the model does not use the pooling head.
_NOT_VISION = ("text_model.", "logit_scale", "logit_bias")
_POOL_HEAD = "head."
# What the model adds to Phi-3, so that no Phi-3 folder contains it.
_ADDED = (
    "lang_model.model.embed_tokens.additional_embedding.weight",
    "lang_model.lm_head.bias",
    "lang_model.lm_head.additional_fc.weight",
    "lang_model.lm_head.additional_fc.bias",
)
_TABLE = "model.embed_tokens.weight"


def vision_weights(folder: Path, config: ModelConfig) -> FileWeights:
    """Weights of the vision encoder from a SigLIP folder, with or without its text tower.

    Raises:
        ArtifactMissingError: a file is missing.
        ArtifactError: unknown, missing or misshapen tensors, by name, or settings that differ from the model's.
    """
    _check_settings(folder, _vision_settings(config.vision), "vision_config")
    found = _stored(folder)
    ours = {}
    for name, (file, stored) in found.items():
        bare = name.removeprefix("vision_model.")
        if not name.startswith(_NOT_VISION) and not bare.startswith(_POOL_HEAD):
            ours[_VISION + bare] = (Place(file, name), stored)
    return _weights(folder, ours, _shapes(config, _VISION))


def language_weights(folder: Path, config: ModelConfig) -> FileWeights:
    """Weights of the language model from a Phi-3 folder, without those that the model adds to it.

    Raises:
        ArtifactMissingError: a file is missing.
        ArtifactError: unknown, missing or misshapen tensors, by name, or settings that differ from the model's.
    """
    _check_settings(folder, _text_settings(config.text), None)
    ours = {_LANGUAGE + name: (Place(file, name), stored) for name, (file, stored) in _stored(folder).items()}
    wanted = {name: shape for name, shape in _shapes(config, _LANGUAGE).items() if name not in _ADDED}
    return _weights(folder, ours, wanted)


def num_language_rows(folder: Path) -> int:
    """Number of embedding rows in a Phi-3 folder.

    Raises:
        ArtifactMissingError: a file is missing.
        ArtifactError: the folder contains no embedding.
    """
    found = _stored(folder)
    if _TABLE not in found:
        raise ArtifactError(f"{folder} has no tensor {_TABLE}; a folder saved by Phi3ForCausalLM is expected")
    shape_VD = found[_TABLE][1].shape
    return shape_VD[0]


def _stored(folder: Path) -> dict[str, tuple[Path, TensorInfo]]:
    """Every tensor of a folder, with its file."""
    if (folder / _SINGLE).is_file():
        names = [_SINGLE]
    elif (folder / _INDEX).is_file():
        names = sorted(set(strict_json.read_json(folder / _INDEX).get("weight_map", {}).values()))
    else:
        raise ArtifactMissingError(
            f"{folder} contains neither {_SINGLE} nor {_INDEX}; a folder of safetensors is expected"
        )
    found = {}
    for file in names:
        if Path(file).name != file:
            raise ArtifactError(f"{folder / _INDEX} names the file {file!r}; only files in the same folder are allowed")
        if not (folder / file).is_file():
            raise ArtifactMissingError(f"{folder / file} does not exist, but {_INDEX} names it; copy it too")
        found.update({name: (folder / file, stored) for name, stored in read_tensor_infos(folder / file).items()})
    return found


def _shapes(config: ModelConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in state_shapes(config).items() if name.startswith(prefix)}


def _weights(
    folder: Path, ours: Mapping[str, tuple[Place, TensorInfo]], wanted: Mapping[str, tuple[int, ...]]
) -> FileWeights:
    problems = compare({name: stored for name, (_, stored) in ours.items()}, wanted)
    if problems:
        raise ArtifactError(f"{folder} does not contain the tower of the recipe's preset: {listed(problems)}")
    return FileWeights({name: ours[name][0] for name in wanted})


def _vision_settings(config: VisionConfig) -> dict[str, tuple[object, ...]]:
    return {
        "image_size": (config.image_size,),
        "patch_size": (config.patch_size,),
        "num_attention_heads": (config.num_heads,),
        "layer_norm_eps": (config.layer_norm_eps,),
        "hidden_act": ("gelu_pytorch_tanh",),
    }


def _text_settings(config: TextConfig) -> dict[str, tuple[object, ...]]:
    return {
        "num_attention_heads": (config.num_heads,),
        "num_key_value_heads": (config.num_kv_heads,),
        "max_position_embeddings": (config.max_context,),
        "rms_norm_eps": (config.rms_norm_eps,),
        "rope_theta": (config.rope_theta,),
        "rope_type": ("default",),
        "rope_scaling": (None,),
        "sliding_window": (config.sliding_window,),
        "hidden_act": ("silu",),
        "tie_word_embeddings": (False,),
        "partial_rotary_factor": (1.0,),
    }


def _check_settings(folder: Path, wanted: Mapping[str, tuple[object, ...]], part: str | None) -> None:
    """Compares the settings that shapes do not show, as far as ``config.json`` states them."""
    path = folder / "config.json"
    if not path.is_file():
        raise ArtifactMissingError(f"{path} does not exist; it states how the weights are used")
    values: dict[str, Any] = strict_json.read_json(path)
    values = values.get(part, values) if part is not None else values
    values = values | (values.get("rope_parameters") or {})
    for name, allowed in wanted.items():
        if name in values and values[name] not in allowed:
            raise ArtifactError(f"{path}: {name} is {values[name]!r}; the recipe's preset has {allowed[0]!r}")
