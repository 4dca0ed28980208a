"""The released Hugging Face folder: ``config.json`` of model_type xgenmm, safetensors shards, processor and tokenizer.

What its config does not hold is a default of the released code, which the preset ``xgen-mm-vid`` states. What is not
here: how tensors become those of the model (``released_names.py``) and the tokenizer (``text/released_tokenizer.py``).
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
from blip3v.model.weight_file import TensorInfo, listed, read_tensor_infos
from blip3v.text.generation import RELEASED_SYSTEM_PROMPT, GenerationConfig
from blip3v.video.preprocess import PreprocessorConfig

__all__ = [
    "MODEL_TYPE",
    "PREFIX",
    "Shards",
    "base_config",
    "generation_config",
    "open_shards",
    "preprocessor_config",
    "small_files",
    "without_prefix",
]

MODEL_TYPE = "xgenmm"
PREFIX = "vlm."  # before every name of the released folder

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

# What a text_config may say beside the released three values: names of Phi-3's config -> ours.
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
    """The weights of a folder, unread."""

    tensors: Mapping[str, TensorInfo]  # by the name in the files
    files: Mapping[str, Path]  # the file of each name
    index: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file once, the index too."""
        shards = tuple(sorted(set(self.files.values())))
        return shards if self.index is None else (self.index, *shards)


def base_config(folder: Path) -> ModelConfig:
    """The preset ``xgen-mm-vid`` with what ``config.json`` says; the temporal encoder is still the preset's.

    Raises:
        ConfigError: not a config of model_type xgenmm with Phi-3, or a value of another type than it must have.
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
        raise ConfigError(f"{path} has a rope_scaling; the released model has none, and no other is known here")
    base = preset("xgen-mm-vid")
    own = {ours: text[theirs] for theirs, ours in _TEXT_KEYS.items() if theirs in text}
    merged = strict_json.from_dict(type(base.text), dataclasses.asdict(base.text) | own, f"{path}: text_config")
    return dataclasses.replace(base, text=merged)


def preprocessor_config(folder: Path) -> PreprocessorConfig:
    """How the folder's processor makes pixels of frames.

    Raises:
        ArtifactMissingError: no ``preprocessor_config.json``.
        ConfigError: a value that is not known here.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ArtifactMissingError(f"{path} is not there; copy it from the released folder")
    values = strict_json.read_json(path)
    size = values.get("size", [384, 384])
    if not isinstance(size, list) or len(size) != 2 or size[0] != size[1]:
        raise ConfigError(f"{path} has size {size!r}; two equal sides are expected")
    if values.get("interpolation_mode", "bicubic") not in _BICUBIC or values.get("do_resize", True) is not True:
        raise ConfigError(f"{path} asks for another resize than bicubic; the released processor has no other")
    own: dict[str, Any] = {key: values[key] for key in ("resize_mode", "image_mean", "image_std") if key in values}
    return strict_json.from_dict(PreprocessorConfig, own | {"image_size": size[0]}, str(path))


def generation_config(folder: Path) -> GenerationConfig:
    """The released system prompt and limits; ``max_new_tokens`` of ``generation_config.json`` where it has one.

    Raises:
        ConfigError: a value that decoding cannot use.
    """
    path = folder / "generation_config.json"
    values = strict_json.read_json(path) if path.is_file() else {}
    own = {name: values[name] for name in ("max_new_tokens",) if name in values}
    released = {"system_prompt": RELEASED_SYSTEM_PROMPT, "max_new_tokens": _MAX_NEW_TOKENS}
    return strict_json.from_dict(GenerationConfig, released | own, str(path))


def small_files(folder: Path) -> tuple[Path, ...]:
    """Files of the folder, beside the weights, that a model is made from."""
    return tuple(folder / name for name in _SMALL_FILES if (folder / name).is_file())


def open_shards(folder: Path) -> Shards:
    """The tensors of ``model.safetensors.index.json`` with its shards, or of one ``model.safetensors``.

    Raises:
        ArtifactMissingError: no weights, or a shard that the index names is not there.
        ArtifactError: index and shards that do not agree, a shard outside the folder, or a broken file.
        ConfigError: an index that is not JSON.
    """
    index = folder / _INDEX
    if not index.is_file():
        single = folder / _SINGLE
        if not single.is_file():
            raise ArtifactMissingError(f"{folder} has neither {_INDEX} nor {_SINGLE}; download it again, whole")
        tensors = read_tensor_infos(single)
        return Shards(tensors, dict.fromkeys(tensors, single))
    places = _index_places(index)
    held = {shard: read_tensor_infos(folder / shard) for shard in dict.fromkeys(places.values())}
    _check_agreement(index, places, held)
    return Shards(
        {name: held[shard][name] for name, shard in places.items()},
        {name: folder / shard for name, shard in places.items()},
        index,
    )


def without_prefix(tensors: Mapping[str, TensorInfo], where: Path) -> dict[str, TensorInfo]:
    """The tensors by their names without ``vlm.``.

    Raises:
        ArtifactError: names without it.
    """
    others = [f"unknown {name}" for name in tensors if not name.startswith(PREFIX)]
    if others:
        raise ArtifactError(f"{where} has tensors whose names do not begin with {PREFIX}: {listed(others)}")
    return {name.removeprefix(PREFIX): stored for name, stored in tensors.items()}


def _index_places(index: Path) -> dict[str, str]:
    """Shard by tensor name; every shard is there, and in the folder."""
    places = strict_json.read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or any(type(shard) is not str for shard in places.values()):
        raise ArtifactError(f"{index} has no weight_map from tensor names to files; download it again")
    shards = sorted(set(places.values()))
    # A plain name cannot leave the folder. A link is fine: the download cache keeps every file behind one.
    outside = [
        shard for shard in shards if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors")
    ]
    if outside:
        raise ArtifactError(f"{index} names {listed(outside)}; only safetensors files beside it are allowed")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise ArtifactMissingError(f"{index.parent} lacks {listed(missing)}, which {_INDEX} names; download it again")
    return places


def _check_agreement(index: Path, places: Mapping[str, str], held: Mapping[str, Mapping[str, TensorInfo]]) -> None:
    problems = [f"{name} is not in {shard}" for name, shard in places.items() if name not in held[shard]]
    for shard, tensors in held.items():
        for name in tensors:
            if name not in places:
                problems.append(f"{name} of {shard} is not in the index")
            elif places[name] != shard:
                problems.append(f"{name} is in {shard} too, not only in {places[name]}")
    if problems:
        raise ArtifactError(f"{index} and its shards do not agree: {listed(problems)}")


def _section(values: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    section = values.get(name)
    if not isinstance(section, dict):
        raise ConfigError(f"{path} has no {name}; an object is expected, as in the released config.json")
    return section
