"""The released Hugging Face folder: ``config.json`` of model_type xgenmm, safetensors shards, processor and tokenizer.

Values missing from its config are defaults of the released code, which the preset ``xgen-mm-vid`` states. Not here: how
its tensors map to the model's (``released_names.py``), and the tokenizer (``text/released_tokenizer.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3v import strict_json
from blip3v.config import ModelConfig, preset
from blip3v.errors import ArtifactError, ArtifactMissingError, ConfigError
from blip3v.folders import MODEL_TYPE
from blip3v.model.weight_file import TensorInfo, listed, read_tensor_infos
from blip3v.text.generation import RELEASED_SYSTEM_PROMPT, GenerationConfig
from blip3v.video.preprocess import PreprocessorConfig

__all__ = [
    "PREFIX",
    "Shards",
    "base_config",
    "generation_config",
    "open_shards",
    "preprocessor_config",
    "small_files",
    "without_prefix",
]

PREFIX = "vlm."  # of every tensor name in the released folder

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
_MAX_NEW_TOKENS = 1024  # of the released inference script
_BICUBIC = ("bicubic", 3)  # by name, and PIL's number

# What a text_config may set: names in Phi-3's config -> ours.
_TEXT_KEYS = {
    "initial_tokenizer_len": "num_base_tokens",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "max_position_embeddings": "max_context",
    "sliding_window": "sliding_window",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
}


@dataclass(frozen=True)
class Shards:
    """Which file holds which tensor of a folder; the weights are not read."""

    tensors: Mapping[str, TensorInfo]  # by name in the files
    files: Mapping[str, Path]  # the file that holds each name
    index: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file once, including the index."""
        shards = tuple(sorted(set(self.files.values())))
        return shards if self.index is None else (self.index, *shards)


def base_config(folder: Path) -> ModelConfig:
    """Returns the preset ``xgen-mm-vid`` with the values of ``config.json``; the temporal encoder stays the preset's.

    Raises:
        ConfigError: not a config of model_type xgenmm with Phi-3, or a value of the wrong type.
    """
    path = folder / "config.json"
    values = strict_json.read_json(path)
    text = _section(values, "text_config", path)
    for name, found, allowed in (
        ("model_type", values.get("model_type"), MODEL_TYPE),
        ("text_config: model_type", text.get("model_type"), "phi3"),
    ):
        if found != allowed:
            raise ConfigError(f"{path} has {name} {found!r}; allowed: {allowed}")
    if text.get("rope_scaling") is not None:
        raise ConfigError(f"{path} has a rope_scaling; the released model has none, and none is supported")
    base = preset("xgen-mm-vid")
    own = {ours: text[theirs] for theirs, ours in _TEXT_KEYS.items() if theirs in text}
    merged = strict_json.from_dict(type(base.text), dataclasses.asdict(base.text) | own, f"{path}: text_config")
    return dataclasses.replace(base, text=merged)


def preprocessor_config(folder: Path) -> PreprocessorConfig:
    """Returns how the folder's processor turns frames into pixels.

    Raises:
        ArtifactMissingError: no ``preprocessor_config.json``.
        ConfigError: a value that is not supported.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ArtifactMissingError(f"{path} does not exist; copy it from the released folder")
    values = strict_json.read_json(path)
    size = values.get("size", [384, 384])
    if not isinstance(size, list) or len(size) != 2 or size[0] != size[1]:
        raise ConfigError(f"{path} has size {size!r}; two equal sides are expected")
    if values.get("interpolation_mode", "bicubic") not in _BICUBIC or values.get("do_resize", True) is not True:
        raise ConfigError(f"{path} asks for a resize other than bicubic; the released processor has no other")
    own: dict[str, Any] = {key: values[key] for key in ("resize_mode", "image_mean", "image_std") if key in values}
    return strict_json.from_dict(PreprocessorConfig, own | {"image_size": size[0]}, str(path))


def generation_config(folder: Path) -> GenerationConfig:
    """Returns the released system prompt and limits, and ``max_new_tokens`` of ``generation_config.json`` if set.

    Raises:
        ConfigError: a value that decoding cannot use.
    """
    path = folder / "generation_config.json"
    values = strict_json.read_json(path) if path.is_file() else {}
    own = {name: values[name] for name in ("max_new_tokens",) if name in values}
    released = {"system_prompt": RELEASED_SYSTEM_PROMPT, "max_new_tokens": _MAX_NEW_TOKENS}
    return strict_json.from_dict(GenerationConfig, released | own, str(path))


def small_files(folder: Path) -> tuple[Path, ...]:
    """Returns the files of the folder, besides the weights, that a model is made from."""
    return tuple(folder / name for name in _SMALL_FILES if (folder / name).is_file())


def open_shards(folder: Path) -> Shards:
    """Opens ``model.safetensors.index.json`` and its shards, or a single ``model.safetensors``.

    Raises:
        ArtifactMissingError: there are no weights, or a shard that the index names does not exist.
        ArtifactError: index and shards do not agree, a shard is outside the folder, or a file is broken.
        ConfigError: the index is not JSON.
    """
    index = folder / _INDEX
    if not index.is_file():
        single = folder / _SINGLE
        if not single.is_file():
            raise ArtifactMissingError(f"{folder} has neither {_INDEX} nor {_SINGLE}; download the whole folder again")
        tensors = read_tensor_infos(single)
        return Shards(tensors, dict.fromkeys(tensors, single))
    weight_map = _weight_map(index)
    found = {shard: read_tensor_infos(folder / shard) for shard in dict.fromkeys(weight_map.values())}
    _check_agreement(index, weight_map, found)
    return Shards(
        {name: found[shard][name] for name, shard in weight_map.items()},
        {name: folder / shard for name, shard in weight_map.items()},
        index,
    )


def without_prefix(tensors: Mapping[str, TensorInfo], where: Path) -> dict[str, TensorInfo]:
    """Returns the tensors by name without ``vlm.``.

    Raises:
        ArtifactError: names that lack it.
    """
    others = [f"unknown {name}" for name in tensors if not name.startswith(PREFIX)]
    if others:
        raise ArtifactError(f"{where} has tensors whose names do not begin with {PREFIX}: {listed(others)}")
    return {name.removeprefix(PREFIX): stored for name, stored in tensors.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """Returns the shard of each tensor name; every shard exists and is in the folder."""
    weight_map = strict_json.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or any(type(x) is not str for x in weight_map.values()):
        raise ArtifactError(f"{index} has no weight_map from tensor names to files; download it again")
    shards = sorted(set(weight_map.values()))
    # A plain name cannot leave the folder. A link is fine: the download cache keeps every file behind one.
    outside = [
        shard for shard in shards if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors")
    ]
    if outside:
        raise ArtifactError(f"{index} names {listed(outside)}; only safetensors files beside it are allowed")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise ArtifactMissingError(f"{index.parent} lacks {listed(missing)}, which {_INDEX} names; download it again")
    return weight_map


def _check_agreement(index: Path, weight_map: Mapping[str, str], found: Mapping[str, Mapping[str, TensorInfo]]) -> None:
    problems = [f"{name} is not in {shard}" for name, shard in weight_map.items() if name not in found[shard]]
    for shard, tensors in found.items():
        for name in tensors:
            if name not in weight_map:
                problems.append(f"{name} of {shard} is not in the index")
            elif weight_map[name] != shard:
                problems.append(f"{name} is also in {shard}, not only in {weight_map[name]}")
    if problems:
        raise ArtifactError(f"{index} and its shards do not agree: {listed(problems)}")


def _section(values: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    section = values.get(name)
    if not isinstance(section, dict):
        raise ConfigError(f"{path} has no {name}; an object is expected, as in the released config.json")
    return section
