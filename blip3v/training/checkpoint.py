"""State of a run on disk: weights, optimizer state, random state and position, as safetensors and JSON.

All processes take part in saving, since each may hold a shard of every tensor; one of them writes, tensor by tensor.
The position is (stage, step). It determines the learning rate and, with the recipe's seed, the batches.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blip3v import strict_json
from blip3v.errors import ArtifactError
from blip3v.model.weight_file import TensorInfo, read_tensor_infos, write_weights
from blip3v.model.weights import FileWeights, Place
from blip3v.publishing import replace_folder, sync_tree
from blip3v.training.parallel import copy_like, gather

__all__ = [
    "Position",
    "load_optimizer_state",
    "load_position",
    "load_random_state",
    "model_weights",
    "objective_weights",
    "save_checkpoint",
]

_MOMENTS = ("exp_avg", "exp_avg_sq")
_WEIGHTS, _OPTIMIZER, _RANDOM = "weights.safetensors", "optimizer.safetensors", "random.safetensors"
_MODEL = "model."  # prefix of the model's names inside an objective


@dataclass(frozen=True)
class Position:
    """Progress of a run: ``step`` optimizer steps of stage ``stage`` are done."""

    stage: int
    step: int
    recipe_sha256: str  # of the run's recipe; nothing else can resume the run, nor other data or another start
    data_sha256: str = ""  # of the lists of clips of all stages; empty: an older blip3v did not save it
    start_sha256: str = ""  # of the initial weights that came from files; likewise


def save_checkpoint(
    folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, position: Position, *, writes: bool
) -> None:
    """Replaces the checkpoint in ``folder``; a run killed at any moment leaves either the old one or the new one.

    Args:
        folder: the checkpoint's folder.
        objective: the model with the heads of its stage, whole or sharded over the processes.
        optimizer: of the objective's parameters.
        position: the run's progress.
        writes: whether this process writes the files. All processes must call this function.
    """
    part = folder.with_name(folder.name + ".part")
    if writes:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    _write(part / _WEIGHTS, objective.state_dict(), writes=writes)
    _write(part / _OPTIMIZER, _optimizer_tensors(objective, optimizer), writes=writes)
    if writes:
        save_file(_random_state(), part / _RANDOM)
        (part / "position.json").write_text(strict_json.dumps(vars(position)), "utf-8")
        sync_tree(part)
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        replace_folder(part, folder, aside=old)


def _write(path: Path, tensors: Mapping[str, Tensor], *, writes: bool) -> None:
    # All tensors are fp32, so the file keeps their order, and every process gathers them in that order.
    stored = {name: TensorInfo(tuple(tensor.shape), "F32") for name, tensor in tensors.items()}
    if writes:
        write_weights(path, stored, lambda name: gather(tensors[name]))
    else:
        for tensor in tensors.values():
            gather(tensor)


def load_position(folder: Path) -> Position | None:
    """Position of the checkpoint in ``folder``; None if there is no checkpoint."""
    _recover(folder)
    if not folder.is_dir():
        return None
    try:
        return strict_json.from_dict(Position, json.loads((folder / "position.json").read_text("utf-8")), str(folder))
    except (OSError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{folder} is not a checkpoint: {error}; delete it to start over") from error


def objective_weights(folder: Path) -> FileWeights:
    """Weights of the model and of the heads of the saved stage, under the objective's names."""
    path = folder / _WEIGHTS
    return FileWeights({name: Place(path, name) for name in read_tensor_infos(path)})


def model_weights(folder: Path) -> FileWeights:
    """Weights of the model alone, under its own names."""
    path = folder / _WEIGHTS
    names = [name for name in read_tensor_infos(path) if name.startswith(_MODEL)]
    return FileWeights({name.removeprefix(_MODEL): Place(path, name) for name in names})


def load_optimizer_state(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restores the optimizer state, so that a stage continues as if it had not been interrupted."""
    path = folder / _OPTIMIZER
    saved = FileWeights({name: Place(path, name) for name in read_tensor_infos(path)})
    for name, parameter in objective.named_parameters():
        if f"exp_avg.{name}" in saved:
            moments = {moment: copy_like(parameter, saved[f"{moment}.{name}"]) for moment in _MOMENTS}
            # A fused optimizer counts steps where the parameters are.
            device = parameter.device if optimizer.defaults["fused"] else None
            optimizer.state[parameter] = {"step": saved[f"step.{name}"].clone().to(device)} | moments


def _recover(folder: Path) -> None:
    """Renames ``.old`` back: a run killed between the two renames left the last good checkpoint there."""
    old = folder.with_name(folder.name + ".old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load_random_state(folder: Path) -> None:
    """Restores the state of the random number generators."""
    state = load_file(folder / _RANDOM)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _optimizer_tensors(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{key}.{name}": value
        for name, parameter in objective.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
