"""What a training run does: a recipe is a TOML file with the stages of the paper (section 3).

Not here: the loop (``loop.py``) and the data (``blip3v/data``).
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blip3v import _strict
from blip3v.config import ModelConfig, preset
from blip3v.errors import ConfigError

__all__ = ["Recipe", "Stage", "Task", "load_recipe", "recipe_names"]

Task = Literal["patches", "image-captions", "objects", "video-captions", "instructions"]
Component = Literal["vision_encoder", "vision_tokenizer", "lang_model"]

_SHIPPED = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pass of training: one task, one schedule."""

    task: Task
    num_steps: int  # optimiser steps
    batch_size: int  # clips of a step, over all devices
    pairs_per_clip: int  # questions asked of a clip in a step
    learning_rate: float  # peak of the cosine schedule
    warmup_steps: int  # linear warm-up from 0
    num_films: int = 0  # synthetic films; 0: the data is the JSON list that --data names
    freeze: tuple[Component, ...] = ("vision_encoder",)
    temporal_learning_rate: float | None = None  # of the temporal encoder; None: as the rest
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    cache_features: bool = False  # compute the patch tokens of every clip once; needs a frozen vision encoder

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "pairs_per_clip"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of stage {self.task} is {getattr(self, name)}; at least 1 is needed")
        if self.task in ("patches", "objects") and not self.num_films:
            raise ConfigError(f"stage {self.task} learns from synthetic films alone; give num_films")
        if self.task == "objects" and not self.cache_features:
            raise ConfigError("stage objects learns from the frozen vision encoder's features; set cache_features")
        if self.cache_features and "vision_encoder" not in self.freeze:
            raise ConfigError(
                f"stage {self.task} caches features but trains the vision encoder; freeze it or do not cache"
            )
        if self.cache_features and self.task in ("patches", "image-captions"):
            raise ConfigError(f"stage {self.task} sees a new frame at each visit; its features cannot be cached")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: which model, from what, through which stages."""

    preset: str  # shape of the model; its temporal fields are overridden by the next two
    encoder: str
    seed: int
    stages: tuple[Stage, ...]
    num_tokens: int | None = None  # None: the encoder's usual count
    num_frames: int | None = None  # None: the preset's
    precision: Literal["fp32", "bf16"] = "fp32"
    init: str = "random"  # "random", or the name of the recipe whose result it starts from
    save_every: int = 200  # steps between checkpoints
    log_every: int = 20
    gradient_checkpointing: bool = False

    def model_config(self) -> ModelConfig:
        """Shape of the model that this recipe trains."""
        return preset(self.preset).with_encoder(self.encoder, num_tokens=self.num_tokens, num_frames=self.num_frames)

    def to_dict(self) -> dict[str, Any]:
        """For ``training.json``."""
        return dataclasses.asdict(self)


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Reads a shipped recipe by name, or a TOML file by path.

    Raises:
        ConfigError: no such recipe, or one that is not valid.
    """
    path = _SHIPPED / f"{name}.toml" if name in recipe_names() else Path(name)
    if not path.is_file():
        raise ConfigError(f"recipe {name!r} is neither a file nor one of: {', '.join(recipe_names())}")
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    recipe = _strict.from_dict(Recipe, values, str(path))
    recipe.model_config()
    return recipe
