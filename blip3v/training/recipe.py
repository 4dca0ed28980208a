"""Training recipes: TOML files that describe a run in the stages of the paper (section 3).

Not here: the loop (``loop.py``) and the data (``blip3v/data``).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from blip3v import strict_json
from blip3v.config import ModelConfig, preset
from blip3v.errors import ConfigError
from blip3v.model.temporal import encoder_names, with_encoder
from blip3v.units import format_count

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["PlannedStage", "Recipe", "Stage", "Task", "load_recipe", "read_recipe", "recipe_names"]

Task = Literal["patches", "image-captions", "objects", "video-captions", "instructions"]
Component = Literal["vision_encoder", "vision_tokenizer", "lang_model"]

_SHIPPED = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pass of training: one task, one schedule."""

    task: Task
    pairs_per_clip: int  # questions about a clip in a step
    learning_rate: float  # peak of the cosine schedule
    warmup_steps: int  # linear warm-up from 0
    num_steps: int | None = None  # optimizer steps; either this or num_epochs
    num_epochs: float | None = None  # visits to every clip; either this or num_steps
    batch_size: int | None = None  # clips in a step, over all devices; either this or batch_size_per_device
    batch_size_per_device: int | None = None  # clips in a step, on each device
    micro_batches: int = 1  # parts into which a device splits its clips of a step, accumulating their gradients
    num_films: int = 0  # synthetic films; 0: the data is clips in files
    data: str | None = None  # a word of ``data/mixture.py``, such as a JSON list; None: the data given to the run
    freeze: tuple[Component, ...] = ("vision_encoder",)
    temporal_learning_rate: float | None = None  # peak for the temporal encoder; None: learning_rate
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    max_tokens: int | None = None  # of a clip's conversation with its prompt; longer ones lose turns; None: no bound
    cache_features: bool = False  # compute the patch tokens of every clip once; needs a frozen vision encoder

    def __post_init__(self) -> None:
        for name in (
            "num_steps",
            "batch_size",
            "batch_size_per_device",
            "pairs_per_clip",
            "micro_batches",
            "max_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} of stage {self.task} is {value}; at least 1 is needed")
        if self.num_epochs is not None and self.num_epochs <= 0:
            raise ConfigError(f"num_epochs of stage {self.task} is {self.num_epochs}; a number above 0 is needed")
        for one, other in (("num_steps", "num_epochs"), ("batch_size", "batch_size_per_device")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise ConfigError(f"stage {self.task} needs either {one} or {other}, not both")
        if self.data is not None and self.num_films:
            raise ConfigError(f"stage {self.task} sets both data and num_films; leave one out")
        if self.task in ("patches", "objects") and not self.num_films:
            raise ConfigError(f"stage {self.task} trains on synthetic films only; set num_films")
        if self.task == "objects" and not self.cache_features:
            raise ConfigError("stage objects trains on the frozen vision encoder's features; set cache_features")
        if self.cache_features and "vision_encoder" not in self.freeze:
            raise ConfigError(
                f"stage {self.task} caches features but trains the vision encoder; freeze it or unset cache_features"
            )
        if self.cache_features and self.task in ("patches", "image-captions"):
            raise ConfigError(f"stage {self.task} sees a new frame at each visit; its features cannot be cached")

    @property
    def depends_on_devices(self) -> bool:
        """Whether the steps depend on the number of devices."""
        return self.batch_size is None

    def planned(self, num_clips: int, num_devices: int) -> PlannedStage:
        """Steps and batch size of the stage for ``num_clips`` clips on ``num_devices`` devices.

        Raises:
            ConfigError: a device would have fewer clips in a step than ``micro_batches``.
        """
        clips = self.batch_size if self.batch_size is not None else (self.batch_size_per_device or 0) * num_devices
        if clips < num_devices * self.micro_batches:
            raise ConfigError(
                f"stage {self.task} has {format_count(clips, 'clip')} a step for {format_count(num_devices, 'device')} "
                f"and {self.micro_batches} micro-batches on each; every micro-batch needs at least 1 clip"
            )
        steps = self.num_steps if self.num_steps is not None else math.ceil((self.num_epochs or 0) * num_clips / clips)
        return PlannedStage(self, steps, clips)


@dataclass(frozen=True)
class PlannedStage:
    """A stage whose data and devices are known."""

    stage: Stage
    num_steps: int  # optimizer steps
    batch_size: int  # clips in a step, over all devices


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: the model, what it starts from, and the stages."""

    preset: str  # shape of the model; encoder, num_video_tokens, num_frames and temporal replace its own
    encoder: str
    seed: int
    stages: tuple[Stage, ...]
    num_video_tokens: int | None = None  # None: the encoder's default count
    num_frames: int | None = None  # None: the preset's
    temporal: dict[str, Any] = field(default_factory=dict)  # further settings of the encoder
    precision: Literal["fp32", "bf16"] = "fp32"  # of the computation; weights and optimizer state are fp32
    parallel: Literal["ddp", "fsdp"] = "ddp"  # how several processes hold the model: a copy each, or a shard each
    init: str = "random"  # "random", or the name of a checkpoint, whose path the run must be given
    vision: str | None = None  # folder of a pretrained SigLIP; together with ``language``, instead of a checkpoint
    language: str | None = None  # folder of a pretrained Phi-3
    tokenizer: str | None = None  # folder of the tokenizer, if the initial weights come without a matching one
    resize_mode: Literal["squash", "pad"] | None = None  # of frames; None: the checkpoint's, or squash
    # How weights without a source are initialised. authors: as in the authors' code; spread: for untrained towers
    # (``initialise.py``).
    start: Literal["authors", "spread"] = "authors"
    save_every: int = 200  # steps between checkpoints
    log_every: int = 20
    gradient_checkpointing: bool = False  # recompute activations in the backward pass instead of storing them

    def __post_init__(self) -> None:
        if (self.vision is None) != (self.language is None):
            raise ConfigError(
                "vision and language belong together", remedy="give both folders, or neither and a checkpoint as `init`"
            )
        if self.vision is not None and self.start == "spread":
            raise ConfigError("start is 'spread', which is for untrained towers; leave it out")
        if self.vision is not None and self.init != "random":
            raise ConfigError(f"init is {self.init!r}, but vision and language are set too; leave one out")

    def model_config(self, base: ModelConfig | None = None) -> ModelConfig:
        """Config of the model that this recipe trains.

        Args:
            base: config of everything but the temporal encoder and the frames; None: the preset.
        """
        own = preset(self.preset) if base is None else base
        sizes = {"num_video_tokens": self.num_video_tokens, "num_frames": self.num_frames}
        return with_encoder(own, self.encoder, **sizes, **self.temporal)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as ``training.json`` stores it."""
        return dataclasses.asdict(self)


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Reads a shipped recipe by name, or a TOML file by path.

    Raises:
        ConfigError: no such recipe, or an invalid one.
    """
    recipe = read_recipe(name)
    recipe.model_config()
    return recipe


def read_recipe(name: str) -> Recipe:
    """Reads a recipe without the checks of its encoder's settings, which import PyTorch.

    Raises:
        ConfigError: no such recipe, or one that is invalid without looking at the encoder.
    """
    path = _SHIPPED / f"{name}.toml" if name in recipe_names() else Path(name)
    if not path.is_file():
        raise ConfigError(f"recipe {name!r} is neither a file nor one of: {', '.join(recipe_names())}")
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    recipe = strict_json.from_dict(Recipe, values, str(path))
    preset(recipe.preset)
    if recipe.encoder not in encoder_names():
        raise ConfigError(f"encoder {recipe.encoder!r} is unknown; allowed: {', '.join(encoder_names())}")
    if not recipe.stages:
        raise ConfigError(f"{path} has no stages; a recipe needs at least one")
    return recipe
