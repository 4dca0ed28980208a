"""Maps a stage's task to its loss, its data and its batches."""

from __future__ import annotations

from blip3v.data.mixture import PartReader, open_data, read_part
from blip3v.data.samples import FilmSource, FilmTask, Source
from blip3v.model.temporal import frames_read
from blip3v.training.clip_batches import Batches
from blip3v.training.clip_pixels import ClipPixels
from blip3v.training.features import Features
from blip3v.training.loop import Objective, StageObjective, StepBatches
from blip3v.training.objects import ObjectBatches, ObjectObjective
from blip3v.training.options import data_of
from blip3v.training.patches import PatchBatches, PatchObjective
from blip3v.training.recipe import PlannedStage, Stage, Task
from blip3v.training.start import Start

__all__ = ["objective_of", "stage_batches", "stage_source"]

# What each task uses of the synthetic films.
_FILM_TASKS: dict[Task, FilmTask] = {
    "patches": "image-captions",
    "image-captions": "image-captions",
    "objects": "video-captions",
    "video-captions": "video-captions",
    "instructions": "instructions",
}
_OBJECTIVES: dict[Task, type[StageObjective]] = {"patches": PatchObjective, "objects": ObjectObjective}


def objective_of(stage: Stage) -> type[StageObjective]:
    """The class of a stage's objective."""
    return _OBJECTIVES.get(stage.task, Objective)


def stage_source(
    stage: Stage,
    data: str | tuple[str, ...] | None,
    *,
    num_frames: int,
    seed: int,
    read: PartReader = read_part,
) -> Source:
    """The data of a stage: films, or the clips of lists and data sets.

    Args:
        stage: gives the number of films, or the data.
        data: to use if the stage names none.
        num_frames: frames of a clip.
        seed: of the choice of frames and questions.
        read: as ``open_data`` takes it.

    Raises:
        UsageError: the stage needs data and none are given, or a data set is not there.
        ConfigError: they are not valid.
    """
    if stage.num_films:
        return FilmSource(_FILM_TASKS[stage.task], stage.num_films, num_frames, stage.pairs_per_clip, seed)
    return open_data(data_of(stage, data), num_frames=num_frames, seed=seed, read=read)


def stage_batches(
    planned: PlannedStage, start: Start, source: Source, features: Features | None, *, seed: int
) -> StepBatches:
    """The batch of every step of a stage."""
    task, size, config = planned.stage.task, planned.batch_size, start.config
    if task == "patches":
        assert isinstance(source, FilmSource), "Stage requires films for this task"
        grid = config.vision.image_size // config.vision.patch_size
        return PatchBatches(source, start.preprocessor, size, seed, grid)
    if task == "objects":
        assert isinstance(source, FilmSource), "Stage requires films for this task"
        assert features is not None, "Stage requires cached features for this task"
        return ObjectBatches(source, features, size, seed, frames_read(config))
    pixels = ClipPixels(source, start.preprocessor)
    return Batches(pixels, start.chat, size, seed, features, planned.stage.max_tokens)
