"""What a run would do, from names and shapes alone: nothing is computed.

The memory estimate covers weights, gradients and optimizer state, which follow from the shapes. It leaves out
activations, which depend on batch, encoder and ``gradient_checkpointing``, and the libraries' own memory.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blip3v.data.mixture import PartReader, read_part
from blip3v.errors import ConfigError
from blip3v.model.weights import empty_model
from blip3v.training.loop import freeze
from blip3v.training.parallel import LAYERS
from blip3v.training.recipe import Recipe, Stage
from blip3v.training.run import TrainOptions
from blip3v.training.stages import objective_of, stage_source
from blip3v.training.start import PARTS, find_start

__all__ = ["Sizes", "make_plan", "sizes_of", "state_bytes"]

_NUM_DEVICES = (1, 2, 4, 8)
_FP32, _BF16 = 4, 2
_NUM_MOMENTS = 2  # AdamW's optimizer state, fp32 each


@dataclass(frozen=True)
class Sizes:
    """Parameters of one stage, in elements."""

    trained: dict[str, int]  # by part of the model; the stage's own heads under their own names
    frozen: dict[str, int]
    largest_layer: int
    outside_layers: int  # gathered for the whole step if the model is sharded


def make_plan(recipe: Recipe, options: TrainOptions, *, read: PartReader | None = None) -> dict[str, Any]:
    """Steps, parameters and memory of every stage, and where the model's weights come from.

    Args:
        recipe: the stages.
        options: what the run needs besides.
        read: as ``train`` takes it.

    Raises:
        UsageError: the recipe needs a checkpoint or data that is not given.
        ConfigError: the recipe, the data and the initial weights do not fit together.
        ArtifactError: the initial weights cannot be used.
    """
    torch.manual_seed(recipe.seed)
    start = find_start(recipe, options.init)
    num_frames, read = start.config.num_frames, read or functools.cache(read_part)
    stages = []
    for stage in recipe.stages:
        source = stage_source(stage, options.data, num_frames=num_frames, seed=recipe.seed, read=read)
        objective = objective_of(stage)(empty_model(start.config))
        freeze(objective, stage)
        sizes = sizes_of(objective)
        stages.append(
            {
                "task": stage.task,
                "num_clips": len(source),
                "trained": sizes.trained,
                "frozen": sizes.frozen,
                "devices": _devices(recipe, stage, sizes, len(source)),
            }
        )
    form = start.config.temporal
    model = {"preset": recipe.preset, "encoder": form.encoder, "num_video_tokens": form.num_video_tokens}
    model |= {"num_frames": start.config.num_frames}
    run: dict[str, Any] = {"parallel": recipe.parallel, "precision": recipe.precision}
    run |= {"gradient_checkpointing": recipe.gradient_checkpointing}
    return {"model": model, "origin": start.origin, "run": run, "stages": stages}


def state_bytes(recipe: Recipe, sizes: Sizes, num_devices: int) -> dict[str, int]:
    """Bytes on one device: weights, gradients, optimizer state, and the working copies that it computes with."""
    trained, everything = sum(sizes.trained.values()), sum(sizes.trained.values()) + sum(sizes.frozen.values())
    is_sharded = recipe.parallel == "fsdp" and num_devices > 1
    num_shards = num_devices if is_sharded else 1
    bf16 = recipe.precision == "bf16"
    # Sharded: everything outside the layers and two layers, the current and the next. Otherwise: the casts to bf16.
    gathered = (sizes.outside_layers + 2 * sizes.largest_layer) * (_BF16 if bf16 else _FP32)
    working = gathered if is_sharded else _BF16 * trained * bf16
    values = {
        "weights": _FP32 * everything // num_shards,
        "gradients": _FP32 * trained // num_shards,
        "optimizer_state": _NUM_MOMENTS * _FP32 * trained // num_shards,
        "working_copies": working,
    }
    return values | {"total": sum(values.values())}


def _devices(recipe: Recipe, stage: Stage, sizes: Sizes, num_clips: int) -> list[dict[str, Any]]:
    rows, problem = [], None
    for count in _NUM_DEVICES:
        try:
            planned = stage.planned(num_clips, count)
        except ConfigError as error:
            problem = error
            continue
        rows.append(
            {
                "num_devices": count,
                "num_steps": planned.num_steps,
                "batch_size": planned.batch_size,
                "state_bytes": state_bytes(recipe, sizes, count),
            }
        )
    if problem is not None and not rows:
        raise problem
    return rows


def sizes_of(objective: nn.Module) -> Sizes:
    """Numbers of parameters of an objective whose stage's parameters are frozen; they may be placeholders."""
    trained, frozen = dict[str, int](), dict[str, int]()
    for name, parameter in objective.named_parameters():
        counts = trained if parameter.requires_grad else frozen
        part = _part(name)
        counts[part] = counts.get(part, 0) + parameter.numel()
    towers = [module for module in objective.modules() if isinstance(module, LAYERS)]
    layers = [sum(x.numel() for x in layer.parameters()) for layer in towers]
    everything = sum(trained.values()) + sum(frozen.values())
    return Sizes(trained, frozen, max(layers), everything - sum(layers))


def _part(name: str) -> str:
    names = name.split(".")
    # The temporal encoder is inside the vision tokenizer.
    inner = [part for part in names if part in PARTS]
    return inner[-1] if inner else names[0]
