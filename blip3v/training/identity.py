"""What a run was begun with, as digests: it is resumed with the same recipe, data and initial weights or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from blip3v.data.samples import Source
from blip3v.errors import ConfigError
from blip3v.training.checkpoint import Position
from blip3v.training.recipe import Recipe
from blip3v.training.start import Start

__all__ = ["Identity", "check_recipe", "identity_of"]

_WHAT = {
    "recipe_sha256": "with another recipe or another number of devices",
    "data_sha256": "on other data",
    "start_sha256": "from other initial weights",
}


@dataclass(frozen=True)
class Identity:
    """Digests of what a run is begun with."""

    recipe_sha256: str
    data_sha256: str
    start_sha256: str

    def at(self, stage: int, step: int) -> Position:
        """The run's position."""
        return Position(stage, step, **vars(self))

    def check(self, found: Position, output: Path) -> None:
        """Refuses the checkpoint of a run that was begun with something else.

        Raises:
            ConfigError: it was; the message says with what.
        """
        for field in fields(self):
            saved, own = getattr(found, field.name), getattr(self, field.name)
            if saved and saved != own:
                raise _other(field.name, output)


def check_recipe(recipe: Recipe, num_devices: int, found: Position, output: Path) -> None:
    """The part of ``Identity.check`` that reads nothing.

    Raises:
        ConfigError: the run was begun with another recipe.
    """
    if found.recipe_sha256 != _recipe_digest(recipe, num_devices):
        raise _other("recipe_sha256", output)


def _other(what: str, output: Path) -> ConfigError:
    return ConfigError(
        f"the run in {output} was started {_WHAT[what]}; resume it with what it began with, or start a new one",
        remedy="choose another `output`",
    )


def _recipe_digest(recipe: Recipe, num_devices: int) -> str:
    """Of the recipe, with the number of devices if the steps depend on it."""
    values = recipe.to_dict()
    if any(stage.depends_on_devices for stage in recipe.stages):
        values |= {"num_devices": num_devices}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def identity_of(recipe: Recipe, sources: Sequence[Source], start: Start, num_devices: int) -> Identity:
    """Reads the initial weights; of clips only their names.

    Args:
        recipe: of the run.
        sources: the data of each stage.
        start: what the run starts from.
        num_devices: that share a step.
    """
    return Identity(_recipe_digest(recipe, num_devices), _data_digest(recipe, sources), _start_digest(start))


def _data_digest(recipe: Recipe, sources: Sequence[Source]) -> str:
    digest = hashlib.sha256()
    for stage, source in zip(recipe.stages, sources, strict=True):
        if not stage.num_films:  # films follow from the recipe
            digest.update(source.content.encode())
    return digest.hexdigest()


def _start_digest(start: Start) -> str:
    """Random parts follow from the recipe's seed, and may differ between versions of torch."""
    digest = hashlib.sha256()
    random = {part for part, origin in start.origin.items() if origin.startswith("random")}
    for name in start.weights:
        if _part(name) not in random:
            tensor = start.weights[name]
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _part(name: str) -> str:
    # The temporal encoder is inside the vision tokenizer.
    return "temporal_encoder" if ".temporal_encoder." in name else name.partition(".")[0]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
