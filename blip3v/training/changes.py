"""What a person changes most in a recipe, without a file of their own: each change meets one stage, which is named."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blip3v.errors import UsageError
from blip3v.training.recipe import Recipe

__all__ = ["CHANGES", "changed"]


@dataclass(frozen=True)
class _Change:
    """One field of a stage, and the field that it stands in for."""

    field: str
    instead_of: str | None
    parse: Callable[[str], float]
    wanted: str


CHANGES: Mapping[str, _Change] = {
    "learning_rate": _Change("learning_rate", None, float, "a number above 0, such as 1e-5"),
    "batch_size_per_device": _Change("batch_size_per_device", "batch_size", int, "a whole number from 1"),
    "steps": _Change("num_steps", "num_epochs", int, "a whole number from 1"),
}
"""By the name of the option."""


def changed(recipe: Recipe, values: Mapping[str, Sequence[str]]) -> tuple[Recipe, list[str]]:
    """The recipe with changes, and each change in words.

    Args:
        recipe: the recipe.
        values: by names of ``CHANGES``: each is a value for the recipe's only stage, or STAGE=VALUE, where STAGE is its
            number, from 1.

    Raises:
        UsageError: not such a value, no such stage, or several stages and none is named.
        ConfigError: a stage that is not valid with it.
    """
    stages, lines = list(recipe.stages), list[str]()
    for name, given in values.items():
        for text in given:
            index, value = _read(recipe, name, text)
            change, old = CHANGES[name], stages[index]
            fields: dict[str, Any] = {change.field: value}
            if change.instead_of is not None:
                fields[change.instead_of] = None
            stages[index] = dataclasses.replace(old, **fields)
            replaced = [field for field in fields if getattr(old, field) is not None]
            before = f"{replaced[0]} {getattr(old, replaced[0]):g}" if replaced else "none"
            lines.append(f"stage {index + 1}: {old.task}: {change.field} {value:g} instead of {before}")
    return dataclasses.replace(recipe, stages=tuple(stages)), lines


def _read(recipe: Recipe, name: str, text: str) -> tuple[int, float]:
    """The index of the stage that is meant, and the value."""
    stage, is_named, value = text.rpartition("=")
    count = len(recipe.stages)
    if not is_named and count > 1:
        raise UsageError(
            f"the recipe has {count} stages: {_listed(recipe)}; {name} meets one of them",
            remedy=f"say which: `{name}='{count}={value}'`",
        )
    if is_named and not (stage.isdecimal() and 1 <= int(stage) <= count):
        raise UsageError(f"{name} is {text!r}, but the recipe's stages are {_listed(recipe)}; name one by its number")
    return (int(stage) - 1 if is_named else 0), _number(name, value)


def _number(name: str, text: str) -> float:
    try:
        number = CHANGES[name].parse(text)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        raise UsageError(f"{name} is {text!r}; {CHANGES[name].wanted} is needed")
    return number


def _listed(recipe: Recipe) -> str:
    return ", ".join(f"{number} {stage.task}" for number, stage in enumerate(recipe.stages, start=1))
