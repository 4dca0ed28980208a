"""Weights by name, each tensor read or generated on access, so that a model need not fit into memory as a whole.

Everything here is a ``Mapping[str, Tensor]`` whose names are the released ones without ``vlm.``; so is a state dict.
Not here: which names and shapes a file must hold (``folder.py``, ``checkpoint.py``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from blip3v.config import ModelConfig
from blip3v.model.blip3_video import Blip3Video
from blip3v.model.blocks import sinusoid_frequencies
from blip3v.model.weight_file import opened
from blip3v.model.weight_values import check_values

__all__ = [
    "FileWeights",
    "Gathered",
    "Place",
    "RandomWeights",
    "empty_model",
    "fill",
    "fill_buffers",
    "random_model",
    "random_tensor",
    "state_shapes",
    "without_weights",
]

# Learned vectors rather than weight matrices; initialised as the authors do.
_UNIT_NAMES = ("latents", "initial_memory")


@dataclass(frozen=True)
class Place:
    """Where a tensor is stored."""

    file: Path  # safetensors
    name: str  # in the file
    num_rows: int | None = None  # only the first num_rows rows; None: all


class FileWeights(Mapping[str, Tensor]):
    """Tensors of safetensors files in their stored dtypes.

    A tensor is a view of its mapped file, which is unmapped when the tensor is freed: nothing that was read is kept.

    Raises:
        ArtifactError: on access, if the tensor's file is broken, or its values cannot be used.
    """

    def __init__(self, places: Mapping[str, Place]) -> None:
        self._places = dict(places)

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        with opened(place.file) as file:
            tensor: Tensor = file.get_tensor(place.name)
        used = tensor if place.num_rows is None else tensor[: place.num_rows]
        return check_values(name, used, where=place.file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class RandomWeights(Mapping[str, Tensor]):
    """Random fp32 weights for ``config``: different for every name, and the same each time for one name.

    Libraries initialise every norm to one and every bias to zero, so a layer bound to the wrong place would go
    unnoticed; and equal layers would share memory in an engine that deduplicates weights.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        self._shapes = state_shapes(config)
        self._seed = seed

    def __getitem__(self, name: str) -> Tensor:
        return random_tensor(name, self._shapes[name], seed=self._seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class Gathered(Mapping[str, Tensor]):
    """Weights gathered from several sources.

    Args:
        sources: for each name, the weights to take it from.
    """

    def __init__(self, sources: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._sources = dict(sources)

    def __getitem__(self, name: str) -> Tensor:
        return self._sources[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built inside have parameters that take no memory, and real computed buffers. Keeps the random state."""
    with init_empty_weights(include_buffers=False), torch.random.fork_rng(devices=[]):
        yield


def empty_model(config: ModelConfig) -> Blip3Video:
    """Builds the model without weights."""
    with without_weights():
        return Blip3Video(config).eval().requires_grad_(False)


def state_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the model's state dict without allocating a tensor."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Blip3Video(config).state_dict().items()}


def random_model(config: ModelConfig, *, seed: int = 0) -> Blip3Video:
    """Builds a whole model with ``RandomWeights``."""
    model = empty_model(config)
    fill(model, RandomWeights(config, seed=seed))
    return model


def fill(module: nn.Module, weights: Mapping[str, Tensor], prefix: str = "") -> None:
    """Loads every parameter and persistent buffer of ``module``, as fp32 on the CPU.

    Args:
        module: the result of ``empty_model``, or a part of it.
        weights: by full name.
        prefix: what precedes the module's own names in the full names, including the dot.
    """
    state = {name: weights[prefix + name].float() for name in module.state_dict()}
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False)


def fill_buffers(module: nn.Module, weights: Mapping[str, Tensor], prefix: str = "") -> None:
    """Loads only the persistent buffers; arguments as for ``fill``."""
    persistent = module.state_dict().keys() & dict(module.named_buffers()).keys()
    module.load_state_dict({name: weights[prefix + name].float() for name in persistent}, strict=False, assign=True)


def random_tensor(name: str, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Returns the fp32 tensor that ``RandomWeights`` has for ``name``; time-stamp frequencies are the true ones."""
    if name.endswith("inv_freq"):
        return sinusoid_frequencies(2 * shape[0])
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
    mean, spread = _distribution(name, shape)
    return torch.empty(shape).normal_(mean, spread, generator=generator)


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation, such that sums keep their size across layers and fit half precision."""
    if name.endswith(_UNIT_NAMES):
        return 0.0, 1.0
    if len(shape) == 1:
        return (0.0, 0.02) if name.endswith("bias") else (1.0, 0.1)
    if "embed" in name and "patch_embedding" not in name:
        return 0.0, 0.02 if "lang_model" in name else 1.0
    return 0.0, 1.0 / math.sqrt(math.prod(shape[1:]))
