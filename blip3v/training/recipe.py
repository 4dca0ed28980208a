"""What a training run does: a recipe is a TOML file with the stages of the paper (section 3).

Not here: the loop (``loop.py``) and the data (``blip3v/data``).
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from blip3v import strict_json
from blip3v.config import ModelConfig, preset
from blip3v.errors import ConfigError
from blip3v.model.temporal import with_encoder

__all__ = ["PlannedStage", "Recipe", "Stage", "Task", "load_recipe", "recipe_names"]

Task = Literal["patches", "image-captions", "objects", "video-captions", "instructions"]
Component = Literal["vision_encoder", "vision_tokenizer", "lang_model"]

_SHIPPED = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pass of training: one task, one schedule."""

    task: Task
    pairs_per_clip: int  # questions asked of a clip in a step
    learning_rate: float  # peak of the cosine schedule
    warmup_steps: int  # linear warm-up from 0
    num_steps: int | None = None  # optimiser steps; or num_epochs
    num_epochs: float | None = None  # visits of every clip; or num_steps
    batch_size: int | None = None  # clips of a step, over all devices; or batch_size_per_device
    batch_size_per_device: int | None = None  # or batch_size
    micro_batches: int = 1  # a device takes its clips of a step in so many parts and adds up their gradients
    num_films: int = 0  # synthetic films; 0: the data is a JSON list
    data: str | None = None  # the JSON list, in the form of the authors' code; None: the one that the run is given
    freeze: tuple[Component, ...] = ("vision_encoder",)
    temporal_learning_rate: float | None = None  # of the temporal encoder; None: as the rest
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    cache_features: bool = False  # compute the patch tokens of every clip once; needs a frozen vision encoder

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "batch_size_per_device", "pairs_per_clip", "micro_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} of stage {self.task} is {value}; at least 1 is needed")
        if self.num_epochs is not None and self.num_epochs <= 0:
            raise ConfigError(f"num_epochs of stage {self.task} is {self.num_epochs}; a number above 0 is needed")
        for one, other in (("num_steps", "num_epochs"), ("batch_size", "batch_size_per_device")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise ConfigError(f"stage {self.task} needs either {one} or {other}, and not both")
        if self.data is not None and self.num_films:
            raise ConfigError(f"stage {self.task} names both data and num_films; leave one out")
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

    @property
    def depends_on_devices(self) -> bool:
        """Whether another number of devices makes other steps."""
        return self.batch_size is None

    def planned(self, num_clips: int, num_devices: int) -> PlannedStage:
        """The stage for so many clips on so many devices, in steps.

        Raises:
            ConfigError: a device would have steps with fewer clips than ``micro_batches``.
        """
        clips = self.batch_size if self.batch_size is not None else (self.batch_size_per_device or 0) * num_devices
        if clips < num_devices * self.micro_batches:
            raise ConfigError(
                f"stage {self.task} has {clips} clips a step for {num_devices} devices and {self.micro_batches} "
                "micro-batches on each; every one needs at least 1 clip"
            )
        steps = self.num_steps if self.num_steps is not None else math.ceil((self.num_epochs or 0) * num_clips / clips)
        return PlannedStage(self, steps, clips)


@dataclass(frozen=True)
class PlannedStage:
    """A stage whose data and devices are known."""

    stage: Stage
    num_steps: int  # optimiser steps
    batch_size: int  # clips of a step, over all devices


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: which model, from what, through which stages."""

    preset: str  # shape of the model; its temporal fields are overridden by the next four
    encoder: str
    seed: int
    stages: tuple[Stage, ...]
    num_video_tokens: int | None = None  # None: the encoder's usual count
    num_frames: int | None = None  # None: the preset's
    temporal: dict[str, Any] = field(default_factory=dict)  # further settings of the encoder
    precision: Literal["fp32", "bf16"] = "fp32"  # of the computation; weights and moments are fp32
    parallel: Literal["ddp", "fsdp"] = "ddp"  # several processes: a whole model each, or a part of it each
    init: str = "random"  # "random", or what it starts from, which the run is then given
    vision: str | None = None  # folder of a pretrained SigLIP, with ``language`` instead of a checkpoint
    language: str | None = None  # folder of a pretrained Phi-3
    tokenizer: str | None = None  # folder of the tokenizer, where what it starts from has none that fits
    resize_mode: Literal["squash", "pad"] | None = None  # of frames; None: as in what it starts from, or squash
    # How weights start that nothing gives. authors: as their code starts them; spread: for towers that are not trained
    # yet (``initialise.py``).
    start: Literal["authors", "spread"] = "authors"
    save_every: int = 200  # steps between checkpoints
    log_every: int = 20
    gradient_checkpointing: bool = False  # compute activations again in the backward pass instead of keeping them

    def __post_init__(self) -> None:
        if (self.vision is None) != (self.language is None):
            raise ConfigError(
                "vision and language belong together", remedy="give both folders, or neither and a checkpoint as `init`"
            )
        if self.vision is not None and self.start == "spread":
            raise ConfigError("start is 'spread', which is for towers that are not trained yet; leave it out")
        if self.vision is not None and self.init != "random":
            raise ConfigError(f"init is {self.init!r}, and vision and language are given too; leave one out")

    def model_config(self, base: ModelConfig | None = None) -> ModelConfig:
        """Shape of the model that this recipe trains.

        Args:
            base: all but the temporal encoder and the frames; None: the preset.
        """
        own = preset(self.preset) if base is None else base
        sizes = {"num_video_tokens": self.num_video_tokens, "num_frames": self.num_frames}
        return with_encoder(own, self.encoder, **sizes, **self.temporal)

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
    recipe = strict_json.from_dict(Recipe, values, str(path))
    recipe.model_config()
    if not recipe.stages:
        raise ConfigError(f"{path} holds no stage; a recipe needs at least one")
    return recipe
