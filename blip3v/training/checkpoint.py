"""State of a run on disk: weights, optimiser moments, random numbers and position, in safetensors and JSON.

The position is (stage, step): the batches of a step follow from it and the recipe's seed, the learning rate too.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blip3v import _strict
from blip3v.errors import ArtifactError

__all__ = ["Position", "load_checkpoint", "load_position", "load_weights", "save_checkpoint"]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Position:
    """Where a run stands: ``step`` optimiser steps of stage ``stage`` are done."""

    stage: int
    step: int
    recipe_sha256: str  # of the recipe that the run follows; another one cannot go on from here


def save_checkpoint(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> None:
    """Replaces the checkpoint in ``folder``: a run that is killed at any moment leaves the old or the new one."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {name: x.detach().cpu().contiguous() for name, x in objective.state_dict().items()}
    save_file(weights, part / "weights.safetensors")
    save_file(_optimizer_tensors(objective, optimizer), part / "optimizer.safetensors")
    save_file(_random_state(), part / "random.safetensors")
    (part / "position.json").write_text(_strict.dumps(vars(position)), "utf-8")
    for path in part.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_position(folder: Path) -> Position | None:
    """Position of the checkpoint in ``folder``; None where there is none."""
    _recover(folder)
    if not folder.is_dir():
        return None
    try:
        return _strict.from_dict(Position, json.loads((folder / "position.json").read_text("utf-8")), str(folder))
    except (OSError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{folder} is not a checkpoint: {error}; delete it to start anew") from error


def load_weights(folder: Path, model: nn.Module) -> None:
    """Puts the model's weights and the random numbers back: a stage begins with what the one before it learned."""
    state = load_file(folder / "weights.safetensors")
    prefix = "model."
    model.load_state_dict({k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}, strict=True)
    _put_random_state(folder)


def load_checkpoint(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts weights, moments and random numbers back: a stage goes on as if it had not stopped."""
    objective.load_state_dict(load_file(folder / "weights.safetensors"), strict=True)
    _put_moments(objective, optimizer, load_file(folder / "optimizer.safetensors"))
    _put_random_state(folder)


def _recover(folder: Path) -> None:
    """A run that was killed between the two renames left the last good state under the name .old."""
    old = folder.with_name(folder.name + ".old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _put_random_state(folder: Path) -> None:
    state = load_file(folder / "random.safetensors")
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value.detach().cpu().clone().contiguous()
    return tensors


def _put_moments(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in tensors:
            optimizer.state[parameter] = {
                moment: tensors[f"{moment}.{name}"].to("cpu" if moment == "step" else parameter.device)
                for moment in _MOMENTS
            }
