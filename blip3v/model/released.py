"""The released Hugging Face folder: its safetensors shards, and how many frames it was trained with.

Not here: its JSON files (``released_config.py``), how its tensors map to the model's (``released_names.py``), and the
tokenizer (``text/released_tokenizer.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blip3v import strict_json
from blip3v.errors import ArtifactError, ArtifactMissingError, UsageError
from blip3v.model.weight_file import TensorInfo, listed, read_tensor_infos

__all__ = [
    "PREFIX",
    "Shards",
    "frames_in_training",
    "open_shards",
    "small_files",
    "without_prefix",
]

PREFIX = "vlm."  # of every tensor name in the released folder

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_NUM_FRAMES = 8  # of the releases whose name and model card do not say otherwise
_FRAMES_IN_NAME = re.compile(r"(?<!\d)([1-9]\d{0,3})[-_]?frames?(?![a-z])")
_FRAMES_IN_CARD = re.compile(r"(?i)\btrained (?:with|on) ([1-9]\d{0,3})[- ]frames?\b")
_MAX_CARD_BYTES = 2**20
_SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)


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


def frames_in_training(path: Path) -> tuple[int, str]:
    """Returns the number of frames per clip that an authors' checkpoint was trained with, and what says so.

    No tensor and no config shows it. The releases state it in the name of their repository
    (``...-128tokens-16frames``) and in their model card ("trained with 16-frame videos"); without either it is 8.

    Args:
        path: a released folder, also one in a download cache, or a ``.pt`` file.

    Raises:
        UsageError: the name and the model card disagree.
    """
    stated = dict(_stated_frames(path))
    if not stated:
        return _NUM_FRAMES, f"the usual count: neither the name of {path} nor a model card says how many"
    if len(set(stated.values())) > 1:
        found = " and ".join(f"{count} in {source}" for source, count in stated.items())
        raise UsageError(
            f"{path} contradicts itself about the frames per clip: {found}", remedy="choose one as `num_frames`"
        )
    return next(iter(stated.values())), next(iter(stated))


def _stated_frames(path: Path) -> Iterator[tuple[str, int]]:
    """Yields each source that states one count."""
    at = path.absolute()
    names = [at.parent.parent.name if at.parent.name == "snapshots" else at.name, path.resolve().name]
    for name in dict.fromkeys(names):
        counts = set(_FRAMES_IN_NAME.findall(name.lower()))
        if len(counts) == 1:
            yield f"its name, {name}", int(counts.pop())
            break
    card = path / "README.md"
    if card.is_file():
        with card.open("rb") as file:
            text = file.read(_MAX_CARD_BYTES).decode("utf-8", "replace")
        counts = set(_FRAMES_IN_CARD.findall(text))
        if len(counts) == 1:
            yield f"its model card, {card.name}", int(counts.pop())


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
