"""What a run needs besides its recipe, checked against it by names alone: before PyTorch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blip3v.data.mixture import Part, check_parts, parts_of
from blip3v.errors import UsageError
from blip3v.folders import check_checkpoint, kind_of
from blip3v.publishing import check_writable
from blip3v.training.recipe import Recipe, Stage, read_recipe, recipe_names

__all__ = ["TrainOptions", "check_data", "check_init", "check_options", "check_output", "checkpoint_folder", "data_of"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a run needs besides its recipe."""

    output: Path  # folder of the run
    init: Path | None = None  # checkpoint to start from; None: what the recipe says
    # For the stages that name no data: words as ``data/mixture.py`` describes, such as a JSON list.
    data: str | tuple[str, ...] | None = None
    cache: Path | None = None  # folder of cached features; None: next to the run's folder
    device: str = "auto"  # "auto", "cpu" or "cuda"
    resume: bool = False  # continue from the run's checkpoint
    workers: int | None = None  # processes that read clips ahead, on each device; 0: none; None: as the data need
    max_broken_clips: int = 20  # clips of a stage that cannot be read, each counted whenever its turn comes, ...
    max_broken_share: float = 0.02  # ... and their share of all; a run that exceeds both ends

    def __post_init__(self) -> None:
        for name, least in (("workers", self.workers or 0), ("max_broken_clips", self.max_broken_clips)):
            if least < 0:
                raise UsageError(f"{name} is {least}; at least 0 is needed")
        if not 0 <= self.max_broken_share <= 1:
            raise UsageError(f"max_broken_share is {self.max_broken_share:g}; a share from 0 to 1 is needed")


def check_options(recipe: Recipe, options: TrainOptions) -> None:
    """Checks what can be checked without opening the weights.

    Raises:
        UsageError: a checkpoint or data are missing or too much, or a data set is unknown or not there.
        ConfigError: a list of clips or a mixture file does not exist.
        ArtifactError: the initial weights are not a checkpoint.
    """
    check_init(recipe, options.init)
    check_data(recipe, options.data)


def check_data(recipe: Recipe, data: str | tuple[str, ...] | None) -> list[Part]:
    """Checks that each stage on clips has data that exist, and that ``data`` has an effect.

    Args:
        recipe: names the data of some stages, or of none.
        data: for the others; None: not given.

    Returns:
        The lists and data sets of all stages, each once.

    Raises:
        UsageError: ``data`` is missing or has no effect, or a data set is unknown or not there.
        ConfigError: a list or a mixture file does not exist.
    """
    if data and not any(_needs_data(stage) for stage in recipe.stages):
        takers = [name for name in recipe_names() if any(map(_needs_data, read_recipe(name).stages))]
        raise UsageError(
            "every stage of this recipe has its own films or list",
            remedy=f"`data` has no effect: leave it out, or use a recipe that needs a list, such as {takers[0]}",
        )
    stages = [stage for stage in recipe.stages if not stage.num_films]
    parts = list(dict.fromkeys(part for stage in stages for part in parts_of(data_of(stage, data))))
    check_parts(parts)
    return parts


def check_init(recipe: Recipe, init: Path | None) -> None:
    """Checks that there is exactly one thing to start from.

    Args:
        recipe: says what it starts from.
        init: the checkpoint that is given.

    Raises:
        UsageError: a checkpoint is given but the recipe takes none, or it takes one and none is given.
        ArtifactError: what is given is not a checkpoint.
    """
    if recipe.vision is not None and init is not None:
        raise UsageError("this recipe starts from the folders that it names", remedy="leave `init` out")
    if init is not None:
        check_checkpoint(init)
        if kind_of(init) == "file" and recipe.tokenizer is None:
            raise UsageError(
                f"{init} contains only weights; name the folder of their tokenizer as tokenizer in the recipe"
            )
    elif recipe.vision is None and recipe.init != "random":
        raise UsageError(
            f"this recipe starts from {recipe.init!r}",
            remedy=f"name its folder, or another checkpoint of the preset {recipe.preset}, as `init`",
        )
    elif recipe.vision is None and recipe.preset != "tiny":
        raise UsageError(
            f"preset {recipe.preset} has no tokenizer of its own",
            remedy="name a checkpoint as `init`, or set the folders of pretrained towers in the recipe (vision, "
            "language, tokenizer)",
        )


def check_output(options: TrainOptions) -> None:
    """Checks that the run's folder holds a checkpoint if, and only if, one is to be resumed.

    Raises:
        UsageError: it is the other way round.
        ArtifactError: the folder cannot be written to.
    """
    checkpoint = checkpoint_folder(options.output)
    # A run that was killed between two renames has left its checkpoint under the second name.
    exists = checkpoint.is_dir() or checkpoint.with_name(f"{checkpoint.name}.old").is_dir()
    if options.resume and not exists:
        raise UsageError(f"{options.output} contains no checkpoint to resume", remedy="leave `resume` out")
    if exists and not options.resume:
        raise UsageError(
            f"{options.output} already contains a run",
            remedy="continue it with `resume=True`, or choose another `output`",
        )
    check_writable(checkpoint)


def checkpoint_folder(output: Path) -> Path:
    """Where the run in ``output`` keeps its checkpoint."""
    return output / "checkpoint"


def _needs_data(stage: Stage) -> bool:
    return not stage.num_films and stage.data is None


def data_of(stage: Stage, data: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The data of a stage on clips, in words: its own, or ``data``.

    Raises:
        UsageError: there are none.
    """
    words = stage.data if stage.data is not None else data
    if not words:
        raise UsageError(
            f"stage {stage.task} trains on your clips",
            remedy="name their JSON list as `data`, or as data of the stage",
        )
    return (words,) if isinstance(words, str) else words
